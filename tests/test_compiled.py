"""Small functions under torch.compile (--compile): the same results to rounding, a run and a judge
that keep them, and one line where torch cannot compile.

    python -m pytest tests/test_compiled.py
"""

import json

import pytest
import torch
from oracles import random_rows
from test_machine import stopped_run

import dora
import evaluate
import tinyrm
import train
from infra import compiled
from infra.compiled import SMALL_FUNCTIONS, check_compiles, compiled_functions
from infra.hub import ROOT


@pytest.fixture(scope="module")
def compiler():
    """Skips where torch has none."""
    try:
        check_compiles("cpu")
    except ValueError as error:
        pytest.skip(str(error))


def are_compiled() -> bool:
    return all(getattr(one.module, one.name) is not one.plain for one in SMALL_FUNCTIONS)


def judged_and_learned(dtype) -> list[torch.Tensor]:
    """Logits of a judge, and a training step's logits and gradients, of nano under DoRA."""
    model = tinyrm.load(ROOT / "nano")
    dora.adapt(model, "dora", rank=4, alpha=8.0, freeze=1)
    model.set_compute_dtype(dtype)
    _, tokens, starts, read_at = random_rows([150, 40, 90])
    with torch.inference_mode():
        judged = model.logits(model(tokens, starts, read_at)).float()
    learned = model.logits(model(tokens, starts, read_at)).float()
    learned.logsumexp(1).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    return [judged, learned.detach(), *gradients]


# --- the same results ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, most", [
    pytest.param(torch.float32, 1e-4, marks=pytest.mark.slow), (torch.bfloat16, 0.05)])
def test_compiled_functions_give_what_the_plain_ones_give(dtype, most, compiler):
    plain = judged_and_learned(dtype)
    with compiled_functions(True):
        assert are_compiled()
        ours = judged_and_learned(dtype)
    assert not are_compiled()
    for mine, right in zip(ours, plain, strict=True):
        assert (mine - right).norm() <= most * right.norm()


def test_one_function_serves_all_numbers_of_tokens(compiler):
    def check_with(tokens):
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, 2, 8, generator=generator)
        angle = torch.randn(tokens, 1, 4, generator=generator)
        given = (x, angle.cos(), angle.sin())
        torch.testing.assert_close(compiled.compiled(tinyrm.rotate)(*given), tinyrm.rotate(*given))

    check_with(7)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_with(20)
        check_with(33)


def test_the_functions_are_put_back_also_after_an_error(compiler):
    with pytest.raises(KeyError), compiled_functions(True):
        raise KeyError
    assert not are_compiled()


# --- runs and judges -------------------------------------------------------------------------


def test_a_run_and_its_judge_name_what_is_compiled_and_keep_it(flags, tmp_path, compiler,
                                                               monkeypatch):
    seen, train_step = [], train.train_step

    def watched(*args):
        seen.append(are_compiled())
        return train_step(*args)

    monkeypatch.setattr(train, "train_step", watched)
    stopped_run(flags(compile=True), tmp_path, monkeypatch)
    train.main(["--resume", str(tmp_path / "run")])
    assert seen == [True] * 6 and not are_compiled()
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["settings"]["compile"] and "compiled (asked for): rotate, " in record["device"]

    plain = evaluate.RewardModel.load(tmp_path / "run", device="cpu")
    judge = evaluate.RewardModel.load(tmp_path / "run", device="cpu", compile=True)
    assert "compiled" not in plain.about["device"] and "compiled" in judge.about["device"]
    asked = ("one or two?", "two", "one")
    assert judge.compare(*asked) == pytest.approx(plain.compare(*asked), abs=1e-5)


def test_a_run_of_before_there_was_the_flag_goes_on_without(flags, tmp_path, monkeypatch):
    file = stopped_run(flags(), tmp_path, monkeypatch)
    record = json.loads(file.read_text())
    del record["settings"]["compile"]
    file.write_text(json.dumps(record))
    train.main(["--resume", str(tmp_path / "run")])
    assert json.loads(file.read_text())["settings"]["compile"] is False


# --- no compiler -----------------------------------------------------------------------------


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    """A machine without a C++ compiler, on which nothing was compiled before."""
    from torch._inductor import config

    def forget():
        torch.compiler.reset()
        compiled.compiled.cache_clear()
        check_compiles.cache_clear()

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        yield
    forget()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_without_a_compiler_one_line_names_the_flag(command, flags, tiny, tmp_path, no_compiler):
    with pytest.raises(ValueError, match="--compile: torch cannot compile rotate here .*compiler"
                                         ".*: leave --compile out") as caught:
        if command == "train":
            train.main(flags(compile=True))
        else:
            evaluate.main([str(tiny), "--device", "cpu", "--compile", "--ask", "p", "a", "b"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and not are_compiled()
