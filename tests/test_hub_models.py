"""Weights and adapters from the Hub, and runs on several processes that do not end as planned.

Run: python -m pytest tests/test_hub_models.py   (offline: the "Hub" is tests/hub_server.py)
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file
from test_hub_data import bench, parquet, skywork
from transformers import AutoModelForMaskedLM

import evaluate
import tinyrm
import train
from data import BENCHMARK, SKYWORK, load_tokenizer

PROMPTS = ["one or two?", "Is it [MASK] or [SEP]?", "seven " * 80]
LEFT, RIGHT = ["two", "", "Option A is better"], ["one", "[MASK]", "eight nine"]


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file()}


@pytest.fixture(scope="module")
def full(tiny, tmp_path_factory):
    """The files of a repository like sarahpann/chat_model, saved by transformers."""
    folder = tmp_path_factory.mktemp("full")
    peer = AutoModelForMaskedLM.from_pretrained(tiny)
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    peer.save_pretrained(folder)
    tokenizer = (tiny / "tokenizer.json").read_bytes()
    return files_of(folder) | {"tokenizer.json": tokenizer, "tokenizer_config.json": b"{}"}


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """The files of a repository like sarahpann/reasoning_model_large, saved by peft."""
    import peft

    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True,
                             target_modules=["Wqkv", "Wi", "Wo", "dense", "decoder"])  # his
    model = peft.get_peft_model(AutoModelForMaskedLM.from_pretrained(tiny), config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=random))
    model.peft_config["default"].base_model_name_or_path = "org/base"
    model.save_pretrained(folder)
    return files_of(folder)


UNUSED = {"README.md": b"# a card", "pytorch_model.bin": b"x" * 5000, "onnx/model.onnx": b"x",
          "training_args.bin": b"x", "checkpoint-9/model.safetensors": b"x", "optimizer.pt": b"x"}


@pytest.fixture
def hub(tiny, full, adapter):
    base = files_of(tiny)
    with HubServer({"model:org/base": base | UNUSED, "model:sarahpann/chat_model": full | UNUSED,
                    "model:sarahpann/reasoning_model_large": adapter | UNUSED}) as server:
        yield server


@torch.no_grad()
def by_hand(peer, tiny, prefix):
    """P(left is better) from a model of transformers or peft and the author's token layout."""
    tokenizer = load_tokenizer(tiny)
    cls, sep, mask = map(tokenizer.token_to_id, ("[CLS]", "[SEP]", "[MASK]"))
    zero, one = (tokenizer.encode(d, add_special_tokens=False).ids[0] for d in "01")

    def first_wins(prompt, a, b):
        texts = f"{prefix}Question: {prompt} Choice 0: {a}", f" Choice 1: {b}Answer:  "
        x, y = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        ids = [cls, *x, sep, *y, mask, sep]
        return peer(input_ids=torch.tensor([ids])).logits[0, -2, [zero, one]].softmax(-1)[0].item()

    return [(first_wins(p, a, b) + 1 - first_wins(p, b, a)) / 2
            for p, a, b in zip(PROMPTS, LEFT, RIGHT, strict=True)]


def test_full_weights_judge_as_in_transformers_with_the_layout_picked_by_name(
        hub, tiny, full, tmp_path):
    with hub.client(tmp_path / "home"):
        rm = evaluate.RewardModel.load("sarahpann/chat_model", device="cpu", dtype="fp32")
        assert (rm.fmt.template, rm.fmt.domain, rm.fmt.head) == ("choice", "chat", "cloze")
        assert rm.about["weights"] == hub.commit("model:sarahpann/chat_model")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(full[name])
    peer = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    expected = by_hand(peer, tiny, "Select the best response. ")
    assert rm.compare(PROMPTS, LEFT, RIGHT) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3


def test_an_adapter_on_the_tied_decoder_judges_as_in_peft(hub, tiny, adapter, tmp_path):
    import peft

    with hub.client(tmp_path / "home"):
        rm = evaluate.RewardModel.load("sarahpann/reasoning_model_large", device="cpu",
                                       dtype="fp32")
        assert (rm.fmt.template, rm.fmt.domain) == ("choice", "reasoning")
        for name in ("org/base", "sarahpann/reasoning_model_large"):
            assert hub.commit(f"model:{name}") in rm.about["weights"]
    assert any("decoder.lora_A" in key for key in read_safetensors(adapter, tmp_path))
    for name, body in adapter.items():
        (tmp_path / name).write_bytes(body)
    peer = AutoModelForMaskedLM.from_pretrained(tiny)
    before = peer.model.embeddings.tok_embeddings.weight.clone()
    peer = peft.PeftModel.from_pretrained(peer, tmp_path).eval()
    expected = by_hand(peer, tiny, "Which response is more correct? ")
    assert rm.compare(PROMPTS, LEFT, RIGHT) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3
    # the decoder was adapted, the embedding that it is tied to was not
    assert torch.equal(rm.model.model.embeddings.tok_embeddings.weight, before)


def read_safetensors(files, folder):
    (folder / "peek.safetensors").write_bytes(files["adapter_model.safetensors"])
    return load_file(folder / "peek.safetensors")


def test_only_the_files_that_are_read_are_fetched_and_only_once(hub, tmp_path):
    with hub.client(tmp_path):
        folder = tinyrm.fetch("org/base")
        assert {p.name for p in folder.rglob("*") if p.is_file()} == {
            "config.json", "model.safetensors", "tokenizer.json"}
        hub.requests.clear()
        assert tinyrm.fetch("org/base") == folder
        assert not any("/resolve/" in asked for asked in hub.requests)
        hub.gone()
        assert tinyrm.fetch("org/base") == folder  # the network is gone, the cache is warm
    with hub.client(tmp_path, HF_HUB_OFFLINE="1"):
        assert tinyrm.fetch("org/base") == folder


def refused(name, message, **more):
    with pytest.raises(ValueError, match=message) as error:
        tinyrm.fetch(name, **more)
    assert "\n" not in str(error.value) and str(error.value).startswith(name)


def test_what_goes_wrong_is_one_line(hub, tmp_path):
    with hub.client(tmp_path / "a"):
        refused("org/none", "RepositoryNotFound.*check the name")
        refused("org/base", "RevisionNotFound", revision="v9")
        hub.cut = [1000] + [0] * 20
        refused("org/base", "network")
        hub.cut = [1000]  # once only: tried again, from where it broke off
        assert tinyrm.load(tinyrm.fetch("org/base")).config.hidden_size == 32
    hub.token = "hf_right"
    with hub.client(tmp_path / "b", HF_TOKEN="hf_wrong"):
        refused("org/base", "401.*HF_TOKEN")
    with hub.client(tmp_path / "b", HF_TOKEN="hf_right"):
        assert (tinyrm.fetch("org/base") / "config.json").is_file()
    hub.gone()
    with hub.client(tmp_path / "c"):
        refused("org/base", "check .*network.*or give a folder")


# --- the paper's command, in small -----------------------------------------------------------


def test_train_from_the_hub_and_judge_end_to_end(hub, tmp_path, monkeypatch, capsys):
    rows = [skywork("magpie", f"Is {i} more than {i + 1}?", "No.", "Yes.") for i in range(40)]
    hub.repos[f"dataset:{SKYWORK}"] = {"data/train-00000-of-00001.parquet": parquet(rows)}
    shown = [bench("Is 3 MORE than 4?"), bench("another")]
    hub.repos[f"dataset:{BENCHMARK}"] = {"data/raw-0.parquet": parquet(shown),
                                         "data/filtered-0.parquet": parquet(shown[1:])}
    run = tmp_path / "run"
    with hub.client(tmp_path / "home"):
        train.main([*map(str, [
            "--domain", "reasoning", "--model", "org/base", "--data", "hub", "--max-steps", 2,
            "--batch-size", 8, "--rank", 2, "--held-out", 4, "--device", "cpu", "--out", run])])
        evaluate.main([str(run), "rewardbench", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "40 magpie (published 54,582: -54,542) - 1 with a prompt of RewardBench" in out
    record = json.loads((run / "run.json").read_text())
    assert record["result"]["n"] == 4
    assert record["revisions"]["model"] == f"org/base@{hub.commit('model:org/base')}"
    for name in (SKYWORK, BENCHMARK):
        assert f"{name}@{hub.commit(f'dataset:{name}')}" in record["source"]
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    report = json.loads((run / "eval/rewardbench/results.json").read_text())["reports"][0]
    assert report["n"] == 1 and hub.commit(f"dataset:{BENCHMARK}") in report["source"]


def test_commits_are_pinned_and_can_be_given(hub, tmp_path, monkeypatch, capsys):
    def rows(first):
        return {"data/train-0.parquet": parquet([
            skywork("magpie", f"Is {i} more than {i + 1}?", "No.", "Yes.")
            for i in range(first, first + 40)])}

    keys = {"": "model:org/base", SKYWORK: f"dataset:{SKYWORK}", BENCHMARK: f"dataset:{BENCHMARK}"}
    hub.repos[keys[SKYWORK]] = rows(0)
    hub.repos[keys[BENCHMARK]] = {"data/raw-0.parquet": parquet([bench("Is 3 more than 4?")])}
    old = {repo: hub.commit(key) for repo, key in keys.items()}
    flags = [*map(str, ["--domain", "reasoning", "--model", "org/base", "--data", "hub",
                        "--max-steps", 2, "--batch-size", 8, "--rank", 2, "--held-out", 4,
                        "--device", "cpu"])]
    run = tmp_path / "run"
    with monkeypatch.context() as patch, hub.client(tmp_path / "home"):
        patch.setattr(train.Run, "finish", lambda self: self.save(1))  # as if it ended half-way
        train.main([*flags, "--out", str(run)])
    begun = json.loads((run / "run.json").read_text())
    pins = [old[""], f"{SKYWORK}={old[SKYWORK]}", f"{BENCHMARK}={old[BENCHMARK]}"]
    assert begun["settings"]["revision"] == pins
    assert begun["revisions"] == {"model": f"org/base@{old['']}", SKYWORK: old[SKYWORK],
                                  BENCHMARK: old[BENCHMARK]}
    for key in keys.values():  # main moves on; the old commits can still be had
        hub.repos[f"{key}@old"] = hub.repos[key]
        hub.repos[key] = hub.repos[key] | {"new.json": b"{}"}
    hub.repos[keys[SKYWORK]] = rows(50)
    hub.requests.clear()
    with hub.client(tmp_path / "cold"):  # nothing of it in this cache
        train.main(["--resume", str(run)])
    done = json.loads((run / "run.json").read_text())
    assert "accuracy_after" in done["result"] and done["revisions"] == begun["revisions"]
    asked = [x for x in hub.requests if "/resolve/" in x]
    assert asked and all(any(commit in x for commit in old.values()) for x in asked)
    with hub.client(tmp_path / "home"):
        now = {repo: hub.commit(key) for repo, key in keys.items()}
        for given, model, sky in ((pins, old[""], old[SKYWORK]),
                                  (pins[1:2], now[""], old[SKYWORK]),
                                  (pins[:1], old[""], now[SKYWORK])):
            capsys.readouterr()
            train.main([*flags, "--out", str(tmp_path / "x"), "--dry-run", "--revision", *given])
            said = capsys.readouterr().out
            (pinned,) = [x for x in said.splitlines() if x.startswith("pinned: --revision ")]
            assert {model, f"{SKYWORK}={sky}"} < {*pinned.split()} and f"{SKYWORK}@{sky}" in said
    assert not (tmp_path / "x").exists()


# --- a rank that dies ------------------------------------------------------------------------

DIES = """
import os, runpy, signal, sys, torch
sys.path.insert(0, {root!r})
backward, calls = torch.Tensor.backward, []
def dies(loss):
    calls.append(loss)
    if os.environ["RANK"] == "1" and len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(loss)
torch.Tensor.backward = dies
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def torchrun(script, *flags):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         str(random.randint(20000, 60000)), script, *map(str, flags)], capture_output=True,
        text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_rank_that_dies_ends_the_run_which_goes_on_with_fewer(tiny, pairs_file, tmp_path):
    root = str(Path(train.__file__).parent)
    flags = [*map(str, [
        "--domain", "reasoning", "--model", tiny, "--data", pairs_file, "--batch-size", 8,
        "--max-steps", 6, "--held-out", 8, "--rank", 2, "--freeze", 1, "--lr", 1e-2,
        "--device", "cpu", "--save-minutes", 0])]
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(root=root))
    ended = torchrun(script, *flags, "--out", tmp_path / "run")
    assert ended.returncode != 0
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith(
        "error: another process ended: see what it said, and go on with: torchrun ... train.py "
        f"--resume {tmp_path / 'run'} ([")  # and then gloo's words
    assert "RuntimeError" not in ended.stderr and "all_reduce" not in ended.stderr
    (state,) = (tmp_path / "run/state").iterdir()  # step 2 if rank 0 was slow to hear of step 3
    assert state.stem in ("step-000003", "step-000002")
    train.main(["--resume", str(tmp_path / "run")])  # two processes before, one now
    train.main([*flags, "--out", str(tmp_path / "whole")])
    ours, whole = (load_file(tmp_path / name / "model/model.safetensors")
                   for name in ("run", "whole"))
    assert ours.keys() == whole.keys()
    for name, value in whole.items():
        assert (value - ours[name]).abs().max() < 1e-6, name


def test_an_error_of_one_process_before_the_run_is_a_line_of_each(pairs_file, tmp_path):
    ended = torchrun(Path(train.__file__), "--domain", "chat", "--model", tmp_path / "none",
                     "--data", pairs_file, "--out", tmp_path / "run")
    said = sorted(x for x in ended.stderr.splitlines() if x.startswith("error: "))
    assert f"error: {tmp_path / 'none'}: no such folder" in said[0]
    assert "RuntimeError" not in ended.stderr and not (tmp_path / "run").exists()
    assert all(line.startswith("error: another process ended: see what it said ([")
               for line in said[1:])  # none if torchrun ended it first
