"""How float32 products are computed on a processor: the choice, where it holds, and that a run
keeps the one that it began with. How many tokens a processor takes at once.

    python -m pytest tests/test_machine.py
"""

import json

import pytest
import torch

import train
from evaluate import RewardModel
from infra import machine
from infra.machine import Machine, MatmulChoice

ON_CPU = Machine(torch.device("cpu"), torch.float32, False, "cpu")
ONE_DNN = MatmulChoice("onednn", "oneDNN (2.00x as quick)")


def setting_now() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


# --- the choice ------------------------------------------------------------------------------


@pytest.mark.parametrize("default_s, onednn_s, onednn_error, backend", [
    (2.0, 1.0, 3.7e-7, "onednn"),  # twice as quick, a rounding of its own
    (1.2, 1.0, 3.7e-7, "default"),  # not by a third
    (0.5, 1.0, 3.7e-7, "default"),  # slower
    (9.0, 1.0, 2.4e-3, "default"),  # bf16 units: quick, and another precision
    (9.0, 1.0, float("nan"), "default"),
])
def test_onednn_is_taken_where_it_is_the_same_and_quicker(default_s, onednn_s, onednn_error,
                                                          backend):
    seconds = {"default": default_s, "onednn": onednn_s}
    errors = {"default": 2.5e-7, "onednn": onednn_error}
    assert machine.quicker_matmul_backend(seconds, errors).backend == backend


def test_the_trial_leaves_torch_and_its_random_numbers_as_they_were():
    machine.time_matmul_backends.cache_clear()
    before, numbers = setting_now(), torch.get_rng_state()
    found = machine.try_matmul_backends(512, torch.get_num_threads())
    assert found.backend in ("default", "onednn") and "x as quick" in found.reason
    assert setting_now() == before and torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("width, dtype, on_gpu", [
    (128, torch.float32, False), (768, torch.bfloat16, False), (768, torch.float32, True)])
def test_small_models_16_bits_and_gpus_are_not_tried(width, dtype, on_gpu, monkeypatch):
    monkeypatch.setattr(machine, "try_matmul_backends", None)
    of_test = ON_CPU._replace(dtype=dtype, on_gpu=on_gpu)
    assert machine.with_matmul_backend(of_test, width) == of_test


# --- where it holds --------------------------------------------------------------------------


def test_the_setting_is_put_back_also_after_an_error():
    before = setting_now()
    with pytest.raises(KeyError), machine.float32_matmul("onednn"):
        assert setting_now() == "bf16"
        raise KeyError
    assert setting_now() == before


def test_the_default_leaves_what_the_user_set():
    with machine.float32_matmul("onednn"):  # as a user may have set it
        with machine.float32_matmul("default"):
            assert setting_now() == "bf16"


@pytest.fixture
def quick_onednn(monkeypatch):
    """A machine on which every model takes oneDNN, which rounds as float32 does there."""
    trial = machine.MatmulTrial({"default": 2.0, "onednn": 1.0},
                                {"default": 2.5e-7, "onednn": 2.5e-7})
    monkeypatch.setattr(machine, "WIDE", 0)
    monkeypatch.setattr(machine, "try_matmul_backends", lambda width, threads: ONE_DNN)
    monkeypatch.setattr(machine, "time_matmul_backends", lambda width, threads: trial)


def test_opening_a_model_tries_nothing_and_sets_nothing(tiny, quick_onednn, monkeypatch):
    monkeypatch.setattr(machine, "try_matmul_backends", None)
    before = setting_now()
    RewardModel.load(tiny, device="cpu").compare("one", "two", "three")
    assert setting_now() == before


# --- a run keeps it --------------------------------------------------------------------------


@pytest.fixture
def settings_in_steps(monkeypatch):
    """A list that grows by the setting in each training step."""
    seen = []
    train_step = train.train_step

    def watched(*args):
        seen.append(setting_now())
        return train_step(*args)

    monkeypatch.setattr(train, "train_step", watched)
    return seen


def stopped_run(argv, tmp_path, monkeypatch):
    """The run.json of a run of six steps that was stopped after three."""
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(SystemExit):
            train.main(argv)
    return tmp_path / "run/run.json"


def stop_after(steps, monkeypatch):
    """train.main ends with a KeyboardInterrupt in the step after, with all before saved."""
    logged, log = [], train.RunFolder.log

    def stopping(self, line, dropped):
        log(self, line, dropped)
        self.save(line["step"])
        logged.append(line)
        if len(logged) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.RunFolder, "log", stopping)


def test_a_run_that_goes_on_computes_as_it_began(flags, tmp_path, quick_onednn, settings_in_steps,
                                                 monkeypatch):
    record = json.loads(stopped_run(flags(), tmp_path, monkeypatch).read_text())
    assert record["products"] == "onednn" and record["device"].endswith(ONE_DNN.reason)

    # the machine is busy now, and would choose otherwise
    default = MatmulChoice("default", "")
    monkeypatch.setattr(machine, "try_matmul_backends", lambda width, threads: default)
    train.main(["--resume", str(tmp_path / "run")])
    assert settings_in_steps == ["bf16"] * 6
    assert setting_now() != "bf16"


@pytest.mark.parametrize("products", [None, "MKL"])
def test_a_run_whose_products_are_damaged_is_refused(flags, tmp_path, monkeypatch, products):
    file = stopped_run(flags(), tmp_path, monkeypatch)
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"products": products}))
    with pytest.raises(ValueError, match="products is damaged"):
        train.main(["--resume", str(tmp_path / "run")])


@pytest.fixture
def half_a_run(flags, tmp_path, quick_onednn, monkeypatch):
    """The run.json of a run that stopped after three steps, with oneDNN's products."""
    return stopped_run(flags(), tmp_path, monkeypatch)


def test_a_run_does_not_go_on_where_its_products_round_to_bf16(half_a_run, monkeypatch):
    trial = machine.MatmulTrial({"default": 2.0, "onednn": 1.0},
                                 {"default": 2.5e-7, "onednn": 2.4e-3})
    monkeypatch.setattr(machine, "time_matmul_backends", lambda width, threads: trial)
    with pytest.raises(ValueError, match="rounds to bf16 on this processor: go on where it began"):
        train.main(["--resume", str(half_a_run.parent)])


def test_a_run_does_not_go_on_in_another_precision(half_a_run):
    record = json.loads(half_a_run.read_text())
    assert record["dtype"] == "float32"
    half_a_run.write_text(json.dumps(record | {"dtype": "bfloat16"}))
    with pytest.raises(ValueError, match="computed in bfloat16, and would go on in float32 here"):
        train.main(["--resume", str(half_a_run.parent)])


@pytest.mark.parametrize("dtype", [None, 7, "a\nb", "float16"])
def test_a_run_whose_precision_is_damaged_is_refused(half_a_run, dtype):
    record = json.loads(half_a_run.read_text())
    half_a_run.write_text(json.dumps(record | {"dtype": dtype}))
    with pytest.raises(ValueError, match="dtype is damaged"):
        train.main(["--resume", str(half_a_run.parent)])


def test_a_run_of_before_does_not_say_its_precision_and_goes_on(half_a_run):
    record = json.loads(half_a_run.read_text())
    del record["dtype"]
    half_a_run.write_text(json.dumps(record))
    train.main(["--resume", str(half_a_run.parent)])
    assert json.loads(half_a_run.read_text())["result"]["accuracy_after"] is not None


# --- tokens at once --------------------------------------------------------------------------


@pytest.mark.parametrize("width, tokens", [(128, 4096), (768, 2048), (1024, 2048)])
def test_a_processor_takes_fewer_tokens_of_a_wide_model(width, tokens):
    assert machine.cpu_tokens(width) == tokens
