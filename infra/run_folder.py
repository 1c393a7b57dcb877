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
from safetensors.torch import load_file, save_file

import dora
import tinyrm
from data import PromptFormat
from infra import distributed
from infra.files import read_json, replacing, sha256_of, write_json
from infra.flags import option
from infra.hub import MODEL_NAMES, commit_of, version_of
from infra.machine import Machine, count_parameters
from infra.pairs import fingerprint
from infra.sources import PairSets
from tinyrm import ModernBERT

FORMAT = 2  # of run.json and state/: goes up when an older unfinished run cannot be resumed
# Settings that change time and memory, not the result: --resume takes them.
MAY_CHANGE = ("device", "micro_tokens", "checkpoint_layers")
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

    stem = f"runs/{'-'.join(parts)}-s{settings.seed}"
    folder, number = stem, 1
    while Path(folder).exists():
        number += 1
        folder = f"{stem}-{number}"
    return folder


def read_record(folder: str, given: dict) -> dict:
    """The run.json of a run that is to go on, with the settings that are given anew. ValueError for
    a run that cannot go on."""
    others = [option(name) for name in given if name not in MAY_CHANGE]
    if others:
        raise ValueError(f"--resume goes on as {folder} was begun: leave out {', '.join(others)}")
    try:
        record = read_json(Path(folder, "run.json"))
    except ValueError as error:
        raise ValueError(f"--resume {folder}: no readable run.json in it ({error})") from None
    if "accuracy_after" in record.get("result", {}):
        raise ValueError(f"--resume {folder}: this run is finished; judge it with evaluate.py")
    if record.get("format") != FORMAT:
        raise ValueError(f"--resume {folder}: begun by an earlier version; `git checkout 4a59190` "
                         "has the one that can resume it, or begin a new run")
    record["settings"].update(given)
    return record


def begin(path: str, record: dict | None, settings: Any, steps: int, *, hardware: Machine,
          model_folder: Path, pairs: PairSets, model: ModernBERT,
          optimizer: torch.optim.Optimizer) -> "RunFolder":
    """The folder of a new run, or (with the record of its run.json) of one that goes on, whose
    newest state is put in place. Raises ValueError if its pairs or the weights that it began with
    have changed, or if another process is at work on it."""
    now = new_record(settings, hardware, model_folder, pairs, steps, model)
    run = RunFolder(Path(path), record or now, model, optimizer)
    distributed.barrier()  # every process has chosen its settings: now the folder may appear
    if record is None:
        if run.record["settings"]["revision"]:
            distributed.log(f"pinned: --revision {' '.join(run.record['settings']['revision'])}")
        run.make()
        return run

    for key, what in (("fingerprint", "pairs"), ("weights", "model's weights or config.json")):
        if record[key] != now[key]:
            raise ValueError(f"--resume {path}: its {what} changed since then; begin a new run")
    run.lock()
    run.resume()
    distributed.log(f"going on after step {run.steps_done}")
    return run


def new_record(settings: Any, hardware: Machine, model_folder: Path, pairs: PairSets, steps: int,
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
        "device": hardware.reason,
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
        "dropped": {},
        "result": {},
    }


# ----------------------------------------------------------------------------- while a run goes on


class RunFolder:
    """Where a run writes. `record` is what run.json holds."""

    def __init__(self, path: Path, record: dict, model: ModernBERT,
                 optimizer: torch.optim.Optimizer):
        self.path = path
        self.record = record
        self.model = model
        self.optimizer = optimizer
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
        self.lock()
        self.write_record()

    def lock(self):
        """Hold the file `lock` for as long as this process lives, so that no other one writes here.
        The system lets go of it, however the process ends."""
        if distributed.rank() != 0:
            return
        import fcntl  # not on Windows

        self.lock_file = open(self.path / "lock", "a+")
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
        previous state is removed once this one is whole."""
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
        return sorted((self.path / "state").glob("step-" + "[0-9]" * 6 + ".safetensors"))

    def resume(self):
        """Put the newest whole state in place."""
        files = self.states()
        for file in reversed(files):
            try:
                self.load_state(file)
            except SafetensorError as error:
                distributed.log(f"{file} is damaged ({error}): going back to the one before")
                continue
            self.steps_done = int(file.stem.removeprefix("step-"))
            break
        if files and not self.steps_done:
            raise ValueError(f"--resume {self.path}: no state in it can be read; begin a new run")

        # A run that was killed may have left lines beyond the saved step.
        metrics = self.path / "metrics.jsonl"
        if metrics.exists() and distributed.rank() == 0:
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            with replacing(metrics) as temporary:
                temporary.write_text("".join(lines[:self.steps_done]), encoding="utf-8")

    @torch.no_grad()
    def load_state(self, file: Path):
        state = load_file(file)
        trained = self.trained()
        names = {key.partition("/")[2] for key in state}
        if names != trained.keys():
            raise ValueError(f"{file} is the state of another model: its tensors do not fit")
        for name, p in trained.items():
            p.copy_(state[f"weight/{name}"])
            self.optimizer.state[p] = {
                "step": state[f"step/{name}"],
                "exp_avg": state[f"exp_avg/{name}"].to(p.device),
                "exp_avg_sq": state[f"exp_avg_sq/{name}"].to(p.device),
            }

    @contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turns a lost process, a full disk or a full GPU into one line that says how to go on. At
        its end the lock is let go: a notebook may resume its own run."""
        try:
            yield
        except distributed.ProcessEnded as error:
            raise ValueError(f"{error}, and go on with: torchrun ... train.py --resume {self.path}"
                             ) from None
        except torch.OutOfMemoryError:
            raise ValueError(f"out of GPU memory: go on with python train.py --resume {self.path} "
                             "and a lower --micro-tokens, or --checkpoint-layers") from None
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path}: {error}; if the disk is full, make room and go on with:"
                             f" python train.py --resume {self.path}") from None
        finally:
            self.unlock()

    # ---- when it is done

    def finish(self, prompt_format: PromptFormat, model_folder: Path):
        """Store the adapter and the merged model, and say what came out. The model is merged in
        place."""
        if distributed.rank() != 0:
            return
        result = self.record["result"]
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        result["seconds"] = round(sum(json.loads(line)["seconds"] for line in lines), 1)

        adapter = bool(dora.adapters(self.model))
        if adapter:
            def save_adapter(folder):
                dora.save_adapter(self.model, folder, self.record["base"])

            self.store("adapter", save_adapter, prompt_format, model_folder)
            dora.merge(self.model)
        self.store("model", lambda folder: tinyrm.save(self.model, folder), prompt_format,
                   model_folder)
        self.write_record()

        if self.record["dropped"]:
            distributed.log(f"dropped or cut, by reason: {self.record['dropped']}")
        accuracy = "no held-out pairs"
        if result["n"]:
            accuracy = (f"held-out accuracy {result['accuracy_before']:.3f} -> "
                        f"{result['accuracy_after']:.3f} on {result['n']} pairs")
        distributed.log(f"{accuracy}; {result['seconds']:.0f} s of training, "
                        f"{time.time() - self.began:.0f} s in all")
        what = "model and adapter" if adapter else "model"
        distributed.log(f"saved {self.path}/{what}; judge with: python evaluate.py {self.path} "
                        "FILE.jsonl")

    def store(self, name: str, save: Callable[[Path], None], prompt_format: PromptFormat,
              model_folder: Path):
        """Fill the folder `name` with weights, tokenizer, card, and tinyrm.json, which says how a
        pair has to be shown to this model."""
        with replacing(self.path / name) as folder:
            save(folder)
            for file in TOKENIZER_FILES:
                if (model_folder / file).exists():
                    shutil.copyfile(model_folder / file, folder / file)
            card = model_card(self.path.name, self.record, self.model, prompt_format)
            (folder / "README.md").write_text(card, encoding="utf-8")
            write_json(folder / "tinyrm.json", prompt_format.settings())


# ---------------------------------------------------------------------------------- the model card

PIPELINES = {"MaskedLM": "fill-mask", "SequenceClassification": "text-classification",
             "CausalLM": "text-generation"}


def model_card(name: str, record: dict, model: ModernBERT, prompt_format: PromptFormat) -> str:
    """The card that the Hub shows."""
    settings, result = record["settings"], record["result"]
    architecture = model.config.architectures[model.head_kind]
    task = architecture.partition("For")[2]

    base_line = "# trained from a local folder"
    if "@" in record["revisions"]["model"]:  # REPOSITORY@COMMIT
        base_line = f"base_model: {record['base']}"

    accuracy = "no held-out pairs"
    if result["n"]:
        accuracy = (f"held-out accuracy: {result['accuracy_before']:.3f} before, "
                    f"{result['accuracy_after']:.3f} after,\n  on {result['n']} pairs")

    shown = "two responses"
    if prompt_format.context == "single":
        shown = "one response at a time"

    labels = "two classes"
    if prompt_format.head == "cloze":
        first, second = prompt_format.label_ids
        decode = prompt_format.tokenizer.decode
        labels = f"`{decode([first])}` and `{decode([second])}`"

    return f"""---
{base_line}
library_name: transformers
pipeline_tag: {PIPELINES[task]}
tags: [reward-model, tiny-reward-models, modernbert]
---
# {name}

A tiny reward model (arXiv 2507.09973) for {settings["domain"]}: it reads a prompt and {shown} and
says which is better. Trained with tinyrm from {record["revisions"]["model"]} on {record["source"]}.

- {accuracy}
- recipe: {settings["adapter"]}, {settings["freeze"]} layers frozen, peak rate {settings["lr"]:g},
  {record["steps"]} steps of {settings["batch_size"]} rows; template `{settings["template"]}`,
  labels {labels}

```python
from evaluate import RewardModel  # from a checkout of tinyrm
rm = RewardModel.load("PATH/TO/{name}")
rm.compare(prompt, a, b)  # the probability that a is better
```
`model/` opens with transformers' `AutoModelFor{task}.from_pretrained`, `adapter/` (if trained with
one) with peft. Everything that the run depended on stands in `run.json`.
"""
