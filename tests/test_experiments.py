"""The experiments: nothing is run twice, a shared trunk is its specialists, intervals and exponents
come out as known, tables say what is there and what is not.

    pytest tests/test_experiments.py
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import measure  # noqa: E402
import run  # noqa: E402

import data  # noqa: E402
import tinyrm  # noqa: E402

FULL = run.grid(run.GROUPS, [1, 2, 3])


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store of nano in an empty folder, and a list of the runs made by a `make` that is quick:
    it leaves an empty folder where a model would stay."""
    made = []

    def make(which, told, threads):
        made.append(which.key)
        if stay := run.kept(which):
            stay.mkdir(parents=True)
        test = dict.fromkeys(data.DOMAINS, 0.5 + which.seed / 10)
        return {**which._asdict(), "flags": " ".join(told), "base": run.weights_of("nano"),
                "test": test, "train": 1.0, "before": 0.5, "parameters": 10, "trainable": 5,
                "n": dict.fromkeys(data.DOMAINS, 400), "other context": 0.5}

    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path / "kept")
    monkeypatch.setattr(run, "make", make)
    monkeypatch.setattr(run, "merge", lambda seed: None)
    return tmp_path / "nano.json", made


def test_every_run_has_a_name_and_flags_of_its_own():
    flags = [(which.weights, tuple(run.flags(which))) for which in FULL]
    assert len(FULL) == len({which.key for which in FULL}) == len(set(flags)) == 213


def test_the_first_seed_of_what_says_most_comes_first():
    first = [which for which in FULL[:25]]
    assert all(which.seed == 1 and which.pairs in (1000, 3000) for which in first)
    assert {which.weights for which in first} == set(run.NANOS) - {*run.SIZES}
    assert {which.context for which in first} == {"pair", "single"}
    late = [which.pairs < 1000 for which in FULL if which.weights not in run.SIZES]
    assert late == sorted(late)


def test_what_has_a_record_is_not_run_again(store):
    path, made = store
    run.main(["claims", "--seeds", "1", "--most", "3"])
    assert len(made) == 3 and len(json.loads(path.read_text())) == 3
    run.main(["claims", "--seeds", "1", "--jobs", "2"])
    runs = [which.key for which in run.grid(["claims"], [1])]
    assert len(made) == len(runs) and sorted(json.loads(path.read_text())) == sorted(runs)
    run.main(["claims", "--seeds", "1"])
    assert len(made) == len(runs)


def test_a_size_that_was_not_made_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs/experiments")
    with pytest.raises(ValueError, match=r"nano-64 is not there.*make\.py --width 64 --out .*-64"):
        run.weights_of("nano-64")
    folder = tmp_path / "runs/nano-64"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert run.weights_of("nano-64") == hashlib.sha256(b"weights").hexdigest()[:16]


def test_an_error_leaves_what_was_finished_and_the_next_start_goes_on(store, monkeypatch):
    path, made = store
    make = run.make

    def fails(which, told, threads):
        if len(made) == 2:
            raise ValueError("no room")
        return make(which, told, threads)

    monkeypatch.setattr(run, "make", fails)
    with pytest.raises(ValueError, match="no room"):
        run.main(["context", "--seeds", "1"])
    assert len(json.loads(path.read_text())) == 2
    monkeypatch.setattr(run, "make", make)
    run.main(["context", "--seeds", "1"])
    assert len(made) == len(set(made)) == 6


def test_specialists_to_merge_are_trained_again_if_their_models_are_gone(store):
    path, made = store
    run.main(["merge", "--seeds", "1"])
    run.main(["merge", "--seeds", "1"])
    assert len(made) == 3
    run.kept(run.grid(["merge"], [1])[0]).rmdir()
    run.main(["merge", "--seeds", "1"])
    assert made[3:] == made[:1]


def test_records_of_other_weights_are_named_left_out_and_never_added_to(store, capsys):
    path, made = store
    run.main(["claims", "--seeds", "1", "--most", "2"])
    results = json.loads(path.read_text())
    first = next(iter(results))
    results[first]["base"] = "0" * 16
    path.write_text(json.dumps(results))
    capsys.readouterr()
    run.main(["--print"])
    said = capsys.readouterr()
    assert "1 of 2 records are of other weights" in said.err and first in said.err
    assert "nano: 1 of 213 runs are there" in said.out
    with pytest.raises(ValueError, match="records of other weights: move it away"):
        run.main(["claims"])
    results[first] |= {"base": run.weights_of("nano"), "flags": "--epochs 1"}
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="records of other flags"):
        run.main(["claims"])


def test_the_tables_give_mean_interval_and_n(store, capsys):
    path, _ = store
    run.main(["claims", "--most", "21"])
    results = json.loads(path.read_text())
    kept = {key: r for key, r in results.items() if r["domain"] == "safety"}
    capsys.readouterr()
    run.show(kept, "nano")
    out = capsys.readouterr().out
    # by hand: 0.6 and 0.7 have mean 0.65, s = 0.0707, t = 12.706: 12.706 * 0.0707 / sqrt(2) = 0.635
    assert "| cloze dora | 0.650 +- 0.635 (2) | - | - | 1.000 +- 0.000 (2) |" in out
    assert "| cls lora | - | - | - | - |" in out and "not run yet" in out


@pytest.mark.parametrize("argv, said", [
    (["wishes"], "no group wishes"), (["--jobs", "0"], "--jobs 0"),
    (["--model", "ettin-17m"], "--data goes with --model"), (["--data", "x"], "--data goes"),
])  # fmt: skip
def test_wrong_flags_are_one_line(argv, said):
    with pytest.raises(ValueError, match=said):
        run.main(argv)


def test_another_model_runs_on_own_pairs_and_is_judged_on_the_held_out(tiny, pairs_file, tmp_path,
                                                                      monkeypatch, capsys):
    monkeypatch.setattr(run, "HERE", tmp_path / "experiments")
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "train.py").symlink_to(tinyrm.HERE / "train.py")
    also = "--max-steps 2 --batch-size 8 --held-out 12 --max-length 64 --device cpu"
    run.main(["claims", "--model", str(tiny), "--data", str(pairs_file), "--domain", "reasoning",
              "--seeds", "1", "--most", "1", "--also", also])
    (record,) = json.loads((tmp_path / f"experiments/{tiny.name}.json").read_text()).values()
    assert 0 <= record["test"]["reasoning"] <= 1 and record["n"]["reasoning"] >= 12
    assert record["base"] == run.weights_of(tiny) and record["parameters"] > record["trainable"]
    layers = 3
    assert len(record["cka"]) == len(record["depth"]) == layers
    # two steps turn the adapted matrices of the layers that train, and no other
    changed = {name.split(".")[2] for name, *_ in record["matrices"]}
    assert changed <= {"1", "2", "weight"} and len(record["matrices"]) > 4
    out = capsys.readouterr().out
    assert "1 of 6 runs are there" in out
    assert f"| cloze dora | {record['test']['reasoning']:.3f} (1) |" in out
    assert not [*(tmp_path / "runs").iterdir()]


# ------------------------------------------------------------------------------------ measuring


def test_intervals_are_those_of_student_and_verdicts_compare_within_a_seed():
    mean, half, n = measure.interval([0.9, 0.92, 0.94])
    # s = 0.02, t = 4.303: 4.303 * 0.02 / sqrt(3) = 0.04969
    assert (mean, n) == (pytest.approx(0.92), 3) and half == pytest.approx(0.04969, abs=1e-5)
    assert math.isnan(measure.interval([0.9])[1]) and math.isnan(measure.interval([])[0])
    far = {1: 0.5, 2: 0.7, 3: 0.9}
    near = {seed: value - 0.1 - seed / 1000 for seed, value in far.items()}
    assert measure.verdict(far, near)[3] == "shows"  # though the two overlap widely
    assert measure.verdict(near, far)[3] == "is turned round"
    assert measure.verdict(far, {1: 0.5, 2: 0.8, 3: 0.7})[3] == "does not show"
    assert measure.verdict(far, {1: 0.4, 7: 0})[2:] == (1, "one seed, no verdict")
    assert measure.verdict(far, {})[3] == "not run yet"


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_the_power_law_finds_a_known_exponent(floor):
    x, covered = np.repeat([100, 300, 1000], 5), 0
    for seed in range(30):
        noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(x)))
        law = measure.power_law(x, floor + 3.0 * x**-0.4 * noise, floor, draws=200)
        assert law["b"] == pytest.approx(0.4, abs=0.1) and law["high"] - law["low"] < 0.2
        covered += law["low"] < 0.4 < law["high"]
    assert covered >= 21  # 95 % of 30 are 28; a bootstrap of five points is somewhat narrow
    exact = measure.power_law([1, 10, 100], [2.0, 0.2, 0.02])
    assert exact["a"] == pytest.approx(2) and exact["b"] == pytest.approx(1)
    assert math.isnan(exact["low"])
    with pytest.raises(ValueError, match="above the floor"):
        measure.power_law([1, 2], [0.1, 0.2], floor=0.1)


def test_cka_sees_no_rotation_and_no_scale_but_sees_another_matrix():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=random)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=random))[0]
    assert measure.cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    assert measure.cka(x, torch.randn(500, 8, generator=random)) < 0.1


@pytest.fixture(scope="module")
def specialists(tmp_path_factory):
    """Three nanos that differ above their first layer, as folders that a judge opens."""
    out = {}
    for seed, domain in enumerate(data.DOMAINS):
        model, folder = tinyrm.load(measure.NANO), tmp_path_factory.mktemp(domain)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in model.model.layers[1:]:
                for p in layer.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=random))
        tinyrm.save(model, folder)
        (folder / "tokenizer.json").write_bytes((measure.NANO / "tokenizer.json").read_bytes())
        (folder / "tinyrm.json").write_text(json.dumps({"domain": domain, "max_length": 512}))
        out[domain] = folder
    return out


def test_branches_on_a_shared_trunk_are_the_specialists_and_the_router_knows_prompts(specialists):
    tests = {domain: measure.test_pairs(domain)[:60] for domain in data.DOMAINS}
    prompts = {domain: [pair.prompt for pair in data.Pairs(
        [measure.NANO / f"pairs/{domain}.train.jsonl"])][:200] for domain in data.DOMAINS}
    record = measure.merged(specialists, 1, tests, prompts)
    assert record["apart"] <= 1e-5
    assert min(record["router"].values()) > 0.8
    for domain in data.DOMAINS:  # routed is the specialist's, but for the prompts that went astray
        lost = abs(record["routed"][domain] - record["alone"][domain])
        assert lost <= 1 - record["router"][domain] + 1e-9
    size = record["parameters"]
    assert size["shared trunk"] < size["separate"] == 3 * 838_396
    cost = record["FLOPs a pair"]
    assert cost["one specialist"] < cost["routed"] < cost["all, separate"]
    with pytest.raises(ValueError, match="do not share 2 bottom layers"):
        measure.merged(specialists, 2, tests, prompts)


def test_adding_changes_gives_the_base_the_average_and_one_specialist(specialists):
    base, *experts = map(tinyrm.load, (measure.NANO, *specialists.values()))
    name = "model.layers.2.mlp.Wi.weight"
    at = [model.state_dict()[name] for model in (base, *experts)]
    for scale, models, want in ((0, experts, at[0]), (1 / 3, experts, sum(at[1:]) / 3),
                                (1, experts[:1], at[1])):  # fmt: skip
        got = measure.added(base, models, scale).state_dict()[name]
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_the_trunk_costs_what_its_layers_cost():
    config, sizes = tinyrm.read_config(measure.NANO), [40, 60]
    d, f, total = config.hidden_size, config.intermediate_size, sum(sizes)
    # layer 0 sees whole rows: products 4 d^2 + 3 d f a token, attention 2 d a pair of tokens
    layer = total * (4 * d * d + 3 * d * f) + 2 * d * (40**2 + 60**2)
    assert measure.trunk_flops(config, sizes, 1) == 2 * layer
