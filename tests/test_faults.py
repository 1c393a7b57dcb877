"""What goes wrong around a run: two at work on one folder, files that changed or are damaged,
weights and settings that do not fit. Each is one line that says what to do, and nothing is lost.

    pytest tests/test_faults.py
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import data
import dora
import evaluate
import tinyrm
import train
from infra.checks import check_model
from infra.files import replacing
from infra.hub import ROOT, fetch_model


@pytest.fixture
def stopped(flags, tmp_path, monkeypatch):
    """stopped(**changes): the folder of a run that ended after three of its six steps."""

    def begin(**changes):
        steps = []
        whole_step = train.train_step

        def three_steps(*args):
            steps.append(1)
            if len(steps) > 3:
                raise ValueError("as if killed")
            return whole_step(*args)

        monkeypatch.setattr(train, "train_step", three_steps)
        with pytest.raises(ValueError, match="as if killed"):
            train.main(flags(save_minutes=0, **changes))
        monkeypatch.setattr(train, "train_step", whole_step)
        return tmp_path / "run"

    return begin


def states(run):
    return sorted(path.name for path in (run / "state").iterdir())


# --- two at work -----------------------------------------------------------------------------


def test_a_run_that_another_process_is_at_is_not_resumed(stopped):
    run = stopped()
    hold = ("import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.flock(file, fcntl.LOCK_EX); "
            "print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", hold, str(run / "lock")], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {os.getpid()} is at work on it"):
            train.main(["--resume", str(run)])
        other.stdin.close()
    train.main(["--resume", str(run)])  # the other one is gone


def test_a_folder_that_appears_meanwhile_is_not_taken(flags, tmp_path, monkeypatch):
    # between the choice of a name and the start of the run, as when two are begun together
    load = tinyrm.load

    def slow_load(*args, **keywords):
        (tmp_path / "run").mkdir()
        return load(*args, **keywords)

    monkeypatch.setattr(tinyrm, "load", slow_load)
    with pytest.raises(ValueError, match="run is already there: give another, or --resume"):
        train.main(flags())
    assert list((tmp_path / "run").iterdir()) == []


# --- what a run rests on changed -------------------------------------------------------------


def test_other_weights_of_the_same_shape_are_not_resumed_on(stopped, tiny, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    run = stopped(model=base)
    model = tinyrm.load(base)
    model.model.final_norm.weight.data.mul_(2)
    tinyrm.save(model, base)
    with pytest.raises(ValueError, match="its model's weights or config.json changed since then"):
        train.main(["--resume", str(run)])


def test_another_number_of_heads_is_not_resumed_on(stopped, tiny, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    run = stopped(model=base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    with pytest.raises(ValueError, match="its model's weights or config.json changed since then"):
        train.main(["--resume", str(run)])


def test_swapped_sides_are_not_resumed_on(stopped, pairs_file, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(pairs_file.read_bytes())
    run = stopped(data=mine)
    rows = [json.loads(line) for line in mine.read_text().splitlines()]
    rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="its pairs changed since then"):
        train.main(["--resume", str(run)])


# --- the state -------------------------------------------------------------------------------


def test_a_damaged_state_gives_way_to_the_one_before(stopped, capsys):
    run = stopped()
    (saved,) = (run / "state").iterdir()
    newest = saved.with_name("step-000005.safetensors")  # as if the power failed while it was saved
    newest.write_bytes(saved.read_bytes()[:1000])
    train.main(["--resume", str(run)])
    printed = capsys.readouterr().out
    assert f"{newest} cannot be read" in printed and "going on after step 3" in printed


def test_a_run_whose_only_state_is_damaged_says_so(stopped):
    run = stopped()
    (saved,) = (run / "state").iterdir()
    saved.write_bytes(b"torn")
    with pytest.raises(ValueError, match="step-000003.* cannot be read .* remove it, and"):
        train.main(["--resume", str(run)])


def test_files_of_others_stay_in_the_state_folder(stopped):
    run = stopped()
    (run / "state/notes.txt").write_text("mine")
    (run / "state/step-best").mkdir()
    train.main(["--resume", str(run)])
    assert states(run) == ["notes.txt", "step-000006.safetensors", "step-best"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("sync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert order == ["sync", "replace", "sync"]  # the file; its place; the folder


def test_a_link_where_the_temporary_file_stands_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    (tmp_path / "model.tinyrm.tmp").symlink_to(outside)
    with replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert (outside / "precious").read_text() == "kept"
    assert (tmp_path / "model/new").read_text() == "new" and not (tmp_path / "model").is_symlink()


# --- settings and weights that do not fit ----------------------------------------------------


def test_rows_longer_than_the_models_positions_are_refused_before_the_run(flags, tiny, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 100}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="--max-length 200: .* ends at 100 tokens"):
        train.main(flags(model=base, max_length=200))
    train.main(flags(model=base))  # what is not given is what fits
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["settings"]["max_length"] == 100


def test_a_run_that_trains_on_nothing_does_not_succeed(flags, tmp_path):
    same = tmp_path / "same.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": "one", "rejected": "one"} for i in range(12)]
    same.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="nothing was trained on"):
        train.main(flags(data=same, held_out=2))


def test_a_run_that_trains_on_nothing_does_not_succeed_when_it_is_resumed(flags, tmp_path):
    same = tmp_path / "same.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": "one", "rejected": "one"} for i in range(12)]
    same.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="nothing was trained on"):
        train.main(flags(data=same, held_out=2, save_minutes=0))
    assert list((tmp_path / "run/state").iterdir())  # of the last step
    with pytest.raises(ValueError, match="nothing was trained on"):
        train.main(["--resume", str(tmp_path / "run")])


def test_a_run_that_trained_on_something_may_end_in_steps_without_rows(flags, tmp_path,
                                                                       monkeypatch):
    train_step, steps = train.train_step, []

    def stop_before_the_second(*args):
        if steps:
            raise KeyboardInterrupt
        steps.append(1)
        return train_step(*args)

    monkeypatch.setattr(train, "train_step", stop_before_the_second)
    with pytest.raises(SystemExit):
        train.main(flags(max_steps=2, save_minutes=0))
    monkeypatch.setattr(train, "train_step", lambda *args: train_step(*args)._replace(rows=0))
    train.main(["--resume", str(tmp_path / "run")])
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_without_held_out_pairs_there_is_no_accuracy(flags, tmp_path, capsys):
    train.main(flags(held_out=0))
    text = (tmp_path / "run/run.json").read_text()
    assert "NaN" not in text and json.loads(text)["result"]["accuracy_after"] is None
    assert "no test pairs" in capsys.readouterr().out
    assert "no test pairs" in (tmp_path / "run/model/README.md").read_text()


def test_a_rank_left_over_in_the_environment_changes_nothing(flags, tmp_path):
    environment = {**os.environ, "RANK": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("WORLD_SIZE", None)
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *flags()], env=environment,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_a_classifier_that_pools_the_mean_is_refused(tiny, tmp_path):
    raw = json.loads((tiny / "config.json").read_text())
    raw["classifier_pooling"] = "mean"  # as in the Hub's masked language models, where it is unused
    assert tinyrm.Config.from_json(raw).saved_head == "cloze"
    raw["architectures"] = ["ModernBertForSequenceClassification"]
    with pytest.raises(ValueError, match="reads \\[CLS\\] here, not the mean"):
        tinyrm.Config.from_json(raw)


def test_a_row_of_zeros_stays_one_under_dora():
    base = tinyrm.Linear(6, 4)
    with torch.no_grad():
        base.weight[2] = 0
    layer = dora.AdaptedLinear(base, 2, 2.0)
    optimizer = torch.optim.AdamW([layer.A, layer.B, layer.m], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.ones(5, 6)) - 1).square().sum().backward()
        optimizer.step()
    weight = layer.merged_weight().weight
    assert weight.isfinite().all() and not weight[2].any()
    assert not torch.allclose(weight[0], base.weight[0])


def test_another_weights_file_in_the_folder_is_not_read(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    state = load_file(folder / "model.safetensors")
    save_file({name: w + 1 for name, w in state.items()}, folder / "model_old.safetensors")
    for name, w in tinyrm.load(folder).state_dict().items():
        assert torch.equal(w, state[name])


def test_the_shards_that_an_index_names_are_read(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    weight_map = {}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, w in tinyrm.load(folder).state_dict().items():
        assert torch.equal(w, state[name])


# --- what is judged with ---------------------------------------------------------------------


@pytest.fixture
def copy(tiny, tmp_path):
    """A model folder of one's own, to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    return folder


def change_json(file, **changes):
    raw = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(raw | changes))


def test_a_fresh_classifier_does_not_judge(copy):
    change_json(copy / "tinyrm.json", head="cls")
    with pytest.raises(ValueError, match="tinyrm.json: head cls, but .* without a classifier"):
        evaluate.RewardModel.load(copy, device="cpu")


def test_weights_that_are_no_numbers_are_named(copy):
    state = load_file(copy / "model.safetensors")
    state["decoder.bias"][3] = torch.nan
    save_file(state, copy / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors: decoder.bias is not all finite"):
        tinyrm.load(copy)


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(copy):
    change_json(copy / "config.json", vocab_size=100)
    with pytest.raises(ValueError, match="tokenizer.json has the token id .* vocab_size .* is 100"):
        check_model(copy)


@pytest.mark.parametrize("changes, message", [
    (dict(rope_scaling={"rope_type": "yarn", "factor": 4}), "rope_scaling"),
    (dict(num_hidden_layers=10**12), "num_hidden_layers"),
    (dict(vocab_size="16"), "vocab_size"),
    (dict(sliding_window=7), "sliding_window"),
    (dict(decoder_bias=False), "decoder_bias"),
    (dict(head_dim=17), "head_dim is 17"),
    (dict(architectures=["ModernBertForTokenClassification"]),
     "architectures names 'ModernBertForTokenClassification'"),
])
def test_a_key_that_changes_the_result_is_refused_by_name(copy, changes, message):
    change_json(copy / "config.json", **changes)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        check_model(copy)
        tinyrm.load(copy)


def test_another_key_is_named_once_and_ignored(copy, capsys):
    change_json(copy / "config.json", novelty=3, nothing=None)
    check_model(copy)
    check_model(copy)
    assert capsys.readouterr().out.count("ignored: 'novelty'") == 1


def test_a_file_that_is_larger_than_its_config_says_is_not_read(copy):
    with open(copy / "model.safetensors", "r+b") as file:
        file.truncate(3 * 2**30)  # it has holes, and takes no room on the disk
    with pytest.raises(ValueError, match="has 3,221,225,472 bytes, where config.json asks"):
        check_model(copy)


def test_files_that_are_not_read_do_not_count(copy):
    with open(copy / "model-q8.safetensors", "wb") as file:
        file.truncate(3 * 2**30)
    check_model(copy)


@pytest.mark.parametrize("key, value", [
    ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("rank_pattern", {"Wi": 4}),
    ("modules_to_save", ["embeddings"]), ("task_type", "TOKEN_CLS"), ("something_new", 1),
    ("task_type", "SEQ_CLS"),
])
def test_an_adapter_of_another_kind_is_refused_by_name(copy, tmp_path, key, value):
    model = tinyrm.load(copy)
    dora.adapt(model, rank=2)
    dora.save_adapter(model, tmp_path / "adapter", str(copy))
    dora.load_adapter(tinyrm.load(copy), tmp_path / "adapter")
    change_json(tmp_path / "adapter/adapter_config.json", **{key: value})
    with pytest.raises(ValueError, match=f"adapter_config.json: .*{key}"):
        dora.load_adapter(tinyrm.load(copy), tmp_path / "adapter")


@pytest.mark.parametrize("targets, message", [
    (r".*layers\.\d+\.attn\.Wqkv|.*dense", "names 'model.layers.1.attn.Wqkv', for which"),
    ("all-linear", "names 'model.layers.1.attn.Wqkv', for which"),
    ("(", r"adapter_config.json: target_modules '\(' is no regular expression"),
])
def test_targets_as_one_text_are_looked_for_in_the_tensors(copy, tmp_path, targets, message):
    model = tinyrm.load(copy)
    dora.adapt(model, rank=2)
    folder = tmp_path / "adapter"
    dora.save_adapter(model, folder, str(copy))
    change_json(folder / "adapter_config.json", target_modules="all-linear")
    dora.load_adapter(tinyrm.load(copy), folder)

    state = load_file(folder / "adapter_model.safetensors")
    state = {name: tensor for name, tensor in state.items() if "layers.1.attn.Wqkv" not in name}
    save_file(state, folder / "adapter_model.safetensors")
    change_json(folder / "adapter_config.json", target_modules=targets)
    with pytest.raises(ValueError, match=message):
        dora.load_adapter(tinyrm.load(copy), folder)


def test_the_base_of_an_adapter_may_be_given_from_where_it_is(copy, tmp_path):
    model = tinyrm.load(copy)
    dora.adapt(model, rank=2)
    dora.save_adapter(model, tmp_path / "adapter", "../copy")
    assert evaluate.base_folder(tmp_path / "adapter").resolve() == copy


def test_a_model_that_does_not_exist_is_found_before_the_first_judges(tiny, pairs_file, tmp_path):
    with pytest.raises(ValueError, match="/no/such: no such folder"):
        evaluate.main([str(tiny), "/no/such", str(pairs_file), "--out", str(tmp_path / "out")])


def test_a_lone_response_wins_half():
    item = data.Item("p", ("only",))
    judged = evaluate.Judged(item, torch.zeros(1, 1).numpy())
    assert judged.mean_win_probability().tolist() == [0.5]


def test_a_password_of_the_hub_is_not_printed(monkeypatch):
    def fail(*_, **__):
        raise OSError("https://me:secret@hub.example/api: no answer")

    monkeypatch.setattr("infra.hub.snapshot_download", fail)
    with pytest.raises(ValueError, match="//hub.example/api") as error:
        fetch_model("org/name")
    assert "secret" not in str(error.value)


def test_a_name_with_a_line_break_is_no_run(flags, tmp_path):
    with pytest.raises(ValueError, match="--out .*without line breaks"):
        train.main(flags(out=tmp_path / "a\nb"))


def test_states_behind_a_link_are_left_alone(stopped, tmp_path):
    run = stopped()
    shutil.move(run / "state", tmp_path / "elsewhere")
    (run / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="state is a link"):
        train.main(["--resume", str(run)])
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


@pytest.mark.parametrize("step", [4, 9, 1234567])
def test_a_state_of_another_step_than_its_name_is_refused(stopped, step):
    run = stopped()
    (saved,) = (run / "state").iterdir()
    saved.rename(saved.with_name(f"step-{step:06d}.safetensors"))
    with pytest.raises(ValueError, match=f"step-.*{step}.safetensors is no state of this run"):
        train.main(["--resume", str(run)])


# --- promises as they are --------------------------------------------------------------------


@pytest.mark.parametrize("dtype, most", [("fp32", 1e-5), ("bf16", 0.12)])
def test_a_score_depends_on_its_batch_by_rounding_alone(pairs_file, dtype, most):
    judge = evaluate.RewardModel.load("nano", device="cpu", dtype=dtype)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    pairs = [data.Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    rows_of_pairs, _ = judge.prompt_format.rows(pairs)
    alone = [judge.score_batch(data.pack([row_0]))[0] for row_0, _ in rows_of_pairs]
    together = judge.score_batch(data.pack([row_0 for row_0, _ in rows_of_pairs]))
    assert together == judge.score_batch(data.pack([row_0 for row_0, _ in rows_of_pairs]))
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) <= most
