"""The loop: it learns, it resumes to the bit, it says what is wrong in one line.

    pytest tests/test_train.py
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data
import dora
import tinyrm
import train

ROOT = Path(train.__file__).parent
torch.set_num_threads(1)


def command(*args):
    return [sys.executable, str(ROOT / "train.py"), *map(str, args)]


def call(*args, cwd=None, env=None):
    return subprocess.run(command(*args), capture_output=True, text=True, cwd=cwd, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})  # fmt: skip


@pytest.fixture
def base(tiny, pairs_file, tmp_path):
    """The flags of a short run on the tiny model, into tmp_path/run."""
    return ["--domain", "reasoning", "--model", tiny, "--data", pairs_file, "--batch-size", 8,
            "--max-steps", 6, "--held-out", 8, "--rank", 2, "--freeze", 1, "--lr", 1e-2,
            "--device", "cpu", "--out", tmp_path / "run"]  # fmt: skip


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_overfits_eight_pairs(tiny, pairs_file, tmp_path):
    lines = pairs_file.read_text().splitlines()[::5][:8]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines) + "\n" + pairs_file.read_text().splitlines()[-1] + "\n")
    train.main([*map(str, ["--domain", "reasoning", "--model", tiny, "--data", few, "--held-out", 1,
                           "--batch-size", 16, "--adapter", "full", "--lr", 3e-3, "--max-steps", 80,
                           "--epochs", 99, "--freeze", 0, "--out", tmp_path / "run"])])  # fmt: skip
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] == 1.0 and last["loss"] < 0.1


@pytest.mark.parametrize("more", [
    [], ["--head", "cls"], ["--context", "single"], ["--context", "single", "--head", "cls"],
    ["--template", "choice"], ["--adapter", "lora"], ["--adapter", "full"], ["--dtype", "bf16"],
])  # fmt: skip
def test_every_kind_of_run_is_judged_and_saved(base, tmp_path, more, capsys):
    train.main([*map(str, [*base, *more])])
    out = capsys.readouterr().out
    assert "held-out accuracy" in out and "sdpa in blocks (no CUDA)" in out
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert set(run["result"]) == {"accuracy_before", "accuracy_after", "n", "seconds"}
    assert run["result"]["n"] == 8 and 0 <= run["result"]["accuracy_after"] <= 1
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    import evaluate

    pairs = data.Pairs(run["settings"]["data"], "reasoning")
    _, held = data.split(pairs, 8, 17)
    rm = evaluate.RewardModel.load(tmp_path / "run", device="cpu", dtype="fp32")
    p = rm.compare(*map(list, zip(*[pairs[i][:3] for i in held], strict=True)))
    got = sum((x > 0.5) + 0.5 * (x == 0.5) for x in p) / len(p)
    slack = 0.3 if "bf16" in more else 0  # judged in float32 here
    assert got == pytest.approx(run["result"]["accuracy_after"], abs=slack)
    if "full" not in more:  # the adapter on its base is the merged model
        other = evaluate.RewardModel.load(tmp_path / "run/adapter", device="cpu", dtype="fp32")
        q = other.compare(*map(list, zip(*[pairs[i][:3] for i in held], strict=True)))
        assert p == pytest.approx(q, abs=1e-5)


def test_the_saved_model_opens_in_transformers_and_the_adapter_in_peft(base, tiny, tmp_path):
    import peft
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    train.main([*map(str, base)])
    run = tmp_path / "run"
    pair = data.Pairs([base[5]], "reasoning")[0]
    fmt = data.Format(data.load_tokenizer(run / "model"), domain="reasoning")
    rows = data.cloze_rows([pair], fmt)[0][0]
    ours = tinyrm.load(run / "model")
    batch = data.pack(rows)
    want = ours.logits(ours(batch.tokens, batch.starts, batch.read))
    merged = AutoModelForMaskedLM.from_pretrained(run / "model").eval()
    base_model = AutoModelForMaskedLM.from_pretrained(tiny)
    adapted = peft.PeftModel.from_pretrained(base_model, run / "adapter").eval()
    for peer in (merged, adapted):
        for row, expected in zip(rows, want, strict=True):
            logits = peer(input_ids=torch.tensor([row.tokens])).logits[0, row.read]
            assert (logits - expected).abs().max() < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer("Option A:")["input_ids"] != []
    assert "pipeline_tag: fill-mask" in (run / "model/README.md").read_text()


@pytest.mark.parametrize("more", [[], ["--head", "cls"], ["--context", "single"],
                                  ["--template", "choice"], ["--adapter", "full"]])  # fmt: skip
def test_a_decoder_trains_is_judged_and_opens_in_transformers_and_peft(base, tiny_causal, tmp_path,
                                                                       more):
    import peft
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    import evaluate

    base[base.index("--model") + 1] = tiny_causal
    train.main([*map(str, [*base, *more])])
    run, pairs = tmp_path / "run", data.Pairs([base[5]], "reasoning")
    rm = evaluate.RewardModel.load(run, device="cpu")
    assert rm.fmt.causal
    (rows,), _ = data.cloze_rows([pairs[0]], rm.fmt)
    mask = rm.fmt.tokenizer.token_to_id("[MASK]")
    assert all(mask not in row.tokens and row.read == len(row.tokens) - 1 for row in rows)
    batch = data.pack(rows)
    with torch.inference_mode():
        want = rm.model.logits(rm.model(batch.tokens, batch.starts, batch.read))
    cls = AutoModelForSequenceClassification if "cls" in more else AutoModelForCausalLM
    peers = [cls.from_pretrained(run / "model").eval()]
    assert cls.__name__ in (run / "model/README.md").read_text()
    if not {"full", "cls"} & {*more}:  # a classifier's: see dora.save_adapter
        peers.append(peft.PeftModel.from_pretrained(cls.from_pretrained(tiny_causal),
                                                    run / "adapter").eval())  # fmt: skip
    for peer in peers:
        for row, expected in zip(rows, want, strict=True):
            logits = peer(input_ids=torch.tensor([row.tokens])).logits[0]
            logits = logits if "cls" in more else logits[-1]
            assert (logits - expected).abs().max() < 1e-4


def test_the_same_seed_gives_the_same_weights_and_micro_batches_do_not_matter(base, tmp_path):
    runs = []
    for name, more in (("a", []), ("b", []), ("c", ["--micro-tokens", 60]), ("d", ["--seed", 3])):
        train.main([*map(str, [*base[:-1], tmp_path / name, *more])])
        runs.append(weights(tmp_path / name))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[3])
    for name, value in runs[0].items():  # Adam makes much of a last bit where a gradient is ~0
        assert (value - runs[2][name]).abs().max() < 1e-4, name


def test_recomputed_layers_give_the_same_gradients(tiny, pairs_file):
    pairs = data.Pairs([pairs_file])
    fmt = data.Format(data.load_tokenizer(tiny))
    rows, _ = data.cloze_rows([pairs[i] for i in range(6)], fmt)
    batch = data.pack([row for two in rows for row in two])
    grads = []
    for again in (False, True):
        model = tinyrm.load(tiny)
        dora.adapt(model, "dora", 2, 8.0, 1)
        model.checkpoint = again
        train.losses(model, fmt, batch)[0].backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*grads)


def test_a_run_that_was_killed_resumes_to_the_same_bits(base, tmp_path):
    """kill -9 at up to ten random moments of a run that saves after every step: within 25 steps of
    each start, so that a fast machine does not get to the end before the second one."""
    flags = [*base, "--save-minutes", 0, "--max-steps", 150, "--epochs", 99]
    assert call(*flags, "--out", tmp_path / "whole").returncode == 0  # the last --out counts
    kills, rng, go, run = 0, random.Random(0), flags, tmp_path / "run/run.json"
    metrics = run.with_name("metrics.jsonl")

    def steps():
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def finished():  # also if killed between its last line and its exit
        return run.exists() and "accuracy_after" in json.loads(run.read_text()).get("result", {})

    while kills < 10 and not finished():
        process = subprocess.Popen(command(*go), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        enough = steps() + rng.randrange(25)
        while not (run.exists() and steps() >= enough) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() != 0
        go = ["--resume", tmp_path / "run"]
    if not finished():
        done = call("--resume", tmp_path / "run")
        assert done.returncode == 0, done.stderr
    assert kills >= 2
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    files = [tmp_path / f"{name}/metrics.jsonl" for name in ("run", "whole")]
    losses = [[json.loads(line)["loss"] for line in open(file)] for file in files]
    assert losses[0] == losses[1]


def test_sigterm_saves_and_says_how_to_go_on(base, tmp_path):
    process = subprocess.Popen(command(*base, "--max-steps", 500, "--epochs", 999),
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM
    assert f"python train.py --resume {tmp_path / 'run'}" in rest
    assert list((tmp_path / "run/state").glob("step-*.safetensors"))


def test_a_state_cut_in_half_is_never_seen(base, tmp_path, monkeypatch):
    train.main([*map(str, base)])
    state = tmp_path / "run/state"
    before = sorted(state.rglob("*"))

    def broken(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    model = tinyrm.load(base[3])
    with pytest.raises(OSError):
        train.save_state(tmp_path / "run", 99, model, torch.optim.AdamW(model.parameters()))
    left = [p for p in sorted(state.rglob("*")) if ".tmp" not in str(p)]
    assert left == before


def test_a_state_of_an_earlier_version_is_not_taken_for_none(base, tmp_path, monkeypatch):
    monkeypatch.setattr(train.Run, "finish", lambda self: self.save(6))  # as if killed before it
    train.main([*map(str, base)])
    (state,) = (tmp_path / "run/state").iterdir()
    state.unlink()
    state.with_suffix("").mkdir()
    with pytest.raises(ValueError, match="step-000006 is of an earlier version"):
        train.main(["--resume", str(tmp_path / "run")])


def test_schedule_by_hand():
    # 100 steps: 6 of warm-up, the peak at step 6 (counted from 0), 2 % at the last

    assert train.schedule(0, 100) == pytest.approx(1 / 6)
    assert train.schedule(5, 100) == 1.0 and train.schedule(6, 100) == 1.0
    assert train.schedule(99, 100) == pytest.approx(0.02)
    assert train.schedule(0, 1) == 1.0


def test_each_epoch_sees_each_pair_once():
    s = train.Settings(domain="chat", batch_size=8)
    seen = [i for step in range(5) for i in train.step_indices(s, list(range(100, 110)), step)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(100, 110))
    assert seen[:10] != seen[10:20]


BAD = [
    (["--domain", "cooking"], "domain"),
    ([], "--domain is missing"),
    (["--domain", "chat", "--model", "/no/such"], "/no/such: no such folder"),
    (["--domain", "chat", "--data", "none.jsonl"], "none.jsonl"),
    (["--domain", "chat", "--data", "hub:foo"], "--data hub:foo: give nano, hub, hub:author or"),
    (["--domain", "chat", "--data", "hub", "x.jsonl"], "--data hub x.jsonl: give nano, hub,"),
    (["--domain", "chat", "--data", "x.jsonl", "nano"], "--data x.jsonl nano: give nano, hub,"),
    (["--domain", "chat", "--data", "hub", "hub:author"], "--data hub hub:author: give nano,"),
    (["--domain", "chat", "--revision", "c0ffee"], "--revision c0ffee: --model"),
    (["--domain", "chat", "--revision", "a/b=c0ffee"], "--revision a/b=c0ffee: give COMMIT for"),
    (["--domain", "chat", "--data", "hub", "--revision", "a/b=c"], "here Skywork/Skywork-Reward"),
    (["--domain", "chat", "--revision", "openai/webgpt_comparisons=c"], "in use, here none"),
    *((["--domain", "chat", "--data", "hub", "--revision", *bad], f"{' '.join(bad)}: give COMMIT")
      for bad in (["openai/webgpt_comparisons="], ["=c"], ["a", "b"], [""])),
    (["--domain", "chat", "--lr", "0"], "--lr 0.0"),
    (["--domain", "chat", "--batch-size", "7"], "--batch-size 7"),
    (["--domain", "reasoning", "--freeze", "77"], "--freeze 77"),
    (["--domain", "chat", "--device", "tpu"], "--device tpu"),
    (["--domain", "chat", "--max", "3"], "--max"),
    (["--resume", "nowhere"], "--resume nowhere"),
    (["--resume", "nowhere", "--lr", "1"], "leave out --lr"),
    (["--domain", "chat", "--out", "."], "--out . is already there"),
    (["--domain", "chat", "--template", "choice", "--context", "single"], "choice"),
]


@pytest.mark.parametrize("args, said", BAD)
def test_bad_input_is_one_line_and_exit_code_two(args, said, tiny, pairs_file, tmp_path,
                                                 capsys, monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if args and "--resume" not in args:
        args = [*args, *(["--model", str(tiny)] if "--model" not in args else [])]
        args = [*args, *(["--data", str(pairs_file)] if "--data" not in args else [])]
    try:
        train.main(args)
        raise AssertionError("it went through")
    except SystemExit as stop:  # argparse has printed its own line
        assert stop.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
    except ValueError as e:
        error = str(e)
        assert "\n" not in error
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_cannot_fit_is_an_error_before_the_run_begins(base, tmp_path):
    long = tmp_path / "long.jsonl"
    row = {"prompt": "one " * 90, "chosen": "a", "rejected": "b"}
    lines = [json.dumps(row | {"prompt": f"p{i}"}) for i in range(20)] + [json.dumps(row)]
    long.write_text("\n".join(lines) + "\n")
    base[5] = long
    with pytest.raises(ValueError, match=r"long.jsonl, line 21: the prompt alone"):
        train.main([*map(str, [*base, "--max-length", 60])])
    assert not (tmp_path / "run").exists()


def test_the_command_prints_the_line_and_exits_with_two(tmp_path):
    done = call("--domain", "chat", "--model", "/no/such", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: /no/such: no such folder")


def test_a_loss_that_is_not_finite_names_step_rate_and_rows(base, tiny, tmp_path):
    model = tinyrm.load(tiny)
    with torch.no_grad():
        model.head.dense.weight[0, 0] = torch.nan
    broken = tmp_path / "broken"
    tinyrm.save(model, broken)
    (broken / "tokenizer.json").write_text((tiny / "tokenizer.json").read_text())
    base[3] = broken
    with pytest.raises(ValueError, match=r"loss nan .* at step 1, rate .* line \d+"):
        train.main([*map(str, base)])


def test_an_error_of_our_own_keeps_its_traceback(base, monkeypatch):
    def wrong(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("train.losses", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        train.main([*map(str, base)])


def test_dry_run_prints_the_plan_and_leaves_nothing(base, tmp_path, capsys):
    train.main([*map(str, [*base, "--dry-run"])])
    out = capsys.readouterr().out
    assert "plan: 24 pairs, 48 rows" in out and "(mean of 40 pairs;" in out  # 6 steps of 8 rows
    assert " parameters train" in out and "FLOPs (products with weights: forward" in out
    for part in ("weights", "gradients and moments", "copies in float32", "the backward pass of "):
        assert re.search(rf"GiB in each process.*\b0\.0 {part}", out), part
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("world", [2])
def test_several_processes_give_the_weights_of_one(base, tmp_path, world):
    train.main([*map(str, [*base[:-1], tmp_path / "one"])])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
         "--master-port", str(random.randint(20000, 60000)), str(ROOT / "train.py"),
         *map(str, base)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    a, b = weights(tmp_path / "one"), weights(tmp_path / "run")
    for name, value in a.items():
        assert (value - b[name]).abs().max() < 1e-6, name
    one, many = (json.loads((tmp_path / f"{n}/run.json").read_text())["result"]
                 for n in ("one", "run"))  # fmt: skip
    assert one["accuracy_after"] == many["accuracy_after"]
    # begun on two, resumed on one: what is missing is the number of processes, which is not stored
    assert "processes" not in json.loads((tmp_path / "run/run.json").read_text())["settings"]


def test_help_takes_no_torch():
    code = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in ("--domain", "--model", "--adapter", "--freeze", "--resume"):
        assert flag in done.stdout
