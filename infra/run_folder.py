"""The folder of a run: what it leaves, and what resuming needs.

    runs/NAME/run.json         settings, versions, sources, results
              metrics.jsonl    a line a step
              lock             held by the process that is at work here
              state/           the newest trained weights and optimizer moments
              model/           the merged model, which opens in transformers
              adapter/         the adapter, which opens in peft (none after full fine-tuning)

model/ and adapter/ also hold the tokenizer, a card, and tinyrm.json: how a pair is shown to this
model.

Only rank 0 writes.
"""

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import dora
import tinyrm
from data import TEMPLATES, PromptFormat
from infra import distributed
from infra.card import model_card
from infra.checks import shapes_in
from infra.compiled import compiled_functions
from infra.files import replacing, sha256_of, write_json
from infra.flags import OURS, Programs, check_stored, has_controls, option
from infra.hub import MODEL_NAMES, commit_of, version_of
from infra.intervals import wilson
from infra.machine import (
    Machine,
    check_matmul_backend,
    count_parameters,
    float32_matmul,
    with_matmul_backend,
)
from infra.pairs import fingerprint
from infra.sources import PairSets
from infra.tables import read_rows
from tinyrm import Field, ModernBERT, read_json

FORMAT = 3  # of run.json and state/: goes up when an older unfinished run cannot be resumed
# the last commit that can resume each older format; None: runs from before formats had numbers
LAST_COMMITS = {2: "cc59452", None: "4a59190"}
# Settings that change time and memory, not the result: --resume takes them. Data may have moved:
# they must have the same fingerprint.
MAY_CHANGE = ("device", "micro_tokens", "checkpoint_layers", "data")
# Settings that came later than format 3, with what runs of before were begun with.
ADDED_SETTINGS = {"question": "", "compile": False}
RECORD_FIELDS = {"settings": Field(dict), "result": Field(dict), "format": Field(int)}
RESULT_FIELDS = ("n", "accuracy_before", "loss_before")
PACKAGES = ("torch", "tokenizers", "safetensors", "huggingface_hub")  # whose versions are kept
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

# ----------------------------------------------------------------------------- beginning, resuming


def free_folder(settings: Any, usual_adapter: str) -> str:
    """runs/MODEL-DOMAIN-...-sSEED, naming what is not usual, with a number behind it where that is
    taken."""
    parts = [Path(settings.model).name, settings.domain]
    if settings.adapter != usual_adapter:
        parts.append(settings.adapter)
    if settings.head != "cloze":
        parts.append(settings.head)
    if settings.context != "pair":
        parts.append(settings.context)
    if settings.question:
        parts.append("question")

    stem = f"runs/{'-'.join(parts)}-s{settings.seed}"
    folder, number = stem, 1
    while os.path.exists(folder):
        number += 1
        folder = f"{stem}-{number}"
    return folder


def read_record(folder: str, given: dict, settings_class: type) -> dict:
    """The run.json of a run that is to go on, with the settings that are given anew. ValueError for
    a run that cannot go on, and for settings that `settings_class` cannot have."""
    others = [option(name) for name in given if name not in MAY_CHANGE]
    if others:
        raise ValueError(f"--resume goes on as {folder} was begun: leave out {', '.join(others)}")
    beginnings = {"lock", "run.json.tinyrm.tmp"}  # what a run that was killed at once may leave
    if os.path.isdir(folder) and set(os.listdir(folder)) <= beginnings:
        raise ValueError(f"--resume {folder}: nothing to resume: remove the folder and begin again")
    try:
        record = read_json(Path(folder, "run.json"), RECORD_FIELDS)
    except ValueError as error:
        raise ValueError(f"--resume {folder}: no readable run.json in it ({error})") from None
    if "accuracy_after" in (record.get("result") or {}):
        raise ValueError(f"--resume {folder}: this run is finished; judge it with evaluate.py")
    number = record.get("format")
    if number is not None and number > FORMAT:
        raise ValueError(f"--resume {folder}: begun by a later version (format {number}): take that"
                         " one, or begin a new run")
    if number is not None and number < 1:
        raise ValueError(f"{folder}/run.json: format is damaged: restore it, or begin a new run")
    if number != FORMAT:
        commit = LAST_COMMITS.get(number, LAST_COMMITS[None])
        raise ValueError(f"--resume {folder}: begun by an earlier version; `git checkout {commit}` "
                         "has the one that can resume it, or begin a new run")
    settings = ADDED_SETTINGS | (record.get("settings") or {})
    check_stored(settings_class, settings, f"{folder}/run.json")
    record["settings"] = settings | given
    if record.get("products") not in ("default", "onednn"):
        raise ValueError(f"{folder}/run.json: products is damaged: restore it, or begin a new run")
    if record.get("dtype", "float32") not in ("float32", "bfloat16"):  # earlier runs do not say
        raise ValueError(f"{folder}/run.json: dtype is damaged: restore it, or begin a new run")
    if "data" in given:  # the commits of the data before do not matter, that of the model does
        pinned = record["settings"]["revision"]
        record["settings"]["revision"] = [word for word in pinned if "=" not in word]
    return record


def begin(path: str, record: dict | None, settings: Any, steps: int, *, machine: Machine,
          model_folder: Path, pairs: PairSets, model: ModernBERT,
          optimizer: torch.optim.Optimizer, programs: Programs = OURS) -> "RunFolder":
    """The folder of a new run, or (with the record of its run.json) of one that goes on, whose
    newest state is put in place. Raises ValueError if its pairs or the weights that it began with
    have changed, or if another process is at work on it."""
    if has_controls(Path(path).name):  # the name is printed in the model card
        raise ValueError(f"the run folder {path!r}: give a name without line breaks")
    now = new_record(settings, machine, model_folder, pairs, steps, model)
    run = RunFolder(Path(path), record or now, model, optimizer, programs)
    distributed.barrier()  # every process has chosen its settings: now the folder may appear
    if record is None:
        run.record["products"] = choose_matmul_backend(run.record, model, machine)
        if run.record["settings"]["revision"]:
            distributed.log(f"pinned: --revision {' '.join(run.record['settings']['revision'])}")
        run.make()
        return run

    check_record(path, record, now)
    if record["products"] == "onednn" and not machine.on_gpu:
        try:
            check_matmul_backend(model.config.hidden_size)
        except ValueError as error:
            raise ValueError(f"--resume {path}: {error}") from None
    run.lock()
    try:
        run.resume()
    except ValueError:
        run.unlock()  # a notebook may try again
        raise
    except OSError as error:
        run.unlock()
        raise ValueError(f"--resume {path}: {error.filename}: {error.strerror}: put it right, or "
                         "begin a new run") from None
    distributed.log(f"going on after step {run.steps_done}")
    return run


def choose_matmul_backend(record: dict, model: ModernBERT, machine: Machine) -> str:
    """What computes the float32 products of this run on a processor, from beginning to end, so that
    it stays bit-equal to itself: what run.json calls `products`. If there was a choice, the device
    line says why, and is printed again."""
    chosen = with_matmul_backend(machine, model.config.hidden_size)
    # all processes alike
    slow_somewhere = distributed.any_process(chosen.matmul_backend == "default", machine.device)
    if slow_somewhere and chosen.matmul_backend != "default":
        reason = f"{machine.reason}, products: as torch is set (oneDNN is not quicker everywhere)"
        chosen = machine._replace(reason=reason)
    if chosen.reason != machine.reason:
        distributed.log(chosen.reason)
        record["device"] = chosen.reason
    return chosen.matmul_backend


def check_record(path: str, record: dict, now: dict):
    """ValueError where run.json is not what this run wrote, or what it rests on has changed."""
    record.setdefault("dtype", now["dtype"])
    record.setdefault("rows", 1)  # of a run that began when they were not counted
    for key, value in now.items():
        if type(record.get(key)) is not type(value):
            raise ValueError(f"{path}/run.json: {key} is damaged: restore it, or begin a new run")
    result = record["result"]
    numbers = all(isinstance(value, int | float | None) for value in result.values())
    counts = all(type(value) is int for value in record["dropped"].values())
    complete = not result or all(key in result for key in RESULT_FIELDS)
    if not numbers or not counts or not complete:
        raise ValueError(f"{path}/run.json: result or dropped is damaged: restore it, or begin a "
                         "new run")

    changes = {"fingerprint": "pairs", "weights": "model's weights or config.json",
               "steps": "number of steps", "train_pairs": "number of pairs"}
    for key, what in changes.items():
        if record[key] != now[key]:
            raise ValueError(f"--resume {path}: its {what} changed since then; begin a new run")
    if record["dtype"] != now["dtype"]:
        raise ValueError(f"--resume {path}: it computed in {record['dtype']}, and would go on in "
                         f"{now['dtype']} here: give it a device of the kind it began on")


def new_record(settings: Any, machine: Machine, model_folder: Path, pairs: PairSets, steps: int,
               model: ModernBERT) -> dict:
    """What run.json says about a run that begins."""
    base = settings.model
    revisions = {"model": base, **pairs.commits}
    pinned = [f"{repository}={commit}" for repository, commit in pairs.commits.items()]
    commit = commit_of(model_folder)
    if commit:  # of a repository on the Hub
        base = MODEL_NAMES.get(base, base)
        revisions["model"] = f"{base}@{commit}"
        pinned.insert(0, commit)

    sizes = count_parameters(model)
    config = sha256_of(model_folder / "config.json")
    return {
        "format": FORMAT,
        # resuming takes the very same commits, also when the Hub has moved on
        "settings": asdict(replace(settings, revision=pinned)),
        "command": " ".join(sys.argv),
        "device": machine.reason,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "products": "default",
        "base": base,
        "source": pairs.note,
        "steps": steps,
        "train_pairs": len(pairs.train),
        "fingerprint": fingerprint(pairs.train + pairs.held_out + pairs.test),
        "weights": f"{version_of(model_folder)}, config.json {config[:16]}",
        "trainable": sizes.trainable,
        "parameters": sizes.all,
        "versions": {name: version(name) for name in PACKAGES},
        "revisions": revisions,
        "rows": 0,  # that were trained on
        "dropped": {},
        "result": {},
    }


# ----------------------------------------------------------------------------- while a run goes on


class RunFolder:
    """Where a run writes. `record` is what run.json holds."""

    def __init__(self, path: Path, record: dict, model: ModernBERT,
                 optimizer: torch.optim.Optimizer, programs: Programs = OURS):
        self.path = path
        self.record = record
        self.model = model
        self.optimizer = optimizer
        self.programs = programs
        self.lock_file = None  # of rank 0
        self.steps_done = 0
        self.began = self.saved = time.time()

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def make(self):
        """Make the folder, which nobody else can have made, with run.json in it."""
        if distributed.rank() != 0:
            return
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise ValueError(f"--out {self.path} is already there: give another, or --resume "
                             f"{self.path}") from None
        except OSError as error:
            raise ValueError(f"--out {self.path}: {error.strerror}: give a folder that can be made"
                             ) from None
        self.lock()
        self.write_record()

    def lock(self):
        """Hold the file `lock` for as long as this process lives, so that no other one writes here.
        The system lets go of it, however the process ends."""
        if distributed.rank() != 0:
            return
        import fcntl  # not on Windows

        try:
            self.lock_file = open(self.path / "lock", "a+")
        except OSError as error:
            raise ValueError(f"{self.path}/lock: {error.strerror}: remove it, and --resume "
                             f"{self.path}") from None
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock_file.seek(0)
            holder = self.lock_file.read().strip()
            raise ValueError(f"--resume {self.path}: process {holder} is at work on it") from None
        self.lock_file.truncate(0)
        self.lock_file.write(str(os.getpid()))
        self.lock_file.flush()

    def unlock(self):
        if self.lock_file is not None:
            self.lock_file.close()
            self.lock_file = None

    def write_record(self):
        if distributed.rank() == 0:
            write_json(self.path / "run.json", self.record)

    def log(self, line: dict, dropped: Counter):
        """Append a step's line to metrics.jsonl, and count what was dropped in it."""
        for reason, number in dropped.items():
            self.record["dropped"][reason] = self.record["dropped"].get(reason, 0) + number
        if distributed.rank() == 0:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def minutes_unsaved(self) -> float:
        return (time.time() - self.saved) / 60

    def save(self, step: int):
        """What resuming needs beyond the settings: the trained weights and Adam's moments. The
        previous state is removed once this one is whole. ValueError if a weight is not finite."""
        for name, p in self.trained().items():
            if not p.isfinite().all():
                raise ValueError(f"after step {step}: {name} is not all finite numbers, and was not"
                                 " saved: begin a new run with another --lr")
        self.saved = time.time()
        if distributed.rank() != 0:
            return
        state = {}
        for name, p in self.trained().items():
            state[f"weight/{name}"] = p
            for kind, value in self.optimizer.state[p].items():  # step, exp_avg, exp_avg_sq
                state[f"{kind}/{name}"] = value
        state = {name: value.detach().cpu().contiguous() for name, value in state.items()}

        path = self.path / "state" / f"step-{step:06d}.safetensors"
        with replacing(path) as temporary:
            save_file(state, temporary)
        for other in self.states():
            if other != path:
                other.unlink()
        self.write_record()

    def states(self) -> list[Path]:
        """The saved states, the oldest first: one, but for a moment while it is replaced."""
        folder = self.path / "state"
        if folder.is_symlink():  # what is elsewhere may be another run's
            raise ValueError(f"{folder} is a link: put the folder itself there")
        files = [file for file in folder.glob("step-*.safetensors") if step_of(file) is not None]
        return sorted(files, key=step_of)

    def resume(self):
        """Put the newest whole state in place."""
        files = self.states()
        for file in reversed(files):
            try:
                self.load_state(file)
            except ValueError as error:
                if file == files[0]:
                    raise ValueError(f"{error}; remove it, and --resume {self.path} begins with "
                                     "the first step again") from None
                distributed.log(f"{error}: going back to the one before")
                continue
            self.steps_done = step_of(file)
            break

        # A run that was killed may have left lines beyond the saved step, the last one torn.
        metrics = self.path / "metrics.jsonl"
        if metrics.exists() and distributed.rank() == 0:
            kept = []
            for line in metrics.read_bytes().splitlines(keepends=True):
                step = step_in(line)
                if step is None:
                    distributed.log(f"{metrics}: left out a damaged line: {line[:60]!r}")
                elif step <= self.steps_done:
                    kept.append(line)
            with replacing(metrics) as temporary:
                temporary.write_bytes(b"".join(kept))

    @torch.no_grad()
    def load_state(self, file: Path):
        """Put one state in place. ValueError names the file if it is damaged or another model's;
        nothing is changed then."""
        trained = self.trained()
        needed = {}
        for name, p in trained.items():
            needed[f"step/{name}"] = ()
            for kind in ("weight", "exp_avg", "exp_avg_sq"):
                needed[f"{kind}/{name}"] = tuple(p.shape)
        if shapes_in(file) != needed:
            raise ValueError(f"{file} is the state of another model: its tensors do not fit")
        state = tinyrm.read_weights(file)
        steps = {state[f"step/{name}"].item() for name in trained}
        if steps != {step_of(file)} or step_of(file) > self.record["steps"]:
            raise ValueError(f"{file} is no state of this run, which has {self.record['steps']} "
                             f"steps: the optimizer in it has done {sorted(steps)}")

        for name, p in trained.items():
            p.copy_(state[f"weight/{name}"])
            self.optimizer.state[p] = {
                "step": state[f"step/{name}"],
                "exp_avg": state[f"exp_avg/{name}"].to(p.device),
                "exp_avg_sq": state[f"exp_avg_sq/{name}"].to(p.device),
            }

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the run computes: by the backend and with the small functions that it began with,
        errors explained."""
        compiled = compiled_functions(self.record["settings"]["compile"])
        with self.explaining_errors(), float32_matmul(self.record["products"]), compiled:
            yield

    @contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turns a lost process, a full disk or a full GPU into one line that says how to go on. At
        its end the lock is let go: a notebook may resume its own run."""
        resume = f"{self.programs.train} --resume {self.path}"
        try:
            yield
        except distributed.ProcessEnded as error:
            script = self.programs.train.removeprefix("python ")
            raise ValueError(f"{error}, and go on with: torchrun ... {script} --resume {self.path}"
                             ) from None
        except torch.OutOfMemoryError:
            raise ValueError(f"out of GPU memory: go on with {resume} and a lower "
                             "--micro-tokens, or --checkpoint-layers") from None
        except KeyboardInterrupt:
            distributed.log(f"stopped; go on with: {resume}")
            sys.exit(130)
        except BrokenPipeError:  # of what is printed, not of the disk
            raise
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path}: {error}; if the disk is full, make room and go on with:"
                             f" {resume}") from None
        finally:
            self.unlock()

    # ---- when it is done

    def finish(self, prompt_format: PromptFormat, model_folder: Path):
        """Store the adapter and the merged model, and say what came out. The model is merged in
        place."""
        if distributed.rank() != 0:
            return
        result = self.record["result"]
        seconds = [line.row["seconds"] for line in read_rows(self.path / "metrics.jsonl")]
        result["seconds"] = round(sum(seconds), 1)

        adapter = bool(dora.adapters(self.model))
        if adapter:
            base = adapter_base(self.record["base"])

            def save_adapter(folder):
                dora.save_adapter(self.model, folder, base, commit_of(model_folder))

            self.store("adapter", save_adapter, prompt_format, model_folder)
            dora.merge(self.model)

        def save_model(folder):
            labels = TEMPLATES[prompt_format.template, prompt_format.context].label_words
            tinyrm.save(self.model, folder, labels)

        self.store("model", save_model, prompt_format, model_folder)
        self.write_record()

        if self.record["dropped"]:
            distributed.log(f"dropped or cut, by reason: {self.record['dropped']}")
        accuracy = "no test pairs"
        if result["n"]:
            low, high = wilson(result["accuracy_after"], result["n"])
            accuracy = (f"test accuracy {result['accuracy_before']:.3f} -> "
                        f"{result['accuracy_after']:.3f} [{low:.3f}, {high:.3f}] on {result['n']} "
                        "pairs (95 % interval)")
        distributed.log(f"{accuracy}; {result['seconds']:.0f} s of training, "
                        f"{time.time() - self.began:.0f} s with judging and saving in this process")
        what = "model and adapter" if adapter else "model"
        distributed.log(f"saved {self.path}/{what}; judge with: {self.programs.evaluate} "
                        f"{self.path} FILE.jsonl")
        distributed.log(f"or ask it: {self.programs.evaluate} {self.path} --ask PROMPT RESPONSE "
                        "RESPONSE")

    def store(self, name: str, save: Callable[[Path], None], prompt_format: PromptFormat,
              model_folder: Path):
        """Fill the folder `name` with weights, tokenizer, card, and tinyrm.json, which says how a
        pair has to be shown to this model."""
        with replacing(self.path / name) as folder:
            save(folder)
            for file in TOKENIZER_FILES:
                if (model_folder / file).exists():
                    shutil.copyfile(model_folder / file, folder / file)
            card = model_card(self.path.name, self.record, self.model, prompt_format,
                              self.programs.evaluate, adapter=name == "adapter")
            (folder / "README.md").write_text(card, encoding="utf-8")
            write_json(folder / "tinyrm.json", prompt_format.settings())


def adapter_base(base: str) -> str:
    """The base of an adapter as peft finds it from anywhere: the whole path of a folder, also for
    our short names of shipped ones, else the name on the Hub."""
    folder = Path(MODEL_NAMES.get(base, base))
    if folder.is_dir():
        return str(folder.resolve())
    return base


def step_of(state: Path) -> int | None:
    """The step in the name of a state's file; None for another file."""
    digits = state.stem.removeprefix("step-")
    if len(digits) < 6 or not digits.isascii() or not digits.isdigit():
        return None
    return int(digits)


def step_in(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None for a damaged one."""
    try:
        fields = json.loads(line)
        if type(fields["step"]) is int and isinstance(fields["seconds"], int | float):
            return fields["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None
