"""The judge with a tiny random ModernBERT and a tiny tokenizer, made here: scores that depend on
nothing but pair and weights, both protocols, own files, and what a user sees.

    python -m pytest tests/test_evaluate.py
"""

import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch.utils.flop_counter import FlopCounterMode

import dora
import evaluate as e
import tinyrm
from data import Format, Pair, cloze_rows, load_tokenizer, pack

TEXT = """Instruction: Option A: Option B: Response: Which option is better? safer? more correct?
The better option is . Is the response good? safe? correct? The answer is Yes No A B 0 1
Question: Choice 0: 1: Answer: User: Assistant: one two three four five six seven eight nine ten"""
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder in the Hub layout: 4 layers (the last one global), 32 wide, random weights
    ten times their usual size, so that scores differ."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [AddedToken(t, special=True) for t in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")]
    tokenizer.train_from_iterator([TEXT] * 2, trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(str(path / "tokenizer.json"))
    config = tinyrm.Config.read({
        "model_type": "modernbert", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
        "max_position_embeddings": 512})
    model = tinyrm.ModernBERT(config).init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10)
    tinyrm.save(model, path)
    return path


@pytest.fixture(scope="session")
def rm(folder):
    return e.RewardModel.load(folder, device="cpu")


@pytest.fixture(scope="session")
def alone(folder):
    return e.RewardModel.load(folder, device="cpu", context="single")


def text(lot, most=40):
    return " ".join(lot.choice(WORDS) for _ in range(lot.randint(1, most)))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def some_pairs(n, seed=0, prompts=None):
    lot = random.Random(seed)
    return [{"prompt": f"{i % (prompts or n)} " + text(random.Random(i % (prompts or n)), 8),
             "chosen": text(lot), "rejected": text(lot), "subset": lot.choice("xyz")}
            for i in range(n)]


def run(args, cwd):
    """The script as a user runs it."""
    out = subprocess.run([sys.executable, str(Path(e.__file__)), *map(str, args)], cwd=cwd,
                         capture_output=True, text=True, check=False)
    return out.returncode, out.stdout, out.stderr


# --- scores ----------------------------------------------------------------------------------


def test_compare_is_the_mean_of_both_orders_by_definition(rm):
    pair = Pair("one two", "three", "four five")
    (rows,), _ = cloze_rows([pair], rm.fmt)
    p = []
    for row in rows:
        batch = pack([row])
        with torch.inference_mode():
            h = rm.model(batch.tokens, batch.starts, batch.read)
            p.append(rm.model.logits(h)[0, list(rm.fmt.words)].softmax(-1)[0].item())
    assert rm.compare(*pair[:3]) == pytest.approx((p[0] + 1 - p[1]) / 2, abs=1e-6)
    assert p[0] != pytest.approx(p[1], abs=1e-3)  # the test would be blind otherwise


@pytest.mark.parametrize("context", ["pair", "single"])
def test_a_score_is_the_same_alone_among_others_and_in_any_order(folder, context, monkeypatch):
    rm = e.RewardModel.load(folder, device="cpu", context=context)
    rows = some_pairs(60, prompts=7)
    columns = [[r[k] for r in rows] for k in ("prompt", "chosen", "rejected")]
    together = rm.compare(*columns)
    assert np.ptp(together) > 0.01
    for i in (0, 17, 59):
        assert rm.compare(*(c[i] for c in columns)) == pytest.approx(together[i], abs=1e-5)
    assert rm.compare(*(c[::-1] for c in columns))[::-1] == pytest.approx(together, abs=1e-5)
    monkeypatch.setattr(e, "WINDOW", 7)
    monkeypatch.setitem(e.BUDGET, "cpu", 100)
    assert rm.compare(*columns) == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("context", ["pair", "single"])
def test_compare_is_antisymmetric_and_equal_responses_tie(folder, context):
    rm = e.RewardModel.load(folder, device="cpu", context=context)
    for r in some_pairs(10):
        there = rm.compare(r["prompt"], r["chosen"], r["rejected"])
        back = rm.compare(r["prompt"], r["rejected"], r["chosen"])
        assert there + back == pytest.approx(1, abs=1e-12)
    assert rm.compare("one", "two", "two") == 0.5


def test_responses_that_truncation_makes_identical_tie_in_both_contexts(folder):
    long = "one two three " * 400
    for context in ("pair", "single"):
        rm = e.RewardModel.load(folder, device="cpu", context=context, max_length=100)
        assert rm.compare("ten", long + "four", long + "five") == 0.5
        assert [r.rank for r in rm.rank("ten", [long + "four", "six", long + "five"])] in (
            [1, 1, 3], [1, 2, 2])


def test_single_scores_are_log_odds_and_differences_decide(alone):
    best = alone.rank("one two", ["three", "four five", "six"])
    by_text = {r.response: r.score for r in best}
    p = alone.compare("one two", "three", "six")
    assert p == pytest.approx(1 / (1 + np.exp(by_text["six"] - by_text["three"])))
    (rows,), _ = cloze_rows([Pair("one two", "three", "six")], alone.fmt)
    batch = pack(rows[:1])
    with torch.inference_mode():
        z = alone.model.logits(alone.model(batch.tokens, batch.starts, batch.read))
    yes, no = alone.fmt.words
    assert by_text["three"] == pytest.approx((z[0, yes] - z[0, no]).item(), abs=1e-4)


def test_a_prompt_that_cannot_fit_is_an_error_or_a_tie(folder):
    rm = e.RewardModel.load(folder, device="cpu", max_length=64)
    with pytest.raises(ValueError, match="prompt alone is longer"):
        rm.compare("one " * 200, "two", "three")
    assert rm.compare("one " * 200, "two", "three", drop_long=True) == 0.5


def test_messages_are_a_prompt_and_domains_ask_their_own_question(rm):
    talk = [{"role": "user", "content": "one"}]
    assert rm.compare(talk, "two", "three") == rm.compare("one", "two", "three")
    p = {d: rm.compare("one", "two", "three", domains=d) for d in ("chat", "safety", "reasoning")}
    assert len(set(p.values())) == 3 and p["chat"] == rm.compare("one", "two", "three")
    many = rm.compare(["one"] * 3, ["two"] * 3, ["three"] * 3, domains=list(p))
    assert many == pytest.approx(list(p.values()), abs=1e-6)


@pytest.mark.parametrize("call", [
    lambda rm: rm.compare(["a"], ["b", "c"], ["d"]),
    lambda rm: rm.compare("a", "b", None),
    lambda rm: rm.compare(3, "b", "c"),
    lambda rm: rm.rank("a", []),
    lambda rm: rm.rank(["a", "b"], [["c"], []]),
    lambda rm: rm.rank("a", ["b", 3]),
])
def test_wrong_arguments_are_value_errors(rm, call):
    with pytest.raises(ValueError):
        call(rm)


# --- ranking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["pair", "single"])
def test_rank_does_not_depend_on_the_order_given_to_the_last_bit(folder, context):
    rm = e.RewardModel.load(folder, device="cpu", context=context)
    responses = ["one", "two two", "three", "two two", "four five six"]
    best = rm.rank("seven", responses)
    for seed in range(4):
        order = random.Random(seed).sample(range(5), 5)
        again = rm.rank("seven", [responses[i] for i in order])
        assert [(r.rank, r.response, r.win) for r in again] == [
            (r.rank, r.response, r.win) for r in best]
        assert [responses[order[r.index]] for r in again] == [r.response for r in again]


def test_rank_is_the_mean_win_probability_and_keeps_ties(rm):
    responses = ["one", "two", "three four"]
    best = rm.rank("five", responses)
    for r in best:
        wins = [rm.compare("five", r.response, other) for other in responses if other != r.response]
        assert r.win == pytest.approx(sum(wins) / 2, abs=1e-6)
    assert [r.win for r in best] == sorted((r.win for r in best), reverse=True)
    twice = rm.rank("five", ["two", "one", "two"])
    ranks = {r.index: r.rank for r in twice}
    assert ranks[0] == ranks[2] and sorted(ranks.values()) in ([1, 1, 3], [1, 2, 2])


def test_rank_of_many_prompts_fills_windows_and_agrees_with_one_by_one(rm):
    lot = random.Random(4)
    prompts = [f"{i} one" for i in range(30)]
    lists = [[text(lot, 6) for _ in range(lot.randint(1, 6))] for _ in prompts]
    rm.spent.clear()
    many = rm.rank(prompts, lists)
    for prompt, responses, ranked in zip(prompts, lists, many, strict=True):
        one = rm.rank(prompt, responses)
        assert {r.index: r.win for r in ranked} == pytest.approx(
            {r.index: r.win for r in one}, abs=1e-5)


def test_windows_hold_memory_flat_and_pull_items_only_as_needed(rm, monkeypatch):
    monkeypatch.setattr(e, "WINDOW", 4)
    pulled = []

    def items():
        for i in range(100):
            pulled.append(i)
            yield e.Item(f"one {i}", ("two", "three"))

    for n, _ in enumerate(rm.judge(items())):
        assert len(pulled) <= n + 1 + 3 * 4  # this window, the next, and one being read
    assert n == 99


def test_an_error_while_tokenising_ahead_reaches_the_caller(folder):
    rm = e.RewardModel.load(folder, device="cpu", max_length=64)
    items = [e.Item("one", ("a", "b"))] * 3 + [e.Item("one " * 300, ("a", "b"), where="f, line 4")]
    with pytest.raises(ValueError, match="f, line 4: the prompt alone"):
        list(rm.judge(items))


# --- models ----------------------------------------------------------------------------------


def test_the_format_comes_from_tinyrm_json_and_flags_override_it(folder, tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "tinyrm.json").write_text(json.dumps(
        {"template": "option", "context": "single", "head": "cloze", "domain": "safety",
         "max_length": 200}))
    rm = e.RewardModel.load(tmp_path / "run", domain="chat")
    assert (rm.fmt.context, rm.fmt.domain, rm.fmt.max_length) == ("single", "chat", 200)
    assert rm.about["format"] == {"template": "option", "context": "single", "head": "cloze",
                                  "domain": "chat", "max_length": 200, "causal": False}
    assert e.RewardModel.load(folder).about["format"] == {  # what nobody said stands there too
        "template": "option", "context": "pair", "head": "cloze", "domain": "all",
        "max_length": 512, "causal": False}
    with pytest.raises(ValueError, match="ends at 512"):
        e.RewardModel.load(tmp_path / "run", max_length=600)


@pytest.mark.parametrize("kind", ["dora", "lora"])
def test_an_adapter_folder_is_its_base_with_the_adapter_merged(folder, tmp_path, kind):
    model = tinyrm.load(folder)
    dora.adapt(model, kind, rank=4, alpha=8, freeze=1, seed=1)
    lot = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=lot) * 0.3)
    dora.save_adapter(model, tmp_path / "adapter", folder)
    live = e.RewardModel(model.eval(), Format(load_tokenizer(folder), max_length=512))
    for name in (tmp_path / "adapter", tmp_path):  # a run folder that holds an adapter only
        rm = e.RewardModel.load(name)
        want = live.compare("one two", "three", "four five")
        assert rm.compare("one two", "three", "four five") == pytest.approx(want, abs=1e-5)
    base = e.RewardModel.load(folder).compare("one two", "three", "four five")
    assert abs(base - want) > 1e-3


@pytest.mark.parametrize("context", ["pair", "single"])
def test_the_cls_head_judges_in_both_contexts(folder, tmp_path, context):
    model = tinyrm.load(folder, "cls", 3)
    tinyrm.save(model, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    rm = e.RewardModel.load(tmp_path, context=context)
    assert rm.fmt.head == "cls"
    p = rm.compare("one", "two", "three")
    assert p != 0.5 and p + rm.compare("one", "three", "two") == pytest.approx(1)


# --- what it costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 9, 9], [30, 64, 65], [70, 200, 200, 31], [500]])
@pytest.mark.parametrize("layers", [4, 3])  # the last layer global, and local
@pytest.mark.parametrize("kind", ["modernbert", "modernbert-decoder"])
def test_flops_are_those_that_torch_counts(sizes, layers, kind):
    config = tinyrm.Config.read({
        "model_type": kind, "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": layers, "num_attention_heads": 2})
    model = tinyrm.ModernBERT(config).init_weights(0).eval()
    starts = torch.tensor([0, *np.cumsum(sizes).tolist()])
    tokens = torch.randint(50, (int(starts[-1]),))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            h = model(tokens, starts, starts[1:] - 1)
            model.logits(h, torch.tensor([3, 4]))
    assert e.flops(config, sizes, torch.device("cpu")) == counter.get_total_flops()


def test_the_papers_formula_gives_its_chart():
    # facts of the chart: large 0.345 GFLOPs a token without logits; base 0.187 with them, which
    # are 2 D V = 2 * 768 * 50368
    large = e.paper_flops(1024, 28, 16, 2624)
    base = e.paper_flops(768, 22, 12, 1152)
    assert large / 1e9 == pytest.approx(0.345, abs=5e-4)
    assert (base + 2 * 768 * 50368) / 1e9 == pytest.approx(0.187, abs=5e-4)


# --- files and the command line --------------------------------------------------------------


def test_a_file_of_pairs_is_reported_and_written(folder, tmp_path, capsys):
    file = write(tmp_path / "mine.jsonl", some_pairs(40, prompts=20))
    e.main([str(folder), str(file), "--out", str(tmp_path / "out"), "--cost"])
    said = capsys.readouterr().out
    assert "judging 40 items" in said and "20 prompts, 80 rows, 0 truncated rows" in said
    assert all(f"{what} " in said for what in ("both orders agree", "first slot wins",
                                               "right in one order"))
    assert "pairs a second" in said and "share of them in the encoder" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").open()]
    assert len(scores) == 40
    (r,) = results["reports"]
    right = [(s["mean"] > 0.5) + 0.5 * (s["mean"] == 0.5) for s in scores]
    assert r["score"] == pytest.approx(sum(right) / 40) and r["lines"][0]["n"] == 40
    assert r["seen"] == {"rows": 80, "truncated rows": 0}
    assert all(s["mean"] == pytest.approx((s["a_first"] + s["b_first"]) / 2) for s in scores)
    agree = [(s["a_first"] > 0.5) == (s["b_first"] > 0.5) for s in scores]
    assert r["lines"][0]["both orders agree"] == sum(agree)
    assert len({s["prompt"] for s in scores}) == 20
    assert "--out" in results["command"] and results["versions"]["torch"] == torch.__version__
    assert r["weights"].startswith("sha256") and r["source"].startswith("sha256")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["results.json", "scores.jsonl"]


@pytest.mark.parametrize("context", ["pair", "single"])
def test_best_of_n_rows_give_the_curve_and_every_comparison(folder, tmp_path, context):
    lot = random.Random(1)
    rows = [{"prompt": f"{i}", "chosen": [text(lot)], "rejected": [text(lot) for _ in range(3)]}
            for i in range(12)]
    file = write(tmp_path / "n.jsonl", rows)
    e.main([str(folder), str(file), "--out", str(tmp_path / "o"), "--context", context])
    (r,) = json.loads((tmp_path / "o" / "results.json").read_text())["reports"]
    lines = {x["name"]: x for x in r["lines"]}
    assert lines["the pick from 1"]["score"] == pytest.approx(1 / 4)
    rm = e.RewardModel.load(folder, context=context)
    ranked = rm.rank([w["prompt"] for w in rows], [w["chosen"] + w["rejected"] for w in rows])
    picked = sum(best[0].index == 0 for best in ranked) / 12
    for name in ("the pick from all", "the pick from 4"):
        assert lines[name]["score"] == pytest.approx(picked)
    assert len((tmp_path / "o" / "scores.jsonl").read_text().splitlines()) == 12 * 6


def test_three_by_three_styles_are_known_by_their_id(folder, tmp_path):
    rows = [{"id": f"{d}/{i}", "prompt": f"{d} {i}", "chosen": ["one", "two two", "three"],
             "rejected": ["four", "five five", "six"]} for i in range(3)
            for d in ("safety-refuse", "math")]
    write(tmp_path / "m.jsonl", rows)
    bench, n, items, _ = e.open_data(str(tmp_path / "m.jsonl"))
    assert bench is e.BENCHES["rmbench"][0] and n == 6
    items = list(items())
    assert [(i.subset, i.domain) for i in items[:2]] == [("safety-refuse", "safety"),
                                                        ("math", "reasoning")]
    rm = e.RewardModel.load(folder)
    rm.spent.clear()
    assert len(list(rm.judge(items))) == 6
    assert rm.spent["rows"] == 6 * 9 * 2  # chosen against rejected only
    write(tmp_path / "n.jsonl", [{k: v for k, v in row.items() if k != "id"} for row in rows])
    assert e.open_data(str(tmp_path / "n.jsonl"))[0] is e.FORMS["best of n"]


def test_pairs_without_a_prompt_take_it_from_their_common_start(tmp_path):
    file = write(tmp_path / "p.jsonl", [{"chosen": "one two three", "rejected": "one two four"}])
    bench, _, items, _ = e.open_data(str(file))
    assert bench is e.FORMS["pairs"] and next(items())[:2] == ("one two", (" three", " four"))


def test_the_same_comparison_is_asked_once_whichever_way_round(rm):
    items = [e.Item("one", ("two", "three")), e.Item("one", ("three", "two"), subset="raw"),
             e.Item("one", ("two", "three"), domain="safety")]  # another question
    rm.spent.clear()
    a, b, _ = rm.judge(items)
    assert rm.spent["rows"] == 4
    assert a.odds.tolist() == b.odds[::-1, ::-1].tolist()


def test_single_context_scores_a_response_once(alone):
    items = [e.Item("one", ("two", "three")), e.Item("one", ("two", "four")),
             e.Item("five", ("two", "three"))]
    alone.spent.clear()
    list(alone.judge(items))
    assert alone.spent["rows"] == 5  # two, three, four for "one"; two, three for "five"


def test_several_models_and_files_give_the_matrix(folder, tmp_path, capsys):
    files = [write(tmp_path / f"{n}.jsonl", some_pairs(12, n)) for n in (1, 2)]
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    e.main([str(folder), str(other), *map(str, files), "--out", str(tmp_path / "o")])
    said = capsys.readouterr().out
    matrix = [line.split() for line in said.splitlines() if line.startswith(("1: all", "2: all"))]
    reports = json.loads((tmp_path / "o" / "results.json").read_text())["reports"]
    assert len(reports) == 4 and [row[0] for row in matrix] == ["1:", "2:"] * 3
    for row, r in zip(matrix[4:], reports, strict=False):  # the same weights, so the same columns
        assert row[2:6] == row[6:10] and row[2] == f"{r['score']:.3f}"
    assert said.count("+0.000 [+0.000 +0.000]") == 2
    assert [[line.get("difference") for line in r["lines"][:1]] for r in reports] == [
        [None], [None], [[0, 0, 0]], [[0, 0, 0]]]


def test_the_limit_is_evenly_spread(folder, tmp_path):
    rows = [{**r, "subset": "first" if i < 20 else "last"} for i, r in enumerate(some_pairs(40))]
    file = write(tmp_path / "p.jsonl", rows)
    e.main([str(folder), str(file), "--out", str(tmp_path / "o"), "--limit", "10"])
    scores = [json.loads(line) for line in (tmp_path / "o" / "scores.jsonl").open()]
    assert [s["subset"] for s in scores] == ["first"] * 5 + ["last"] * 5


def test_a_limit_takes_rewardbenchs_filtered_and_raw_rows_alike(monkeypatch):
    # each raw row is a filtered row too: every second of the sorted rows would be raw ones only
    rows = [{"prompt": f"{i:02}", "chosen": "a", "rejected": "b", "subset": "hep-go"}
            for i in range(20)]
    monkeypatch.setattr("data.hub_rows", lambda repo, file: ("c0ffee", iter(rows)))
    _, n, items, _ = e.open_data("rewardbench", 10)
    assert n == 10
    assert sorted(i.subset for i in items()) == ["hep-go"] * 5 + ["raw hep-go"] * 5


def test_memory_does_not_grow_with_the_texts_of_a_file(tmp_path):
    rows = [{"prompt": f"{i} " * 1000, "chosen": f"a{i} " * 500, "rejected": "b " * 500}
            for i in range(2000)]
    file = write(tmp_path / "big.jsonl", rows)
    assert file.stat().st_size > 10e6
    del rows
    tracemalloc.start()
    _, n, items, _ = e.open_data(str(file))
    kept = [e.bare(item._replace(odds=np.zeros((2, 2)))) for item in items()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == len(kept) == 2000 and peak < 4e6
    first = next(items())._replace(odds=np.array([[0, 1.0], [-2.0, 0]]))
    assert e.counts(e.bare(first)) == e.counts(first)  # what is kept is enough
    assert e.bare(first).meetings() == first.meetings() == [(0, 1)]


def test_benchmark_rows_become_items():
    def item(file, row):
        return e.to_item(row, "", file)[1]

    pair = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go", "id": 3}
    assert item("data/filtered-", pair)[:5] == ("p", ("c", "r"), 1, "hep-go", "reasoning")
    assert item("data/raw-", pair).subset == "raw hep-go"
    tie = {"id": "tied:4", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    assert item("data/test-", tie)[1:5] == (("a", "b", "c"), 2, "Ties", "chat")
    assert item("data/test-", tie).tag == "tied:4" and not item("data/test-", tie).across
    matrix = {"id": 1, "prompt": "p", "chosen": list("abc"), "rejected": list("def"),
              "domain": "code"}
    got = item("total_dataset.json", matrix)
    assert got[1:5] == (tuple("abcdef"), 3, "code", "reasoning") and got.across
    game = {"question": "q", "response_A": "a", "response_B": "b", "label": "B>A",
            "source": "mmlu-pro-law"}
    assert item("data/gpt-", game)[:5] == ("q", ("b", "a"), 1, "gpt: mmlu-pro", "reasoning")
    game["label"] = "A>B"
    assert item("data/claude-", game)[:4] == ("q", ("a", "b"), 1, "claude: mmlu-pro")


def test_a_benchmark_is_fetched_judged_and_reported(folder, tmp_path, monkeypatch, capsys):
    lot = random.Random(8)
    hub = {"data/filtered-": [], "data/raw-": []}
    for i, (subset, split) in enumerate([("donotanswer", "both"), ("hep-go", "both"),
                                         ("alpacaeval-easy", "raw")] * 6):
        row = {"prompt": f"p {i}", "chosen": text(lot), "rejected": text(lot), "subset": subset}
        hub["data/raw-"].append(row)
        hub["data/filtered-"] += [row] * (split == "both")
    monkeypatch.setattr("data.hub_rows", lambda repo, file: ("c0ffee", iter(hub[file])))
    monkeypatch.chdir(tmp_path)
    e.main([str(folder), "rewardbench"])
    said = capsys.readouterr().out
    assert "allenai/reward-bench at c0ffee" in said and "raw split" in said
    out = tmp_path / "runs" / f"eval-{folder.name}" / "rewardbench"
    (r,) = json.loads((out / "results.json").read_text())["reports"]
    assert r["n"] == 12 and {x["name"] for x in r["lines"]} >= {"Safety", "Reasoning", "hep-go"}


def test_ask_ranks_what_is_typed(folder, tmp_path):
    code, out, err = run([folder, "--ask", "one two", "three", "four", "five six"], tmp_path)
    assert code == 0, err
    assert "3 comparisons, in both orders" in out
    assert [line.split(".")[0].strip() for line in out.splitlines()[-3:]] == ["1", "2", "3"]


BAD = [
    ('{"prompt": "a", "chosen": "b"}', 'line 1: no "rejected"'),
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": ', "line 2: not valid JSON"),
    ('{"prompt": "a", "chosen": null, "rejected": "c"}', "line 1"),
    ('{"prompt": "a", "chosen": ["b"], "rejected": []}', "line 1: chosen and rejected"),
    ('{"prompt": "a", "chosen": ["b"], "rejected": ["c", 3]}', "line 1: chosen and rejected"),
    ('{"prompt": null, "chosen": ["b"], "rejected": ["c"]}', "line 1"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
     '{"prompt": "a", "chosen": ["b"], "rejected": ["c"]}', "line 2: best of n, after lines of"),
    ('{"prompt": "a", "chosen": ["b"], "rejected": ["c"], "domain": "cooking"}', "cooking"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"chosen": "a b", "rejected": "a c"}',
     "line 2: pairs without a prompt, after lines of pairs"),
    ('{"chosen": "a b", "rejected": "a c"}\n{"prompt": "a", "chosen": "b", "rejected": "c"}',
     "line 2: pairs, after lines of pairs without a prompt"),
    ("", "empty"),
    (json.dumps({"prompt": "one " * 900, "chosen": "b", "rejected": "c"}), "line 1: the prompt"),
]


@pytest.mark.parametrize(("lines", "said"), BAD)
def test_a_bad_file_is_one_line_that_names_it_and_leaves_nothing(folder, tmp_path, lines, said):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(ValueError) as error:
        e.main([str(folder), str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "o")])
    assert said in str(error.value) and "bad.jsonl" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]  # no empty folder either


def test_bad_usage_is_one_line_too(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ok.jsonl", some_pairs(3))
    for args in ([folder], ["ok.jsonl"], [folder, "--ask", "prompt", "one"],
                 [folder, "ok.jsonl", "--ask", "prompt", "one", "two"], ["nowhere", "ok.jsonl"],
                 [folder, "missing.jsonl"], [folder, "ok.jsonl", "--device", "tpu"],
                 [folder, "ok.jsonl", "--out", "ok.jsonl"],
                 [folder, "ok.jsonl", "--out", "ok.jsonl/x"],
                 [folder, "ok.jsonl", "--limit", "-1"]):
        with pytest.raises(ValueError) as error:
            e.main([str(arg) for arg in args])
        assert "\n" not in str(error.value), error.value
        assert sorted(p.name for p in tmp_path.iterdir()) == ["ok.jsonl"]
    with pytest.raises(SystemExit):
        e.main([str(folder), "ok.jsonl", "--templ", "option"])  # no abbreviations


def test_the_script_prints_an_error_as_one_line_and_exits_with_2(folder, tmp_path):
    code, _, err = run([folder, "missing.jsonl"], tmp_path)
    assert code == 2 and err.startswith("error: missing.jsonl") and err.count("\n") == 1
