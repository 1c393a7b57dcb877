"""The loop: it learns, it resumes to the bit, it says what is wrong in one line. The loss, the
schedule and one step have their numbers in test_loss.py.

    python -m pytest tests/test_train.py
"""

import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data
import evaluate
import tinyrm
import train
from data import Pair, PromptFormat, load_tokenizer
from infra import run_folder
from infra.hub import ROOT
from infra.pairs import load_pairs, split
from infra.plan import pairs_seen
from infra.stopping import exit_code_of, stop_on_signal
from infra.tables import read_rows
from tinyrm import read_json

# of the processes that are started here as well: another number of threads rounds differently
os.environ["OMP_NUM_THREADS"] = "1"


def run_script(*argv, **settings):
    """python train.py ..., to its end."""
    return subprocess.run([sys.executable, ROOT / "train.py", *argv], capture_output=True,
                          text=True, timeout=300, **settings)


# Processes that are killed come from one that has imported what takes long.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "huggingface_hub.hf_api", "pyarrow.parquet"])


def start(function, argv):
    process = PROCESSES.Process(target=function, args=(argv,))
    process.start()
    return process


def metrics_of(run):
    return [line.row for line in read_rows(run / "metrics.jsonl")]


def result_of(run):
    return read_json(run / "run.json")["result"]


def weights_of(run):
    return load_file(run / "model" / "model.safetensors")


def largest_difference(run, other):
    ours, theirs = weights_of(run), weights_of(other)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def write_pairs(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- settings and recipes --------------------------------------------------------------------


def config_of(width, layers, vocabulary):
    raw = read_json(ROOT / "nano/config.json")
    raw.update(hidden_size=width, num_hidden_layers=layers, vocab_size=vocabulary)
    return tinyrm.Config.from_json(raw)


SIZES = pytest.mark.parametrize("size, config", [
    ("large", config_of(1024, 28, 50_368)),
    ("base", config_of(768, 22, 50_368)),
    ("nano", config_of(128, 4, 2_000)),
])


@SIZES
@pytest.mark.parametrize("domain", ["reasoning", "safety", "chat", "all"])
def test_each_size_and_domain_has_its_recipe(size, config, domain):
    recipes = train.RECIPES[size]
    assert train.recipe_for(config, domain) == (size, recipes.get(domain, recipes["all"]))


@SIZES
def test_a_domain_without_a_recipe_takes_its_sizes_recipe_for_all(size, config):
    assert train.recipe_for(config, "kindness") == (size, train.RECIPES[size]["all"])


def test_another_shape_freezes_its_lower_half():
    recipe = train.recipe_for(config_of(384, 10, 50_368), "reasoning")
    assert recipe.settings["freeze"] == 5 and recipe.settings["adapter"] == "dora"


def settings_of(capsys, *argv):
    """The settings of a run of nano, as --dry-run prints them: {name: text}."""
    train.main([*argv, "--model", "nano", "--data", "nano", "--device", "cpu", "--dry-run"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("domain=")]
    return dict(re.findall(r"(\w+)=(\S*)", line))


def test_a_recipe_beats_the_default(capsys):
    # rank 128 by default, 16 in nano's recipes
    assert settings_of(capsys, "--domain", "safety")["rank"] == "16"


def test_a_flag_beats_the_recipe_also_where_it_is_the_default(capsys):
    settings = settings_of(capsys, "--domain", "safety", "--rank", "128", "--freeze", "0")
    assert (settings["rank"], settings["freeze"]) == ("128", "0")


def test_auto_without_cuda_is_nano_instruct_and_says_how_to_ask_for_more(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train.main(["--domain", "safety", "--dry-run"])
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line.startswith("model nano-instruct, data nano (auto")
    assert "the paper's run is --model large --data hub" in first_line


def test_help_names_the_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in ("--domain", "--model", "--adapter", "--freeze", "--resume", "--dry-run"):
        assert name in out


# --- batches ---------------------------------------------------------------------------------

NUMBERED = [Pair(str(i), "a", "b") for i in range(10)]


def test_each_epoch_sees_each_pair_once_in_an_order_of_its_own():
    first, second = [], []
    for step, pairs in enumerate(train.step_pairs(NUMBERED, 4, range(6), seed=17)):
        epoch = first if step < 3 else second
        epoch += pairs
        assert len(pairs) in (3, 4)  # ten pairs in three steps
    assert sorted(first) == sorted(second) == NUMBERED
    assert first != second


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 23])
def test_a_step_never_holds_a_pair_twice(n):
    some = [Pair(str(i), "a", "b") for i in range(n)]
    every = math.ceil(n / 4)
    for pairs in train.step_pairs(some, 4, range(3 * every), seed=17):
        assert 1 <= len(pairs) == len(set(pairs)) <= 4


def test_with_fewer_pairs_than_a_batch_the_batch_is_the_pass(flags, tmp_path, pairs_file):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(pairs_file.read_text(encoding="utf-8").splitlines(True)[:9]))
    train.main(flags(data=few, held_out=2, batch_size=256, max_steps=None, epochs=3))
    lines = metrics_of(tmp_path / "run")
    assert [line["rows"] for line in lines] == [lines[0]["rows"]] * 3


def test_the_pairs_of_a_step_follow_from_its_number():
    steps = list(train.step_pairs(NUMBERED, 4, range(9), seed=17))
    assert list(train.step_pairs(NUMBERED, 4, range(6, 9), seed=17)) == steps[6:]


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch):
    draws = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: draws.append(1) or randperm(*a, **k))
    list(train.step_pairs(list(range(10)), 2, range(10), seed=0))
    assert len(draws) == 2


def test_the_two_rows_of_a_pair_stand_next_to_each_other(tiny):
    prompt_format = PromptFormat(load_tokenizer(tiny))
    pairs = [Pair("p" * i, "one", "two") for i in range(6)]
    # 100 tokens are one pair or two
    batches = train.make_batches(pairs, prompt_format, 100, torch.device("cpu")).batches
    assert len(batches) > 1
    for batch in batches:
        assert batch.labels.tolist() == [0, 1] * (len(batch.labels) // 2)
        lengths = batch.starts.diff()
        assert lengths[0::2].tolist() == lengths[1::2].tolist()


def test_what_was_dropped_or_cut_is_counted_by_reason(tiny):
    prompt_format = PromptFormat(load_tokenizer(tiny), max_length=100)
    pairs = [Pair("p", "one", "one"), Pair("p", "one", "two"), Pair("q" * 300, "one", "two")]
    made = train.make_batches(pairs, prompt_format, 4096, torch.device("cpu"))
    assert sum(len(batch.labels) for batch in made.batches) == 4  # rows of two pairs
    assert made.dropped == Counter({"identical responses": 1, "rows cut to max_length": 2})


# --- a run -----------------------------------------------------------------------------------


def test_a_run_overfits_eight_pairs(flags, pairs_file, tmp_path):
    lines = pairs_file.read_text().splitlines()
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines[0:40:5] + lines[-1:]) + "\n")  # the last is held out
    train.main(flags(data=few, held_out=1, batch_size=16, adapter="full", freeze=0, lr=3e-3,
                     max_steps=60, epochs=99))
    last = metrics_of(tmp_path / "run")[-1]
    assert last["accuracy"] == 1 and last["loss"] < 0.1


WITH_ADAPTER = [
    {},
    {"head": "cls"},
    {"context": "single"},
    {"context": "single", "head": "cls"},
    {"template": "choice"},
    {"adapter": "lora"},
    {"dtype": "bf16"},
]


def probabilities_of(folder, pairs, **settings):
    """P(chosen is better) of each pair, by the judge."""
    judge = evaluate.RewardModel.load(folder, device="cpu", **settings)
    return judge.compare([pair.prompt for pair in pairs], [pair.chosen for pair in pairs],
                         [pair.rejected for pair in pairs])


@pytest.mark.parametrize("changes", [*WITH_ADAPTER, {"adapter": "full"}], ids=str)
def test_every_kind_of_run_is_judged_as_the_judge_does(flags, pairs_file, tmp_path, changes):
    train.main(flags(**changes))
    result = result_of(tmp_path / "run")
    pairs = load_pairs([pairs_file])
    held_out = [pairs[i] for i in split(pairs, 8, seed=17).held_out]
    assert result["n"] == len(held_out) == 8

    probabilities = probabilities_of(tmp_path / "run", held_out)
    right = sum((p > 0.5) + 0.5 * (p == 0.5) for p in probabilities)
    # a run in bf16 is judged in float32 here
    slack = 0.3 if changes.get("dtype") == "bf16" else 0
    assert right / 8 == pytest.approx(result["accuracy_after"], abs=slack)


@pytest.mark.parametrize("changes", WITH_ADAPTER, ids=str)
def test_the_adapter_on_its_base_is_the_merged_model(flags, pairs_file, tmp_path, changes):
    train.main(flags(**changes))
    pairs = load_pairs([pairs_file])[:8]
    merged = probabilities_of(tmp_path / "run/model", pairs, dtype="fp32")
    adapted = probabilities_of(tmp_path / "run/adapter", pairs, dtype="fp32")
    assert adapted == pytest.approx(merged, abs=1e-5)


def test_full_fine_tuning_leaves_no_adapter(flags, tmp_path):
    train.main(flags(adapter="full"))
    assert (tmp_path / "run/model").is_dir() and not (tmp_path / "run/adapter").exists()


@pytest.fixture
def finished(flags, tmp_path):
    """The folder of a run that went to its end."""
    train.main(flags())
    return tmp_path / "run"


def test_a_run_says_what_came_out(flags, capsys):
    train.main(flags())
    out = capsys.readouterr().out
    assert re.search(r"test accuracy 0.\d+ -> [01].\d+ \[0.\d+, [01].\d+\] on 8 pairs", out)
    assert "sdpa in blocks (no CUDA)" in out
    assert "judge with: python evaluate.py" in out


def test_a_run_leaves_its_results(finished):
    result = result_of(finished)
    assert set(result) == {"accuracy_before", "loss_before", "accuracy_after", "loss_after", "n",
                           "seconds"}
    assert 0 <= result["accuracy_after"] <= 1
    assert result["loss_after"] < result["loss_before"]


def test_a_run_leaves_a_line_for_each_step(finished):
    lines = metrics_of(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "accuracy", "gradient_norm", "rows", "tokens", "lr", "seconds",
            "peak_bytes"} <= lines[0].keys()
    # one step of warm-up, then in four steps of 5 down to 2 % of the peak of 0.01
    assert [line["lr"] for line in lines] == pytest.approx(
        [1e-2 * share for share in (1, 1, 1 - 0.98 / 4, 1 - 0.98 / 2, 1 - 0.98 * 3 / 4, 0.02)])


def test_held_out_pairs_are_judged_at_each_quarter(finished):
    lines = metrics_of(finished)
    checked = [line["step"] for line in lines if "held_out" in line]
    assert checked == [2, 3, 4]  # 6/4, 6/2 and 18/4, rounded; the end is in the result


def test_a_run_leaves_what_it_depended_on(finished, pairs_file, tiny):
    record = read_json(finished / "run.json")
    assert record["settings"]["data"] == [str(pairs_file)]
    assert record["settings"]["rank"] == 2
    assert record["revisions"] == {"model": str(tiny)}
    assert record["versions"]["torch"] == torch.__version__
    assert (record["steps"], record["train_pairs"]) == (6, 40)


def test_the_format_that_a_model_was_trained_with_lies_beside_it(finished):
    expected = {"template": "option", "context": "pair", "head": "cloze", "domain": "reasoning",
                "max_length": 512}  # nano's recipe
    assert read_json(finished / "model/tinyrm.json") == expected
    assert read_json(finished / "adapter/tinyrm.json") == expected


def rows_and_logits(run, pairs_file):
    """The two rows of a pair, and the logits at [MASK] of the stored model: (2, V)."""
    prompt_format = PromptFormat(load_tokenizer(run / "model"), domain="reasoning")
    rows_of_pairs, _ = prompt_format.rows(load_pairs([pairs_file])[:1])
    model = tinyrm.load(run / "model")
    batch = data.pack(rows_of_pairs[0])
    return rows_of_pairs[0], model.logits(model(batch.tokens, batch.starts, batch.read_at))


def assert_equal_logits(peer, rows, ours):
    for row, expected in zip(rows, ours, strict=True):
        logits = peer(input_ids=torch.tensor([row.tokens])).logits[0, row.read_at]
        assert (logits - expected).abs().max() < 1e-4


def test_the_model_opens_in_transformers(finished, pairs_file):
    from transformers import AutoModelForMaskedLM

    peer = AutoModelForMaskedLM.from_pretrained(finished / "model").eval()
    assert_equal_logits(peer, *rows_and_logits(finished, pairs_file))


def test_the_adapter_opens_in_peft(finished, pairs_file, tiny):
    import peft
    from transformers import AutoModelForMaskedLM

    base = AutoModelForMaskedLM.from_pretrained(tiny)
    peer = peft.PeftModel.from_pretrained(base, finished / "adapter").eval()
    assert_equal_logits(peer, *rows_and_logits(finished, pairs_file))


def test_the_tokenizer_opens_in_transformers(finished):
    from transformers import AutoTokenizer

    ours = load_tokenizer(finished / "model").library.encode("Option A:").ids
    assert AutoTokenizer.from_pretrained(finished / "model")("Option A:")["input_ids"] == ours


def test_the_card_says_how_a_model_was_trained(finished):
    card = (finished / "model/README.md").read_text()
    assert "pipeline_tag: fill-mask" in card
    assert "labels ` A` and ` B`" in card


def test_prompts_beyond_the_limit_are_cut_and_counted(flags, pairs_file, tmp_path):
    rows = [found.row for found in read_rows(pairs_file)]
    for row in rows[:5]:
        row["prompt"] = "one " * 900 + row["prompt"]
    long = write_pairs(tmp_path / "long.jsonl", *rows)
    train.main(flags(data=long, max_length=100, held_out=0, epochs=1, max_steps=None))
    # each of the five pairs in both orders, once in an epoch of 48 pairs
    assert read_json(tmp_path / "run/run.json")["dropped"] == {"rows cut to max_length": 10}


# --- the same run again ----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights(flags, finished, tmp_path):
    train.main(flags(out=tmp_path / "again"))
    assert largest_difference(finished, tmp_path / "again") == 0


def test_another_seed_gives_other_weights(flags, finished, tmp_path):
    train.main(flags(out=tmp_path / "other", seed=3))
    assert largest_difference(finished, tmp_path / "other") > 1e-3


@pytest.mark.parametrize("changes", [{"micro_tokens": 60}, {"checkpoint_layers": True}], ids=str)
def test_what_changes_memory_does_not_change_the_weights(flags, finished, tmp_path, changes):
    train.main(flags(out=tmp_path / "other", **changes))
    # Adam makes much of a last bit where a gradient is about 0
    assert largest_difference(finished, tmp_path / "other") < 1e-4


def test_two_processes_give_the_weights_and_the_numbers_of_one(flags, finished, tmp_path):
    argv = flags(out=tmp_path / "two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", ROOT / "train.py", *argv]
    ended = subprocess.run(torchrun, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr

    assert largest_difference(finished, tmp_path / "two") < 1e-6
    one, two = result_of(finished), result_of(tmp_path / "two")
    for name in ("n", "accuracy_before", "accuracy_after", "loss_before", "loss_after"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    for line, line_of_two in zip(metrics_of(finished), metrics_of(tmp_path / "two"), strict=True):
        for name in ("loss", "accuracy", "gradient_norm", "rows", "tokens"):
            assert line_of_two[name] == pytest.approx(line[name], rel=1e-4), name
    # a run that was begun on two can go on on one: their number is not stored
    assert "processes" not in read_json(tmp_path / "two/run.json")["settings"]


# --- killed and resumed ----------------------------------------------------------------------


def is_finished(run):
    """Also if it was killed between its last word and its exit."""
    return (run / "run.json").exists() and "accuracy_after" in result_of(run)


def steps_of(run):
    metrics = run / "metrics.jsonl"
    if not metrics.exists():
        return 0
    return metrics.read_bytes().count(b"\n")


def test_a_run_that_is_killed_again_and_again_resumes_to_the_same_bits(flags, tmp_path):
    """kill -9 at up to four random moments of a run that saves after every step: within 10 steps of
    each start, so that a fast machine does not get to the end before the second one."""
    changes = {"save_minutes": 0, "max_steps": 40, "epochs": 99}
    whole, run = tmp_path / "whole", tmp_path / "run"
    train.main(flags(out=whole, **changes))

    rng, kills, argv = random.Random(0), 0, flags(**changes)
    while kills < 4 and not is_finished(run):
        process = start(train.main, argv)
        enough = steps_of(run) + rng.randrange(10)
        while process.is_alive() and not ((run / "run.json").exists() and steps_of(run) >= enough):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        kills += process.exitcode != 0
        argv = ["--resume", str(run)]
    if not is_finished(run):
        train.main(["--resume", str(run)])

    assert kills >= 2
    assert largest_difference(run, whole) == 0
    losses, losses_of_whole = [], []
    for line, line_of_whole in zip(metrics_of(run), metrics_of(whole), strict=True):
        losses.append(line["loss"])
        losses_of_whole.append(line_of_whole["loss"])
    assert losses == losses_of_whole


def train_until_first_judged(argv):
    """A run that is killed while it judges for the first time."""
    train.judge_pairs = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    train.main(argv)


def test_a_run_that_is_killed_before_its_first_step_resumes(flags, finished, tmp_path):
    run = tmp_path / "early"
    process = start(train_until_first_judged, flags(out=run))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (run / "run.json").exists() and not (run / "metrics.jsonl").exists()

    train.main(["--resume", str(run)])
    assert largest_difference(run, finished) == 0
    assert result_of(run)["accuracy_before"] == result_of(finished)["accuracy_before"]


def test_sigterm_saves_and_says_how_to_go_on(flags, tmp_path):
    argv = flags(max_steps=500, epochs=999)
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *argv], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"stopped; go on with: python train.py --resume {tmp_path / 'run'}" in rest
    assert list((tmp_path / "run/state").glob("step-*.safetensors"))


def test_after_ctrl_c_either_signal_ends_at_once(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert handlers == [signal.SIG_DFL, signal.SIG_DFL]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_state_that_could_not_be_written_leaves_the_one_before(flags, finished, monkeypatch):
    def write_half(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    before = {file: file.read_bytes() for file in (finished / "state").iterdir()}
    monkeypatch.setattr(run_folder, "save_file", write_half)
    model = tinyrm.load(finished / "model")
    optimizer = torch.optim.AdamW(model.parameters())
    run = run_folder.RunFolder(finished, {}, model, optimizer)
    with pytest.raises(OSError):
        run.save(99)
    assert {file: file.read_bytes() for file in (finished / "state").iterdir()} == before


def test_a_disk_that_is_full_is_one_line_that_says_how_to_go_on(flags, tmp_path, monkeypatch):
    def fail(tensors, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(run_folder, "save_file", fail)
    resume = f"python train.py --resume {tmp_path / 'run'}"
    with pytest.raises(ValueError, match=f"No space left .* make room and go on with: {resume}"):
        train.main(flags())


@pytest.fixture
def unfinished(flags, tmp_path, monkeypatch):
    """The folder of a run that was killed before it could store its model."""
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "finish", lambda *_: None)
        train.main(flags())
    return tmp_path / "run"


def change_record(run, **changes):
    """Write run.json anew; None takes a key away."""
    record = read_json(run / "run.json")
    for key, value in changes.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    (run / "run.json").write_text(json.dumps(record))


def message_of(argv):
    """The one line with which a command ends."""
    with pytest.raises(ValueError) as error:
        train.main(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_that_was_killed_while_it_stored_its_model_resumes(unfinished):
    train.main(["--resume", str(unfinished)])
    assert is_finished(unfinished) and (unfinished / "model").is_dir()
    assert len(metrics_of(unfinished)) == 6


def test_lines_of_steps_beyond_the_state_are_taken_away(unfinished):
    with open(unfinished / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1.0, "sec')  # killed before it was saved, in a line
    train.main(["--resume", str(unfinished)])
    assert [line["step"] for line in metrics_of(unfinished)] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def asking(flags, tmp_path):
    """A finished run with a question of its own."""
    train.main(flags(question="Which [MASK] is six?", out=tmp_path / "asking"))
    return tmp_path / "asking"


def test_a_run_trains_on_its_question_and_keeps_it(asking, finished):
    assert read_json(asking / "run.json")["settings"]["question"] == "Which [MASK] is six?"
    for part in ("model", "adapter"):
        assert read_json(asking / part / "tinyrm.json")["question"] == "Which [MASK] is six?"
        assert "Which [MASK] is six?" in (asking / part / "README.md").read_text()
    assert largest_difference(asking, finished) > 1e-4  # of the same run with the domain's own


def test_a_run_of_before_there_were_questions_resumes(unfinished):
    settings = read_json(unfinished / "run.json")["settings"]
    assert settings.pop("question") == ""
    change_record(unfinished, settings=settings)
    train.main(["--resume", str(unfinished)])
    assert is_finished(unfinished)


def test_a_run_with_a_question_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = train.Settings(domain="chat", model="nano", question="Which?")
    assert run_folder.free_folder(settings, "dora") == "runs/nano-chat-question-s17"


@pytest.mark.parametrize("edition, commit", [(None, "4a59190"), (2, "cc59452")])
def test_a_run_of_an_earlier_edition_is_refused_with_the_commit_that_can_resume_it(
        unfinished, edition, commit):
    change_record(unfinished, format=edition)  # None: the first one's run.json had no number
    message = message_of(["--resume", str(unfinished)])
    assert message.startswith(f"--resume {unfinished}: begun by an earlier version")
    assert f"`git checkout {commit}`" in message


@pytest.mark.parametrize("edition", [{}, {"format": None}], ids=["this", "first"])
def test_a_finished_run_says_so(finished, edition):
    change_record(finished, **edition)
    message = message_of(["--resume", str(finished)])
    assert message == (f"--resume {finished}: this run is finished; judge it with evaluate.py")


def test_a_run_that_ended_with_an_error_can_be_resumed_by_the_same_process(flags, tmp_path,
                                                                           monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_file", fail)
        with pytest.raises(ValueError) as error:  # which keeps all that the run held, as a notebook
            train.main(flags())
    train.main(["--resume", str(tmp_path / "run")])
    assert is_finished(tmp_path / "run") and error


def test_the_state_of_another_model_is_refused(unfinished):
    settings = read_json(unfinished / "run.json")["settings"]
    settings["freeze"] = 2
    change_record(unfinished, settings=settings)
    assert "is the state of another model" in message_of(["--resume", str(unfinished)])


def test_another_device_may_be_given_to_a_run_that_goes_on(unfinished):
    train.main(["--resume", str(unfinished), "--device", "cpu"])
    assert is_finished(unfinished)


def test_a_run_whose_data_have_moved_goes_on_with_the_same_pairs_only(unfinished, pairs_file,
                                                                      tmp_path):
    settings = read_json(unfinished / "run.json")["settings"]
    change_record(unfinished, settings={**settings, "data": ["/gone.jsonl"]})
    assert "/gone.jsonl: No such file" in message_of(["--resume", str(unfinished)])

    lines = pairs_file.read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[::-1]))
    other = ["--resume", str(unfinished), "--data", str(tmp_path / "other.jsonl")]
    assert "its pairs changed since then" in message_of(other)

    (tmp_path / "moved.jsonl").write_text(pairs_file.read_text())
    train.main(["--resume", str(unfinished), "--data", str(tmp_path / "moved.jsonl")])
    assert is_finished(unfinished)
    assert read_json(unfinished / "run.json")["settings"]["data"] == [f"{tmp_path}/moved.jsonl"]


def test_pairs_that_are_edited_while_a_run_trains_do_not_change_it(flags, finished, pairs_file,
                                                                   tmp_path, monkeypatch):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(pairs_file.read_text())
    step = train.train_step

    def edit_and_step(*args):
        mine.write_text("no pair")
        return step(*args)

    monkeypatch.setattr(train, "train_step", edit_and_step)
    train.main(flags(data=mine, out=tmp_path / "edited"))
    assert largest_difference(tmp_path / "edited", finished) == 0


@pytest.mark.parametrize("held_out, says", [(None, True), (8, True), (0, False)])
def test_few_pairs_to_judge_by_are_said_to_be_few(flags, capsys, held_out, says):
    train.main(flags(held_out=held_out, dry_run=True))
    printed = capsys.readouterr().out
    assert ("few pairs to judge by" in printed) == says
    if held_out is None:  # a fifth of 48, by whole prompts
        assert "38 pairs to train on, 10 to judge before and after" in printed


def test_a_no_break_space_in_a_name_is_no_line_break(flags, tmp_path):
    train.main(flags(out=tmp_path / "a\u00a0b", max_steps=1))
    assert is_finished(tmp_path / "a\u00a0b")


# --- what is wrong, in one line --------------------------------------------------------------


def refused(argv, capsys):
    """The last line that a command prints when it is refused."""
    try:
        train.main([str(word) for word in argv])
    except SystemExit as stop:  # of argparse, which has printed its own line
        assert stop.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("it went through")


@pytest.mark.parametrize("changes, message", [
    ({"domain": "cooking"}, "invalid choice: 'cooking' (choose from 'reasoning',"),
    ({"domain": None}, "--domain is missing: give reasoning, safety, chat or all"),
    ({"model": "/no/such"}, "/no/such: no such folder"),
    ({"data": "none.jsonl"}, "none.jsonl: No such file"),
    ({"data": "hub:foo"}, "--data hub:foo: give nano, hub, hub:author or files"),
    ({"data": ["hub", "x.jsonl"]}, "--data hub x.jsonl: give nano, hub,"),
    ({"data": ["x.jsonl", "nano"]}, "--data x.jsonl nano: give nano, hub,"),
    ({"data": ["hub", "hub:author"]}, "--data hub hub:author: give nano,"),
    ({"revision": "c0ffee"}, "--revision c0ffee: --model"),
    ({"revision": "a/b=c0ffee"}, "--revision a/b=c0ffee: give COMMIT for"),
    ({"revision": "openai/webgpt_comparisons=c"}, "in use, here none"),
    ({"revision": "a/b=c", "data": "hub"}, "in use, here Skywork/Skywork-Reward"),
    ({"revision": "openai/webgpt_comparisons=", "data": "hub"}, "comparisons=: give COMMIT"),
    ({"revision": "=c", "data": "hub"}, "=c: give COMMIT"),
    ({"revision": ["a", "b"], "data": "hub"}, "a b: give COMMIT"),
    ({"lr": 0}, "--lr 0.0: give a number above 0"),
    ({"lr": "nan"}, "--lr nan"),
    ({"lr": "1e300"}, "--lr 1e+300: give at most 1000000000"),
    ({"alpha": "1e308"}, "--alpha 1e+308: give at most 1000000000"),
    ({"epochs": "1e300"}, "--epochs 1e+300: give at most 1000000000"),
    ({"seed": 10**400}, "--seed 10000000000000000"),
    ({"held_out": -0.5}, "--held-out -0.5: give -1,"),
    ({"batch_size": 7}, "--batch-size 7: rows come in pairs"),
    ({"freeze": 77}, "--freeze 77: this model has 3 layers"),
    ({"freeze": -1}, "--freeze -1: give 0 or more"),
    ({"rank": 0}, "--rank 0: give 1 or more"),
    ({"device": "tpu"}, "--device tpu: give auto, cpu or cuda"),
    ({"dtype": "fp64"}, "--dtype fp64: give auto, fp32 or bf16"),
    ({"max": 3}, "unrecognized arguments: --max 3"),
    ({"out": "."}, "--out . is already there: give another, or --resume ."),
    ({"out": "x" * 300}, "File name too long: give a folder that can be made"),
    ({"out": "/dev/null/run"}, "--out /dev/null/run: Not a directory: give a folder"),
    ({"data": "x/" + "y" * 300}, "x/yyyy"),
    ({"template": "choice", "context": "single"}, "no template choice for context single"),
    ({"held_out": 999}, "leaves nothing to train on"),
    ({"resume": "nowhere"}, "leave out --domain, --model,"),
    ({"max_length": 16}, "--max-length 16: the template alone needs"),
    ({"question": " "}, "--question is empty: give a text, or leave it out"),
    ({"question": "a\nb"}, "--question 'a\\nb': give it without line breaks"),
    ({"question": "six " * 60, "max_length": 64}, "--max-length 64: the template alone needs"),
], ids=str)
def test_bad_input_is_one_line_and_leaves_nothing(flags, tmp_path, capsys, monkeypatch, changes,
                                                  message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(flags(**changes), capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl"])
def test_a_folder_in_the_place_of_a_file_of_a_run_is_one_line(unfinished, capsys, name):
    (unfinished / name).unlink()
    (unfinished / name).mkdir()
    message = refused(["--resume", unfinished], capsys)
    assert f"{unfinished}/{name}: Is a directory" in message


def test_an_empty_folder_is_to_be_removed(tmp_path, capsys):
    message = refused(["--resume", tmp_path], capsys)
    assert message == (f"--resume {tmp_path}: nothing to resume: remove the folder and begin again")


@pytest.mark.parametrize("number, message", [(4, "begun by a later version (format 4): take that"),
                                             (-1, "run.json: format is damaged: restore it")])
def test_a_format_of_no_earlier_version_is_said_to_be_so(unfinished, number, message):
    change_record(unfinished, format=number)
    assert message in message_of(["--resume", str(unfinished)])


def test_a_file_that_cannot_be_read_is_a_line_of_the_command(tmp_path, capsys):
    assert exit_code_of(lambda: (tmp_path / "x").read_bytes()) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/x: No such file or directory\n"


def test_a_folder_without_a_run_cannot_be_resumed(capsys):
    assert "--resume nowhere: no readable run.json" in refused(["--resume", "nowhere"], capsys)


def test_the_script_prints_the_line_and_exits_with_2(tmp_path):
    ended = run_script("--domain", "chat", "--model", "/no/such", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: /no/such: no such folder")
    assert ended.stderr.count("\n") == 1


def test_a_loss_that_is_not_finite_names_step_rate_and_lines(flags, tiny, tmp_path):
    model = tinyrm.load(tiny)
    with torch.no_grad():
        model.head.dense.weight[0] = 3e38
    tinyrm.save(model, tmp_path / "broken")
    tokenizer = (tiny / "tokenizer.json").read_text()
    (tmp_path / "broken/tokenizer.json").write_text(tokenizer)

    message = message_of(flags(model=tmp_path / "broken"))
    assert re.search(r"loss nan .*rate 0.01.*lower --lr", message)
    assert re.search(r"step 1\b.* line \d+", message)


@pytest.mark.parametrize("lr, message", [
    ("1e-320", "after step 1: .* is not all finite numbers, and was not saved"),
    ("1e9", "after the last step the loss is nan: begin with another --lr"),
])
def test_a_last_step_that_spoils_the_weights_is_no_finished_run(flags, tmp_path, lr, message):
    with pytest.raises(ValueError, match=message):
        train.main(flags(lr=lr, max_steps=1, adapter="full"))
    assert "accuracy_after" not in result_of(tmp_path / "run")
    assert not (tmp_path / "run/model").exists()


def test_an_error_of_our_own_keeps_its_traceback(flags, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "loss_and_correct", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train.main(flags())


# --- the plan --------------------------------------------------------------------------------


@pytest.fixture
def plan(flags, capsys):
    """What --dry-run prints."""
    train.main(flags(dry_run=True))
    return capsys.readouterr().out


def test_the_plan_counts_pairs_rows_tokens_and_steps(plan):
    # 6 steps of 8 rows; 40 of the 48 pairs are there to train on
    assert re.search(r"plan: 24 pairs, 48 rows, about [\d,]+ tokens \(mean of 40 pairs;", plan)
    assert "6 steps" in plan


@pytest.mark.parametrize("n, steps", [(40, 6), (40, 15), (3, 5), (160, 1), (129, 5)])
def test_the_pairs_of_a_plan_are_those_of_the_steps(n, steps):
    pairs = [Pair(f"prompt {i}", "a", "b") for i in range(n)]
    taken = sum(len(some) for some in train.step_pairs(pairs, 128, range(steps), seed=0))
    assert pairs_seen(n, steps, 128) == taken
    taken = sum(len(some) for some in train.step_pairs(pairs, 4, range(steps), seed=0))
    assert pairs_seen(n, steps, 4) == taken


def test_the_plan_says_what_trains(plan):
    assert re.search(r"[\d,]+ of [\d,]+ parameters train", plan)


@pytest.mark.parametrize("part", ["weights", "gradients and moments", "copies in float32",
                                  "the backward pass of "])
def test_the_plan_estimates_the_memory_by_its_parts(plan, part):
    assert re.search(rf"about 0\.0 GiB in each process.*\b0\.0 {part}", plan)


def test_a_plan_leaves_nothing(plan, tmp_path):
    assert not (tmp_path / "run").exists()
