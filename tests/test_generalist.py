"""One generalist out of specialists: its verdicts are those of its specialists, it finds the
specialist of a prompt, and what cannot be merged is one line.

    python -m pytest tests/test_generalist.py
"""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import data
import evaluate
import tinyrm
import train
from data import Item
from evaluate import RewardModel
from experiments import merge
from infra import generalist
from infra.hub import ROOT
from tinyrm import read_json

# words that the prompts of a domain have, and no other's
WORDS = {
    "reasoning": ["one", "two", "three"],
    "safety": ["four", "five", "six"],
    "chat": ["seven", "eight", "nine"],
}
DOMAINS = tuple(WORDS)


def pairs_of(domain: str, count: int = 40) -> list[dict]:
    rng = random.Random(domain)
    rows = []
    for i in range(count):
        prompt = " ".join(rng.choices(WORDS[domain], k=6))
        rows.append({"prompt": f"{prompt} {i}", "chosen": "Yes", "rejected": "No",
                     "domain": domain})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train_run(folder: Path, domain: str, model: Path, **changes) -> Path:
    """A run of a few steps."""
    settings = {"domain": domain, "model": model, "data": folder / f"{domain}.jsonl",
                "max_steps": 5, "held_out": 12, "batch_size": 8, "freeze": 1, "rank": 2,
                "lr": 1e-2, "device": "cpu", "out": folder / domain}
    settings.update(changes)
    write(Path(settings["data"]), pairs_of(domain))
    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    train.main(words)
    return Path(settings["out"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {domain: train_run(folder, domain, tiny) for domain in DOMAINS}


@pytest.fixture(scope="module")
def merged(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "all"
    merge.main([*map(str, runs.values()), str(out)])
    return out


@pytest.fixture
def whole(merged) -> RewardModel:
    return RewardModel.load(merged, device="cpu")


@pytest.fixture
def copies(runs, tmp_path) -> dict[str, Path]:
    """The runs, to be damaged."""
    return {domain: Path(shutil.copytree(run, tmp_path / domain)) for domain, run in runs.items()}


def change(file: Path, **values):
    file.write_text(json.dumps(read_json(file) | values))


# --- the verdicts ----------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_with_its_domain_given_a_pair_has_the_verdict_of_its_specialist(runs, whole, domain):
    alone = RewardModel.load(runs[domain], device="cpu")
    prompts = [row["prompt"] for row in pairs_of(domain)]
    a, b = ["Yes it is"] * len(prompts), ["No"] * len(prompts)
    assert whole.compare(prompts, a, b, domain) == alone.compare(prompts, a, b)


def test_specialists_do_not_agree(whole):
    # else the tests above could not fail
    found = {whole.compare("one or six?", "Yes", "No", domain) for domain in DOMAINS}
    assert len(found) == 3


def test_items_of_all_domains_come_in_their_order(runs, whole):
    alone = {domain: RewardModel.load(run, device="cpu") for domain, run in runs.items()}
    items = [Item(f"{i} or six?", ("Yes", "No"), domain=DOMAINS[i % 3]) for i in range(20)]
    for item, judged in zip(items, whole.judge(items), strict=True):
        (expected,) = alone[item.domain].judge([item])
        assert judged.item == item
        assert abs(judged.log_odds - expected.log_odds).max() < 1e-5


@pytest.mark.parametrize("count", [3, 12])  # each with each, and a tournament
def test_responses_are_ranked_by_the_specialist(runs, whole, count):
    responses = [f"{word} {i}" for i, word in enumerate(["Yes", "No"] * (count // 2 + 1))][:count]
    alone = RewardModel.load(runs["safety"], device="cpu")
    expected = [(one.rank, one.response) for one in alone.rank("four five six", responses)]
    for domain in ("safety", ""):  # given, and found by the prompt
        ranked = whole.rank("four five six", responses, domain)
        assert [(one.rank, one.response) for one in ranked] == expected


def test_with_a_domain_at_loading_its_specialist_is_opened_alone(runs, merged):
    alone, one = RewardModel.load(runs["chat"]), RewardModel.load(merged, domain="chat")
    assert type(one) is RewardModel
    assert one.about["format"] == alone.about["format"]
    assert one.compare("one", "Yes", "No", "safety") == alone.compare("one", "Yes", "No", "safety")


def test_the_tokens_of_a_batch_are_chosen_for_all_specialists(merged):
    whole = RewardModel.load(merged, micro_tokens=100)
    budgets = [judge.budget for judge in (whole, *whole.specialists.values())]
    assert budgets == [100] * 4
    assert RewardModel.load(merged, domain="chat", micro_tokens=100).budget == 100


def test_a_question_is_asked_of_all_specialists(runs, merged):
    whole = RewardModel.load(merged, question="Which is six?")
    alone = RewardModel.load(runs["chat"], question="Which is six?")
    assert whole.compare("one", "Yes", "No", "chat") == alone.compare("one", "Yes", "No")


# --- the router ------------------------------------------------------------------------------


def test_without_a_domain_the_prompt_finds_the_specialist(whole):
    for domain in DOMAINS:
        items = [Item(row["prompt"], ("Yes", "No")) for row in pairs_of(domain, 60)[40:]]
        assert whole.domains_of(items) == [domain] * 20


def test_a_file_without_domains_is_judged_by_its_prompts(merged, runs, tmp_path, capsys):
    rows = pairs_of("safety", 10)
    named = write(tmp_path / "named.jsonl", rows)
    for row in rows:
        del row["domain"]
    unnamed = write(tmp_path / "unnamed.jsonl", rows)
    reports = []
    for model, file in ((merged, unnamed), (merged, named), (runs["safety"], unnamed)):
        out = tmp_path / f"out{len(reports)}"
        evaluate.main([str(model), str(file), "--device", "cpu", "--out", str(out)])
        (report,) = read_json(out / "results.json")["reports"]
        reports.append(report)
    by_prompt, given, alone = reports
    assert by_prompt["lines"] == given["lines"] == alone["lines"]
    assert by_prompt["seen"]["items sent by their prompt"] == 10
    assert given["seen"]["items sent by their prompt"] == 0
    assert by_prompt["seen"]["rows"] == alone["seen"]["rows"]


@pytest.mark.parametrize("prompt", ["", "\ud800", "one " * 30_000])
def test_any_prompt_finds_a_specialist(whole, prompt):
    assert 0 < whole.compare(prompt, "Yes", "No") < 1


def test_a_domain_without_a_specialist_goes_by_the_prompt(runs, tmp_path):
    merge.main([str(runs["safety"]), str(runs["chat"]), str(tmp_path / "two")])
    two = RewardModel.load(tmp_path / "two", device="cpu")
    assert two.domains_of([Item("seven eight", ("a", "b"), domain="reasoning")]) == ["chat"]


def test_the_class_mean_is_in_units_of_the_spread():
    # the second number varies ten times as much, and says nothing
    known = {"safety": torch.tensor([[0.0, 10.0], [0.0, -10.0]]),
             "chat": torch.tensor([[1.0, 12.0], [1.0, -8.0]])}
    router = generalist.make_router(known, 1)
    assert generalist.nearest(router, torch.tensor([[0.1, 2.0], [0.9, 0.0]])) == ["safety", "chat"]


# --- what is stored --------------------------------------------------------------------------


def test_what_is_equal_is_stored_once(merged, runs):
    trunk = load_file(merged / "trunk.safetensors")
    states = [load_file(run / "model/model.safetensors") for run in runs.values()]
    for name, w in states[0].items():
        assert (name in trunk) == all(torch.equal(w, other[name]) for other in states)
    for domain in DOMAINS:
        assert not trunk.keys() & load_file(merged / f"specialist-{domain}.safetensors").keys()


def test_what_is_equal_is_in_memory_once(whole, runs):
    models = [one.model for one in whole.specialists.values()]
    trunk = [*models[0].model.embeddings.parameters(), *models[0].model.layers[0].parameters()]
    others = [*models[1].model.embeddings.parameters(), *models[1].model.layers[0].parameters()]
    assert all(one is other for one, other in zip(trunk, others, strict=True))
    one = sum(p.numel() for p in models[0].parameters())
    assert whole.about["parameters"] <= 3 * one - 2 * sum(p.numel() for p in trunk)


def test_the_command_says_what_it_costs_and_what_it_is_worth(runs, tmp_path, capsys):
    capsys.readouterr()
    merge.main([*map(str, runs.values()), str(tmp_path / "all")])
    printed = capsys.readouterr().out
    parameters = RewardModel.load(tmp_path / "all").about["parameters"]
    assert "the embeddings and 1 of 3 layers of 3 specialists are there once" in printed
    assert f"parameters: {parameters:,}, " in printed
    for domain, run in runs.items():
        (row,) = [line for line in printed.splitlines() if line.startswith(f"| {domain} |")]
        accuracy = read_json(run / "run.json")["result"]["accuracy_after"]
        cells = " | ".join(3 * [f"{accuracy:.3f}"])
        assert row == f"| {domain} | 12 | {cells} | 1.000 |"
    assert "MFLOPs a pair: one specialist " in printed


def test_another_set_of_specialists_is_another_judge(merged, runs, tmp_path):
    merge.main([str(runs["safety"]), str(runs["chat"]), str(tmp_path / "two")])
    names = {evaluate.judge_name(RewardModel.load(folder))
             for folder in (merged, tmp_path / "two")}
    assert len(names) == 2


# --- other kinds of runs ---------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {"context": "single"},
    {"head": "cls"},
    {"template": "choice"},
    {"adapter": "full", "freeze": 2},
    {"question": "Which is six?"},
], ids=str)
def test_other_kinds_of_runs_are_merged(tiny, tmp_path, changes):
    runs = {domain: train_run(tmp_path, domain, tiny, **changes) for domain in ("safety", "chat")}
    merge.main([*map(str, runs.values()), str(tmp_path / "all")])
    whole = RewardModel.load(tmp_path / "all", device="cpu")
    for domain, run in runs.items():
        alone = RewardModel.load(run, device="cpu")
        assert whole.compare("one", "Yes", "No", domain) == alone.compare("one", "Yes", "No")
        assert whole.rank("one", ["Yes", "No"], domain) == alone.rank("one", ["Yes", "No"])


# --- what cannot be merged -------------------------------------------------------------------


def refused(monkeypatch, capsys, *words) -> str:
    """The line with which the command ends."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["merge.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "experiments/merge.py"), run_name="__main__")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_one_domain_twice(runs, tmp_path, monkeypatch, capsys):
    safety, out = runs["safety"], tmp_path / "out"
    line = refused(monkeypatch, capsys, safety, runs["chat"], safety, out)
    assert line == f"{safety} and {safety} are both for safety: give one run of each domain"
    assert not out.exists()


def test_one_run_alone(runs, tmp_path, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, runs["safety"], tmp_path / "out")
    assert line == "give two runs or more, and a new folder behind them"


def test_a_folder_that_is_there(runs, tmp_path, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, *runs.values(), tmp_path)
    assert line == f"{tmp_path} is already there: give another folder"


def test_a_folder_that_cannot_be_made(runs, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, *runs.values(), "/dev/null/out")
    assert line == "/dev/null/out: /dev/null is no folder to write in: give another"


def damaged_unfinished(copies):
    result = read_json(copies["chat"] / "run.json")["result"]
    del result["accuracy_after"]
    change(copies["chat"] / "run.json", result=result)


def damaged_no_run(copies):
    (copies["chat"] / "run.json").unlink()


def damaged_template(copies):
    change(copies["chat"] / "model/tinyrm.json", template="choice")


def damaged_context(copies):
    change(copies["chat"] / "model/tinyrm.json", context="single")


def damaged_pairs(copies):
    change(copies["chat"] / "run.json", fingerprint="0" * 64)


def damaged_data(copies):
    settings = read_json(copies["chat"] / "run.json")["settings"]
    change(copies["chat"] / "run.json", settings=settings | {"data": ["gone.jsonl"]})


def damaged_base(copies):
    change(copies["chat"] / "run.json", weights="sha256 other", base="other")


def damaged_generalist(copies):
    change(copies["chat"] / "model/tinyrm.json", domain="all")


def damaged_tokenizer(copies):
    file = copies["chat"] / "model/tokenizer.json"
    file.write_text(file.read_text() + " ")


def damaged_settings(copies):
    settings = read_json(copies["chat"] / "run.json")["settings"]
    del settings["held_out"]
    change(copies["chat"] / "run.json", settings=settings)


def damaged_trunk(copies):
    file = copies["chat"] / "model/model.safetensors"
    state = load_file(file)
    state["model.layers.0.mlp.Wi.weight"] += 1
    save_file(state, file)


@pytest.mark.parametrize("damage, message", [
    (damaged_unfinished, "{chat}: this run is not finished: go on with python train.py --resume "),
    (damaged_no_run, "{chat}: no run.json in it: give the folder of a run of train.py"),
    (damaged_template, "{safety} and {chat} differ in --template: option and choice"),
    (damaged_context, "{safety} and {chat} differ in --context: pair and single"),
    (damaged_pairs, "{chat}: its pairs changed since then: train again"),
    (damaged_data, "{chat}: its pairs do not open: gone.jsonl"),
    (damaged_base, "{safety} and {chat} began with different models: "),
    (damaged_generalist, "{chat} was trained on all domains: give specialists, of one each"),
    (damaged_tokenizer, "{safety} and {chat} have different tokenizers or configurations: "),
    (damaged_settings, "{chat}/run.json: no held_out: it is of an earlier version of train.py"),
    (damaged_trunk, "no layer is equal in all of these runs: train with --freeze 1 or more"),
])
def test_what_cannot_be_merged_is_one_line(copies, tmp_path, monkeypatch, capsys, damage, message):
    damage(copies)
    before = sorted(tmp_path.iterdir())
    line = refused(monkeypatch, capsys, copies["safety"], copies["chat"], tmp_path / "out")
    assert line.startswith(message.format(**copies))
    assert sorted(tmp_path.iterdir()) == before


def test_another_head(runs, tiny, tmp_path, monkeypatch, capsys):
    other = train_run(tmp_path, "chat", tiny, head="cls")
    line = refused(monkeypatch, capsys, runs["safety"], other, tmp_path / "out")
    assert line == f"{runs['safety']} and {other} differ in --head: cloze and cls"


# --- what is killed, and what is damaged -----------------------------------------------------


def merge_and_die(words, at):
    """merge.py, killed when it writes its file number `at`."""
    left = iter(range(at))

    def dying(write):
        def write_or_die(*arguments):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)
        return write_or_die

    generalist.save_file = dying(generalist.save_file)
    generalist.write_json = dying(generalist.write_json)
    merge.main(words)


@pytest.mark.parametrize("at", range(6))  # two files of each, the trunk, generalist.json
def test_killed_half_way_it_leaves_nothing_that_opens(runs, tmp_path, at):
    out = tmp_path / "two"
    words = [str(runs["safety"]), str(runs["chat"]), str(out)]
    process = multiprocessing.get_context("fork").Process(target=merge_and_die, args=(words, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    for folder in tmp_path.iterdir():
        with pytest.raises(ValueError):
            RewardModel.load(folder)

    # and the next one clears it away
    merge.main(words)
    assert list(tmp_path.iterdir()) == [out]


def without_a_specialist(folder):
    (folder / "specialist-chat.safetensors").unlink()


def with_a_tensor_less(folder):
    state = load_file(folder / "trunk.safetensors")
    del state["model.layers.0.attn.Wo.weight"]
    save_file(state, folder / "trunk.safetensors")


def with_a_tensor_twice(folder):
    state = load_file(folder / "specialist-chat.safetensors")
    trunk = load_file(folder / "trunk.safetensors")
    state["model.layers.0.attn.Wo.weight"] = trunk["model.layers.0.attn.Wo.weight"]
    save_file(state, folder / "specialist-chat.safetensors")


def with_another_shape(folder):
    state = load_file(folder / "trunk.safetensors")
    state["router.spread"] = torch.ones(7)
    save_file(state, folder / "trunk.safetensors")


def with_a_number_that_is_none(folder):
    state = load_file(folder / "trunk.safetensors")
    state["router.spread"][0] = float("nan")
    save_file(state, folder / "trunk.safetensors")


def with_a_domain_elsewhere(folder):
    change(folder / "generalist.json", domains=["../chat", "safety"])


def with_a_domain_twice(folder):
    change(folder / "generalist.json", domains=["chat", "chat", "safety"])


def without_domains(folder):
    (folder / "generalist.json").write_text("{}")


@pytest.mark.parametrize("damage, message", [
    (without_a_specialist, "specialist-chat.safetensors cannot be read"),
    (with_a_tensor_less, "make up the model of config.json: model.layers.0.attn.Wo.weight: merge"),
    (with_a_tensor_twice, "make up the model of config.json: model.layers.0.attn.Wo.weight: merge"),
    (with_another_shape, "make up the model of config.json: router.spread: merge the runs again"),
    (with_a_number_that_is_none, "trunk.safetensors: router.spread is not all finite numbers"),
    (with_a_domain_elsewhere, "generalist.json: domains is "),
    (with_a_domain_twice, "generalist.json: domains is "),
    (without_domains, "generalist.json: domains is "),
])
def test_a_damaged_folder_is_one_line(merged, tmp_path, damage, message):
    folder = Path(shutil.copytree(merged, tmp_path / "all"))
    damage(folder)
    with pytest.raises(ValueError) as error:
        RewardModel.load(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_domain_without_a_specialist_cannot_be_asked_for(runs, tmp_path):
    merge.main([str(runs["safety"]), str(runs["chat"]), str(tmp_path / "two")])
    with pytest.raises(ValueError, match="--domain reasoning: .*two has specialists for safety, "):
        RewardModel.load(tmp_path / "two", domain="reasoning")


def test_equal_models_share_every_layer(tiny):
    models = [tinyrm.load(tiny), tinyrm.load(tiny)]
    assert generalist.shared_layers(models[0], generalist.equal_tensors(models)) == 3


def test_other_embeddings_share_no_layer(tiny):
    models = [tinyrm.load(tiny), tinyrm.load(tiny)]
    with torch.no_grad():
        models[1].model.embeddings.tok_embeddings.weight[0] += 1
    assert generalist.shared_layers(models[0], generalist.equal_tensors(models)) == 0


def test_an_empty_prompt_is_zeros(tiny):
    means = generalist.prompt_means(tinyrm.load(tiny), data.load_tokenizer(tiny), ["", "one"], 1)
    assert not means[0].any() and means[1].all()
