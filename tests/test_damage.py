"""Damaged files: whatever stands in a file that the project reads, it is accepted with the result
that it had, or refused in one line that names it; or the test says why it may change the result.

    pytest tests/test_damage.py                  1,100 cases, from the seeds that are printed
    FAULT_SEED=7 pytest tests/test_damage.py     others

Time and memory are bounded: ten seconds and 1 GiB a case.
"""

import json
import os
import random
import resource
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load, save, save_file

import dora
import evaluate
import tinyrm
import train
from infra import sources
from infra.run_folder import RunFolder

SEED = int(os.environ.get("FAULT_SEED", 0))

# --- what happens to a file ------------------------------------------------------------------

EXTREMES = [None, True, False, 0, 1, -1, 3, 0.5, 10**12, 10**400, 1e-300, float("nan"),
            float("inf"), "", "16", "abc", "x" * 100_000, "a\nb", "../../etc", "\0",
            [], [1], ["a"] * 3, {},
            {"a": 1}, [[]], {"rope_theta": "1"}, {"full_attention": {"rope_theta": float("nan")}},
            {"rope_type": "yarn", "factor": 4}, {"sliding_attention": {"rope_theta": -1}}]
WRONG_TOPS = [b"", b"null", b"[]", b"3", b'"text"', b"[" * 100_000, b'{"a":' * 100_000, b"{}",
              b"\xff\xfe", b"\0" * 100, b"{" + b" " * 1000, b"1" * 10_000]


def damage_bytes(body: bytes, rng, reach: int | None = None) -> bytes:
    """A bit flipped (in the first `reach` bytes), or the file cut, lengthened or emptied."""
    what = rng.choice(["flip", "flip", "flip", "cut", "add"])
    if what == "cut":
        return body[:rng.randrange(len(body))]
    if what == "add":
        return body + rng.choice([b"\0" * 8, b"}", body[:100], b"\n"])
    body = bytearray(body)
    body[rng.randrange(min(len(body), reach or len(body)))] ^= 1 << rng.randrange(8)
    return bytes(body)


def damage_json(body: bytes, rng) -> bytes:
    """A field taken away or given another value, at any depth; or a wrong top; or a bit flipped."""
    what = rng.randrange(10)
    if what == 0:
        return rng.choice(WRONG_TOPS)
    if what < 4:
        return damage_bytes(body, rng)
    top = value = json.loads(body)
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.5:
            break
        value = inner
    if what == 4:
        del value[key]
    else:
        value[key] = rng.choice(EXTREMES)
    return json.dumps(top).encode()


def damage_weights(body: bytes, rng) -> bytes:
    """A tensor taken away, added, or with another shape, kind or value; or bytes damaged, most
    often in the header."""
    what = rng.randrange(10)
    if what < 5:
        header = 8 + int.from_bytes(body[:8], "little")
        return damage_bytes(body, rng, rng.choice([8, header, header, len(body)]))
    state = load(body)
    name = rng.choice(sorted(state))
    tensor = state[name]
    if what == 5:
        del state[name]
    elif what == 6:
        state[rng.choice(["junk", "decoder.weight", name + ".x"])] = torch.zeros(3)
    elif what == 7:
        shapes = [torch.ones(()), torch.ones(1), torch.ones(1, 1), tensor[None],
                  tensor.flatten()[1:], torch.ones(0), torch.ones(2, 2)]
        state[name] = rng.choice(shapes)
    elif what == 8:
        state[name] = tensor.to(rng.choice([torch.int32, torch.bool, torch.int64, torch.uint8]))
    else:
        state[name] = tensor.clone()
        spoiled = state[name].reshape(-1)
        spoiled[rng.randrange(len(spoiled))] = rng.choice([torch.nan, torch.inf, -torch.inf])
    return save(state)


def damage_lines(body: bytes, rng) -> bytes:
    """A line damaged, or the file."""
    if rng.random() < 0.3:
        return damage_bytes(body, rng)
    lines = body.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = damage_json(lines[i], rng)
    return b"\n".join(lines) + b"\n"


# --- what becomes of it ----------------------------------------------------------------------


@contextmanager
def bounded():
    """At most ten seconds, and 1 GiB more than there is now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, before[1]))
    signal.alarm(10)  # whose signal ends the tests: nothing may hang
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


# Refusals that name the folder only: two files of it do not fit each other, and which of them is
# wrong cannot be known; or the file's words are no option.
UNNAMED = [
    "Error(s) in loading state_dict",  # config.json and the weights
    "does not fit this model", "target_modules names",  # an adapter and its base
    "the template alone needs",  # max_length of tinyrm.json
    "(other formats are not read)",  # an index names a shard that is not there
    "no special token",  # tokenizer_config.json and tokenizer.json
    "decoder.weight differs",  # config.json says that it is tied
    "changed since then",  # run.json and what the run rests on
    "begun by an earlier version",  # a run.json without a format, as the first edition wrote it
    "begun by a later version",
    "one token for both labels",  # of a tokenizer and a template
]


def survey(file, damage, use, cases, may_differ):
    """Damage a file so many times, and use it. `may_differ(body, damaged)` says whether another
    result is right, because the file says something else that is just as well possible. A refusal
    names the file, or its folder and one of UNNAMED."""
    body = file.read_bytes()
    whole = use()
    accepted = refused = 0
    print(f"{file.name}: seeds {SEED}-0 to {SEED}-{cases - 1}")
    try:
        for case in range(cases):
            seed = f"{SEED}-{case}"
            damaged = damage(body, random.Random(seed))
            file.write_bytes(damaged)
            try:
                with bounded():
                    result = use()
            except (ValueError, SystemExit) as error:
                refused += 1
                text = str(error)
                # by its own name, or one of the exceptions
                excepted = any(words in text for words in UNNAMED)
                named = file.name in text or (str(file.parent) in text and excepted)
                # or it begins with a path, of a model or of data, that stands in the file
                path = text.partition(": ")[0]
                named = named or ("/" in path and path in damaged.decode(errors="replace"))
                assert named and "\n" not in text and len(text) < 1000, (seed, text[:2000])
            except BaseException as error:
                raise AssertionError(f"{file.name}, seed {seed}: {error!r:.500}") from error
            else:
                accepted += 1
                assert result == whole or may_differ(body, damaged), (seed, result, whole)
    finally:
        file.write_bytes(body)
    assert use() == whole
    print(f"{file.name}: {refused} refused, {accepted} accepted")


def changed_keys(body: bytes, damaged: bytes) -> set:
    before, after = json.loads(body), json.loads(damaged)
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def only_values_differ(body: bytes, damaged: bytes) -> bool:
    """Other numbers in tensors of the same names and shapes cannot be told from other training."""
    before, after = load(body), load(damaged)
    shapes = {name: tensor.shape for name, tensor in before.items()}
    return shapes == {name: tensor.shape for name, tensor in after.items()}


def never(body, damaged):
    return False


def always(body, damaged):
    return True


# --- models ----------------------------------------------------------------------------------


def score(folder):
    judge = evaluate.RewardModel.load(folder, device="cpu", dtype="fp32")
    return judge.compare("one or " * 20 + "two?", "two", "seven")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A model whose config says nothing that is a default anyway."""
    folder = tmp_path_factory.mktemp("damage") / "model"
    shutil.copytree(tiny, folder)
    raw = json.loads((folder / "config.json").read_text())
    raw.update(norm_eps=1e-4, local_rope_theta=9000.0, global_rope_theta=9900.0, local_attention=16,
               max_position_embeddings=500, global_attn_every_n_layers=2,
               rope_parameters={"full_attention": {"rope_theta": 9900.0},
                                "sliding_attention": {"rope_theta": 9000.0}})
    (folder / "config.json").write_text(json.dumps(raw))
    write_json = {"template": "option", "context": "pair", "head": "cloze", "domain": "safety",
                  "max_length": 400}
    (folder / "tinyrm.json").write_text(json.dumps(write_json))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    return folder


@pytest.fixture(scope="module")
def adapter(model):
    folder = model.parent / "adapter"
    adapted = tinyrm.load(model)
    dora.adapt(adapted, "dora", rank=2, alpha=4.0, freeze=1)
    for layer in dora.adapters(adapted).values():
        layer.B.data.normal_(std=0.1)
    dora.save_adapter(adapted, folder, str(model))
    return folder


# A number of these that is in its range cannot be told from a wish; a key that is lost leaves its
# default.
WISHES = {
    "config.json": {"norm_eps", "global_rope_theta", "local_rope_theta", "rope_parameters",
                    "local_attention", "layer_types", "global_attn_every_n_layers",
                    "num_attention_heads"},
    "tinyrm.json": {"template", "context", "domain", "max_length"},
    "adapter_config.json": {"lora_alpha", "base_model_name_or_path"},
}


def wishes_of(name):
    def may_differ(body, damaged):
        return bool(changed_keys(body, damaged) & WISHES[name])

    return may_differ


@pytest.mark.parametrize("name, cases", [("config.json", 220), ("tinyrm.json", 80)])
def test_a_damaged_json_file_of_a_model(model, name, cases):
    survey(model / name, damage_json, lambda: score(model), cases, wishes_of(name))


def test_a_damaged_tokenizer(model):
    # other merges, other pieces: another tokenizer
    survey(model / "tokenizer.json", damage_json, lambda: score(model), 120, always)


def test_damaged_names_of_special_tokens(model):
    survey(model / "tokenizer_config.json", damage_json, lambda: score(model), 40, always)


def test_damaged_weights(model):
    survey(model / "model.safetensors", damage_weights, lambda: score(model), 120,
           only_values_differ)


def test_a_damaged_index_of_shards(model, tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(model, folder)
    state = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate([sorted(state)[::2], sorted(state)[1::2]]):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    survey(index, damage_json, lambda: score(folder), 80, never)


def test_a_damaged_config_of_an_adapter(adapter):
    survey(adapter / "adapter_config.json", damage_json, lambda: score(adapter), 120,
           wishes_of("adapter_config.json"))


def test_damaged_weights_of_an_adapter(adapter):
    survey(adapter / "adapter_model.safetensors", damage_weights, lambda: score(adapter), 100,
           only_values_differ)


# --- runs ------------------------------------------------------------------------------------


class Reached(Exception):
    """As if the process were killed, with nothing half-written."""


@pytest.fixture
def run(flags, tmp_path, monkeypatch):
    """The folder of a run that ended after four of six steps."""
    save_state = RunFolder.save

    def save_and_end(run, step):
        save_state(run, step)
        if step == 4:
            raise Reached

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_and_end)
        with pytest.raises(Reached):
            train.main(flags(save_minutes=0))
    return tmp_path / "run"


@pytest.fixture
def resumed(run, monkeypatch):
    """resumed() -> what a run goes on with: its step, settings, weights and moments, and lines of
    metrics.jsonl. No step is taken."""
    seen = []

    def look(model, optimizer, prompt_format, settings, pairs, micro_tokens, run):
        state = [run.steps_done, settings.lr, settings.seed]
        for p in run.trained().values():
            moments = optimizer.state.get(p, {})
            state += [p.detach().numpy().tobytes(), str(moments)]
        seen.append(state)
        raise Reached

    monkeypatch.setattr(train, "train", look)

    def resume():
        with pytest.raises(Reached):
            train.main(["--resume", str(run)])
        return seen.pop()

    return resume


def test_a_damaged_run_json(run, resumed):
    def may_differ(body, damaged):
        return "settings" in changed_keys(body, damaged)

    survey(run / "run.json", damage_json, resumed, 120, may_differ)


def test_a_damaged_state(run, resumed):
    (state,) = (run / "state").iterdir()
    survey(state, damage_weights, resumed, 120, only_values_differ)


def test_damaged_lines_of_metrics_are_left_out(run, resumed):
    survey(run / "metrics.jsonl", damage_lines, resumed, 50, never)


def test_damaged_pairs(pairs_file, tmp_path):
    file = tmp_path / "pairs.jsonl"
    shutil.copy(pairs_file, file)

    def use():
        return sources.load_sets([str(file)], "reasoning", held_out=8, limit=0, seed=17).train

    survey(file, damage_lines, use, 150, always)  # another text is another pair
