"""How accuracy grows: the laws of points whose exponents are known, and where a twin is level.

    python -m pytest tests/test_scaling.py
"""

import pytest

import tinyrm
from experiments import run, scaling
from experiments.fit import Cell
from experiments.scaling import Point
from infra.hub import ROOT


def points_of(model, pairs, errors, is_causal=False, parameters=10, flops=1.0):
    return [Point(model, is_causal, parameters, pairs, seed, flops, error)
            for seed, error in enumerate(errors, 1)]


def test_the_exponent_of_a_known_law(capsys):
    """error = pairs^-1/2, and with FLOPs that grow as pairs^2, FLOPs^-1/4."""
    points = []
    for pairs in (100, 300, 1000):
        points += points_of("one", pairs, [pairs**-0.5] * 2, flops=float(pairs**2))
    scaling.show_laws(points)
    printed = capsys.readouterr().out
    assert "| training pairs | one | 0.50 [0.50, 0.50] | 6 |" in printed
    assert "| FLOPs of training | one | 0.25 [0.25, 0.25] | 6 |" in printed
    assert "| parameters |" not in printed  # of one size


def test_a_law_over_sizes_is_of_one_kind_and_one_budget(capsys):
    points = points_of("small", 100, [0.2], parameters=100)
    points += points_of("large", 100, [0.1], parameters=200)
    points += points_of("twin", 100, [0.4], parameters=100, is_causal=True)
    scaling.show_laws(points)
    assert "| parameters |" not in capsys.readouterr().out  # a line goes through any two sizes

    points += points_of("larger", 100, [0.05], parameters=400)
    scaling.show_laws(points)
    printed = capsys.readouterr().out
    assert "| parameters | encoders, 100 pairs | 1.00 [" in printed
    assert "twins, 100" not in printed


def test_a_run_without_an_error_has_no_law(capsys):
    scaling.show_laws(points_of("one", 30, [0.2]) + points_of("one", 100, [0.1])
                      + points_of("one", 300, [0.0]))
    assert "| training pairs | one | none: a run without an error | 3 |" in capsys.readouterr().out


@pytest.mark.parametrize("of_the_larger, sentence", [
    ([0.30, 0.31], "the twin is still behind at the largest size, large"),
    ([0.10, 0.11], "the interval reaches 0 from large on")])
def test_from_which_size_the_twin_is_level(of_the_larger, sentence, capsys):
    points = points_of("small", 100, [0.10, 0.11])
    points += points_of("small-twin", 100, [0.30, 0.31], is_causal=True)
    points += points_of("large", 100, [0.10, 0.11])
    points += points_of("large-twin", 100, of_the_larger, is_causal=True)
    scaling.show_twins(points, [("small", "small-twin"), ("large", "large-twin")])
    printed = capsys.readouterr().out
    assert sentence in printed
    assert "| small | 100 | 2 | +0.200 ± 0.000 |" in printed


def test_the_twins_are_those_of_the_contrasts():
    assert scaling.twins_of(["nano-instruct", "nano"]) == []
    assert scaling.twins_of(scaling.NANOS) == [("nano-instruct-64", "nano-causal-64"),
                                               ("nano-instruct", "nano-causal")]


def test_a_size_is_what_the_files_say():
    model = tinyrm.load(ROOT / "nano")
    size = scaling.size_of_model("nano")
    assert size.parameters == sum(p.numel() for p in model.parameters())
    # every matrix of a layer multiplies each token once
    in_layers = [p.numel() for layer in model.model.layers for p in layer.parameters()
                 if p.ndim == 2]
    assert size.flops_of_token == 2 * sum(in_layers) and not size.is_causal


def test_the_size_of_a_width_that_was_not_made_here(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)  # no runs/ in it
    twin = scaling.size_of_model("nano-causal-64")
    encoder = scaling.size_of_model("nano-instruct-64")
    assert twin.is_causal and not encoder.is_causal
    made = scaling.make.new_model(scaling.config_of("nano-causal-64"), seed=0)
    assert twin.parameters == sum(p.numel() for p in made.parameters())
    # four layers of 64: Wqkv and Wo of attention, Wi and Wo of 96
    assert twin.flops_of_token == encoder.flops_of_token == 2 * 4 * (4 * 64 * 64 + 3 * 64 * 96)


def test_a_point_needs_all_domains():
    def record(domain, accuracy):
        return {"accuracy": {domain: accuracy}, "tokens": 1000}

    records, cell = {}, Cell("nano", "chat", 30)
    job = run.Job(cell, 1, 5e-3, "test")
    records[job.key] = record("chat", 0.75)
    rates = {run.method_of(cell): 5e-3}
    assert scaling.points_of("nano", ["chat", "safety"], records, rates) == []
    (point,) = scaling.points_of("nano", ["chat"], records, rates)
    assert (point.pairs, point.seed, point.error) == (30, 1, 0.25)
    assert point.flops == 3 * 1000 * scaling.size_of_model("nano").flops_of_token


def test_without_runs_it_says_how_to_make_them(monkeypatch):
    monkeypatch.setattr(run, "read_records", lambda *args, **names: {})
    with pytest.raises(ValueError, match="no runs of nano yet.*run.py causal --model ENCODER"):
        scaling.main(["--model", "nano"])
