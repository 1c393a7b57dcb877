"""The experiments: nothing is run twice, a shared trunk is its specialists, intervals and exponents
come out as known, tables say what is there and what is not.

    python -m pytest tests/test_experiments.py
"""

import hashlib
import io
import json
import math
import shutil
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np
import pytest
import torch

import data
import tinyrm
from evaluate import Judged
from experiments import measure, run
from experiments.causal import CausalModernBERT
from infra.pairs import load_pairs
from tinyrm import read_json

DOMAINS = ("reasoning", "safety", "chat")
FULL_GRID = run.grid(run.GROUPS, [1, 2, 3])

# --- the grid --------------------------------------------------------------------------------


def test_the_whole_grid_has_213_runs():
    assert len(FULL_GRID) == 213


def test_every_run_has_a_name_of_its_own():
    assert len({one.key for one in FULL_GRID}) == len(FULL_GRID)


def test_every_run_has_flags_of_its_own():
    flags = {(one.weights, *run.train_flags(one)) for one in FULL_GRID}
    assert len(flags) == len(FULL_GRID)


def test_the_name_of_a_run_says_what_it_is():
    one = run.Run("runs/x/ettin-17m", "chat", "cls", "single", "full", None, 0, 4)
    assert one.key == "ettin-17m chat cls single full freeze-recipe pairs-all seed-4"


def test_the_flags_of_a_run_on_fewer_pairs_make_more_passes():
    one = run.Run("nano", "safety", pairs=100, seed=2)
    # 8 passes over 1000 pairs; sqrt(1000 / 100) = 3.162 times as many
    assert " ".join(run.train_flags(one)) == (
        "--domain safety --head cloze --context pair --adapter dora --seed 2 --limit 100 "
        "--data nano --device cpu --epochs 25.3 --freeze 1 --rank 16 --alpha 16 --lr 5e-3")


def test_the_flags_of_another_model_take_your_files_and_more_flags():
    one = run.Run("ettin-17m", "chat", adapter="full", freeze=None, pairs=0)
    assert " ".join(run.train_flags(one, ["a.jsonl", "b.jsonl"], "--epochs 3")) == (
        "--domain chat --head cloze --context pair --adapter full --seed 1 "
        "--freeze 0 --lr 8e-5 --data a.jsonl b.jsonl --epochs 3")


def test_the_first_seed_of_what_matters_most_comes_first():
    first = FULL_GRID[:25]
    assert all(one.seed == 1 for one in first)
    assert all(one.pairs in (1000, 3000) for one in first)
    assert {one.weights for one in first} == {"nano", "random", "nano-causal"}
    assert {one.context for one in first} == {"pair", "single"}


def test_runs_on_fewer_pairs_come_after_those_on_all():
    fewer = [one.pairs < 1000 for one in FULL_GRID if one.weights not in run.SIZES]
    assert fewer == sorted(fewer)


def test_the_records_that_are_shipped_are_those_of_the_grid():
    records = read_json(run.RECORDS / "nano.json")
    for one in FULL_GRID:
        assert records[one.key]["flags"] == " ".join(run.train_flags(one)), one.key
    names = {one.key for one in FULL_GRID} | {run.merge_name(seed) for seed in (1, 2, 3)}
    assert set(records) == names


# --- what is made, and what is not made again ------------------------------------------------


class Bench(NamedTuple):
    """An empty place for records, where runs are not trained."""

    path: object  # of nano.json
    made: list  # the names of the runs that were made

    def records(self):
        return json.loads(self.path.read_text())


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """`make` is quick here: it leaves an empty folder where a model would stay."""
    made = []

    def make(one, flags, threads):
        made.append(one.key)
        kept = run.kept_model(one)
        if kept is not None:
            kept.mkdir(parents=True)
        return {
            **one._asdict(),
            "flags": " ".join(flags),
            "base": run.version_of_weights("nano"),
            "test": dict.fromkeys(DOMAINS, 0.5 + one.seed / 10),
            "n": dict.fromkeys(DOMAINS, 400),
            "train": 1.0,
            "before": 0.5,
            "parameters": 10,
            "trainable": 5,
            "other context": 0.5,
        }

    monkeypatch.setattr(run, "RECORDS", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path / "kept")
    monkeypatch.setattr(run, "make", make)
    monkeypatch.setattr(run, "merge", lambda seed: None)
    return Bench(tmp_path / "nano.json", made)


def test_most_ends_after_so_many_runs(bench):
    run.main(["claims", "--seeds", "1", "--most", "3"])
    assert len(bench.made) == len(bench.records()) == 3


def test_what_has_a_record_is_not_made_again(bench):
    run.main(["claims", "--seeds", "1", "--most", "3"])
    run.main(["claims", "--seeds", "1"])
    names = [one.key for one in run.grid(["claims"], [1])]
    assert sorted(bench.made) == sorted(names) == sorted(bench.records())


def test_two_jobs_at_once_make_the_same_records(bench):
    run.main(["claims", "--seeds", "1", "--jobs", "2"])
    names = [one.key for one in run.grid(["claims"], [1])]
    assert sorted(bench.records()) == sorted(names)


def test_an_error_leaves_what_was_finished_and_the_next_start_goes_on(bench, monkeypatch):
    make = run.make

    def make_that_fails(one, flags, threads):
        if len(bench.made) == 2:
            raise ValueError("no room")
        return make(one, flags, threads)

    monkeypatch.setattr(run, "make", make_that_fails)
    with pytest.raises(ValueError, match="no room"):
        run.main(["context", "--seeds", "1"])
    assert len(bench.records()) == 2

    monkeypatch.setattr(run, "make", make)
    run.main(["context", "--seeds", "1"])
    assert len(bench.made) == len(set(bench.made)) == 6


def test_specialists_to_merge_are_trained_again_if_their_models_are_gone(bench):
    run.main(["merge", "--seeds", "1"])
    run.main(["merge", "--seeds", "1"])
    assert len(bench.made) == 3
    run.kept_model(run.grid(["merge"], [1])[0]).rmdir()
    run.main(["merge", "--seeds", "1"])
    assert bench.made[3:] == bench.made[:1]


def test_records_of_other_weights_are_named_and_left_out_of_the_tables(bench, capsys):
    run.main(["claims", "--seeds", "1", "--most", "2"])
    records = bench.records()
    first = next(iter(records))
    records[first]["base"] = "0" * 16
    bench.path.write_text(json.dumps(records))
    capsys.readouterr()

    run.main(["--print"])
    printed = capsys.readouterr()
    assert f"1 of 2 records are of other weights than those here and left out, such as {first!r}" \
        in printed.err
    assert "nano: 1 of 213 runs are there" in printed.out


@pytest.mark.parametrize("changes, message", [
    ({"base": "0" * 16}, "has records of other weights: move it away"),
    ({"flags": "--epochs 1"}, "has records of other flags"),
])
def test_records_of_other_weights_or_flags_are_not_added_to(bench, changes, message):
    run.main(["claims", "--seeds", "1", "--most", "2"])
    records = bench.records()
    next(iter(records.values())).update(changes)
    bench.path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=message):
        run.main(["claims"])


def test_a_size_that_was_not_made_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs/experiments")
    with pytest.raises(ValueError, match=r"nano-64 is not there.*make\.py --width 64 --out .*-64"):
        run.version_of_weights("nano-64")


def test_the_version_of_weights_is_the_hash_of_their_files(tmp_path):
    (tmp_path / "model-1.safetensors").write_bytes(b"wei")
    (tmp_path / "model-2.safetensors").write_bytes(b"ghts")
    expected = hashlib.sha256(b"weights").hexdigest()[:16]
    assert run.version_of_weights(str(tmp_path)) == expected


@pytest.mark.parametrize("words, message", [
    (["wishes"], "no group wishes"),
    (["--jobs", "0"], "--jobs 0"),
    (["--model", "ettin-17m"], "--data goes with --model"),
    (["--data", "x"], "--data goes with --model"),
])
def test_wrong_flags_are_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        run.main(words)


# --- real runs -------------------------------------------------------------------------------

SHORT = "--max-steps 2 --batch-size 8 --held-out 12 --max-length 64 --device cpu"


class ShortRun(NamedTuple):
    record: dict
    printed: str
    left: list  # files and folders that stay beside the record


def short_run(model, pairs_file, folder) -> ShortRun:
    """One run of run.py with a model, of two steps."""
    words = ["claims", "--model", str(model), "--data", str(pairs_file), "--domain", "reasoning",
             "--seeds", "1", "--most", "1", "--also", SHORT]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(run, "RECORDS", folder)
        patch.setattr(run, "RUNS", folder / "runs")
        run.main(words)
    (record,) = read_json(folder / f"{model.name}.json").values()
    return ShortRun(record, printed.getvalue(), list((folder / "runs").iterdir()))


@pytest.fixture(scope="module")
def tiny_run(tiny, pairs_file, tmp_path_factory):
    return short_run(tiny, pairs_file, tmp_path_factory.mktemp("records"))


def test_another_model_is_judged_on_the_pairs_that_were_held_out(tiny_run):
    assert 0 <= tiny_run.record["test"]["reasoning"] <= 1
    assert tiny_run.record["n"]["reasoning"] >= 12


def test_the_table_has_the_accuracy_of_the_record(tiny_run):
    accuracy = tiny_run.record["test"]["reasoning"]
    assert f"| cloze dora | {accuracy:.3f} (1) |" in tiny_run.printed
    assert "1 of 6 runs are there" in tiny_run.printed


def test_a_record_knows_the_weights_that_it_began_with(tiny_run, tiny):
    assert tiny_run.record["base"] == run.version_of_weights(str(tiny))


def test_nothing_stays_of_a_run_but_its_record(tiny_run):
    assert tiny_run.left == []


def test_a_record_says_what_training_changed_in_each_layer(tiny_run):
    record = tiny_run.record
    assert len(record["cka"]) == len(record["depth"]) == 3  # layers
    changed = [name for name, _, _ in record["matrices"]]
    assert len(changed) > 4


def test_what_was_frozen_did_not_change(tiny_run):
    record = tiny_run.record
    assert record["cka"][0] == 1.0
    assert not any(".layers.0." in name for name, _, _ in record["matrices"])


def test_a_causal_model_is_trained_by_its_own_command(tiny, pairs_file, tmp_path):
    model = tmp_path / "tiny-causal"
    raw = json.loads((tiny / "config.json").read_text())
    raw["model_type"] = "modernbert-decoder"
    config = CausalModernBERT.config_class.from_json(raw)
    tinyrm.save(CausalModernBERT(config).init_weights(0), model)
    shutil.copyfile(tiny / "tokenizer.json", model / "tokenizer.json")

    record = short_run(model, pairs_file, tmp_path).record
    assert any(name.endswith("q_proj.weight") for name, _, _ in record["matrices"])


def test_a_run_that_fails_shows_the_end_of_its_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    with pytest.raises(ValueError, match="--rank 0: give 1 or more"):
        run.make(run.Run(str(tiny), "chat"), ["--domain", "chat", "--rank", "0"])
    assert list((tmp_path / "runs").iterdir()) == []


# --- the tables ------------------------------------------------------------------------------


@pytest.fixture
def tables(bench, capsys):
    """The tables of 21 runs of the claims, less those of other domains than safety."""
    run.main(["claims", "--most", "21"])
    records = {key: one for key, one in bench.records().items() if one["domain"] == "safety"}
    capsys.readouterr()
    run.show(records, "nano")
    return capsys.readouterr().out


def test_a_cell_has_mean_interval_and_number_of_seeds(tables):
    # by hand: 0.6 and 0.7 have mean 0.65, s = 0.0707, t = 12.706: 12.706 * 0.0707 / sqrt(2) = 0.635
    assert "| cloze dora | 0.650 +- 0.635 (2) | - | - | 1.000 +- 0.000 (2) |" in tables


def test_what_was_not_run_is_a_dash(tables):
    assert "| cls lora | - | - | - | - |" in tables


def test_a_trend_without_two_sizes_was_not_run_yet(tables):
    assert "| safety, cloze dora | not run yet |" in tables


def test_one_seed_has_no_interval():
    assert run.cell({7: 0.25}) == "0.250 (1)"


# --- a few seeds -----------------------------------------------------------------------------


def test_an_interval_is_students():
    mean, half, n = measure.interval([0.9, 0.92, 0.94])
    # s = 0.02, t = 4.303: 4.303 * 0.02 / sqrt(3) = 0.04969
    assert mean == pytest.approx(0.92) and n == 3
    assert half == pytest.approx(0.04969, abs=1e-5)


def test_one_value_has_a_mean_and_no_interval():
    found = measure.interval([0.9])
    assert found.mean == 0.9 and math.isnan(found.half) and found.n == 1


def test_no_value_has_no_mean():
    found = measure.interval([])
    assert math.isnan(found.mean) and found.n == 0


FAR = {1: 0.5, 2: 0.7, 3: 0.9}


@pytest.mark.parametrize("a, b, word", [
    # a tenth less for each seed: the differences agree, though the two overlap widely
    (FAR, {1: 0.399, 2: 0.598, 3: 0.797}, "shows"),
    ({1: 0.399, 2: 0.598, 3: 0.797}, FAR, "is turned round"),
    (FAR, {1: 0.5, 2: 0.8, 3: 0.7}, "does not show"),
    (FAR, {1: 0.4, 7: 0}, "one seed, no verdict"),
    (FAR, {}, "not run yet"),
])
def test_a_verdict_compares_within_a_seed(a, b, word):
    assert measure.verdict(a, b).word == word


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_the_power_law_covers_a_known_exponent(floor):
    x, covered = np.repeat([100, 300, 1000], 5), 0
    for seed in range(30):
        noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(x)))
        law = measure.power_law(x, floor + 3.0 * x**-0.4 * noise, floor, draws=200)
        assert law["b"] == pytest.approx(0.4, abs=0.1)
        assert law["high"] - law["low"] < 0.2
        covered += law["low"] < 0.4 < law["high"]
    assert covered >= 21  # 95 % of 30 are 28; a bootstrap of five points is somewhat narrow


def test_one_point_at_each_x_has_an_exponent_and_no_interval():
    law = measure.power_law([1, 10, 100], [2.0, 0.2, 0.02])
    assert law["a"] == pytest.approx(2) and law["b"] == pytest.approx(1)
    assert math.isnan(law["low"]) and math.isnan(law["high"])


def test_a_power_law_needs_values_above_its_floor():
    with pytest.raises(ValueError, match="above the floor"):
        measure.power_law([1, 2], [0.1, 0.2], floor=0.1)


# --- accuracy, and what is inside ------------------------------------------------------------


class StubJudge:
    """Judges "good" better than "bad", and all others equal."""

    def __init__(self, model, prompt_format, device):
        pass

    def judge(self, items):
        for item in items:
            x = 0.0  # the log-odds that the first response wins
            if "good" in item.responses:
                x = 2.0 if item.responses[0] == "good" else -2.0
            yield Judged(item, np.array([[0.0, x], [-x, 0.0]]))


def test_accuracy_counts_a_tie_as_half(tiny, monkeypatch):
    judge = measure.RewardModel.load(tiny, device="cpu")
    monkeypatch.setattr(measure, "RewardModel", StubJudge)
    right, wrong = data.Pair("", "good", "bad"), data.Pair("", "bad", "good")
    tie = data.Pair("", "bad", "bad")
    assert measure.accuracy(judge, [right, right, wrong, tie]) == 2.5 / 4


def test_cka_sees_no_rotation_and_no_scale():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=random)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=random))[0]
    assert measure.cka(x, 3 * x @ turn + 1) == pytest.approx(1)


def test_cka_sees_another_matrix():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=random)
    assert measure.cka(x, torch.randn(500, 8, generator=random)) < 0.1


def test_a_matrix_that_is_doubled_changes_its_length_and_not_its_direction(tiny):
    base, model = tinyrm.load(tiny), tinyrm.load(tiny)
    with torch.no_grad():
        model.model.layers[1].mlp.Wi.weight.mul_(2)
    assert measure.changed_matrices(base, model) == [["model.layers.1.mlp.Wi.weight", 1.0, 0.0]]


def test_the_last_state_gives_the_verdict_of_the_whole_model():
    judge = measure.RewardModel.load(measure.NANO, device="cpu")
    pairs = measure.test_pairs("chat")[:40]
    batch = data.pack(measure.rows_of(judge.prompt_format, pairs))
    states = measure.states(judge.model, batch)
    depth = measure.accuracy_by_depth(judge.model, judge.prompt_format, batch, states)
    words = torch.tensor(judge.prompt_format.label_ids)
    with torch.inference_mode():
        h = judge.model(batch.tokens, batch.starts, batch.read_at)
        verdicts = judge.model.logits(h, words).argmax(1)
    assert depth[-1] == round((verdicts == batch.labels).double().mean().item(), 4)


# --- specialists as one model ----------------------------------------------------------------


@pytest.fixture(scope="module")
def specialists(tmp_path_factory):
    """Three nanos that differ above their first layer, as folders that a judge opens."""
    folders = {}
    for seed, domain in enumerate(DOMAINS):
        model, folder = tinyrm.load(measure.NANO), tmp_path_factory.mktemp(domain)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in model.model.layers[1:]:
                for p in layer.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=random))
        tinyrm.save(model, folder)
        shutil.copyfile(measure.NANO / "tokenizer.json", folder / "tokenizer.json")
        (folder / "tinyrm.json").write_text(json.dumps({"domain": domain, "max_length": 512}))
        folders[domain] = folder
    return folders


@pytest.fixture(scope="module")
def prompts():
    """200 training prompts of each domain."""
    texts = {}
    for domain in DOMAINS:
        pairs = load_pairs([measure.NANO / f"pairs/{domain}.train.jsonl"])
        texts[domain] = [pair.prompt for pair in pairs[:200]]
    return texts


@pytest.fixture(scope="module")
def merged(specialists, prompts):
    tests = {domain: measure.test_pairs(domain)[:60] for domain in DOMAINS}
    return measure.merged(specialists, 1, tests, prompts)


def test_a_branch_on_the_shared_trunk_is_its_specialist(merged):
    assert merged["apart"] <= 1e-5


def test_the_router_knows_the_domain_of_a_prompt(merged):
    assert min(merged["router"].values()) > 0.8


@pytest.mark.parametrize("domain", DOMAINS)
def test_routed_is_the_specialist_but_for_prompts_that_went_astray(merged, domain):
    lost = abs(merged["routed"][domain] - merged["alone"][domain])
    assert lost <= 1 - merged["router"][domain] + 1e-9


def test_a_shared_trunk_saves_parameters(merged):
    sizes = merged["parameters"]
    assert sizes["shared trunk"] < sizes["separate"] == 3 * 838_396


def test_routing_costs_less_than_asking_all(merged):
    cost = merged["FLOPs a pair"]
    assert cost["one specialist"] < cost["routed"] < cost["all, separate"]


def test_specialists_that_share_fewer_layers_are_refused(specialists, prompts):
    tests = {domain: measure.test_pairs(domain)[:4] for domain in DOMAINS}
    with pytest.raises(ValueError, match="do not share 2 bottom layers"):
        measure.merged(specialists, 2, tests, prompts)


@pytest.fixture(scope="module")
def base_and_experts(specialists):
    experts = [tinyrm.load(folder) for folder in specialists.values()]
    return tinyrm.load(measure.NANO), experts


def matrix_of(model):
    return model.state_dict()["model.layers.2.mlp.Wi.weight"]


def test_adding_no_change_gives_the_base(base_and_experts):
    base, experts = base_and_experts
    assert torch.equal(matrix_of(measure.added(base, experts, 0)), matrix_of(base))


def test_adding_a_third_of_three_changes_gives_the_average(base_and_experts):
    base, experts = base_and_experts
    average = sum(matrix_of(expert) for expert in experts) / 3
    found = matrix_of(measure.added(base, experts, 1 / 3))
    torch.testing.assert_close(found, average, atol=1e-6, rtol=1e-5)


def test_adding_one_change_gives_that_specialist(base_and_experts):
    base, experts = base_and_experts
    found = matrix_of(measure.added(base, experts[:1], 1))
    torch.testing.assert_close(found, matrix_of(experts[0]), atol=1e-6, rtol=1e-5)


def test_the_trunk_costs_what_its_layers_cost():
    config, sizes = tinyrm.read_config(measure.NANO), [40, 60]
    d, f, total = config.hidden_size, config.intermediate_size, sum(sizes)
    # layer 0 sees whole rows: products 4 d^2 + 3 d f a token, attention 2 d a pair of tokens
    layer = total * (4 * d * d + 3 * d * f) + 2 * d * (40**2 + 60**2)
    assert measure.trunk_flops(config, sizes, 1) == 2 * layer
