"""The Hugging Face Hub: short names of models, and model folders and data sets fetched by name.

What was fetched once is taken from the Hub's cache (HF_HOME), also without a network.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from tqdm import tqdm

from infra.checks import check_model
from infra.files import sha256_of

ROOT = Path(__file__).resolve().parent.parent  # the checkout

# Short names for --model. Anything else is a folder, or a repository on the Hub.
MODEL_NAMES = {
    "nano": str(ROOT / "nano"),
    "nano-instruct": str(ROOT / "nano/instruct"),
    "nano-causal": str(ROOT / "nano/causal"),
    "base": "answerdotai/ModernBERT-base",
    "large": "answerdotai/ModernBERT-large",
    "large-instruct": "answerdotai/ModernBERT-Large-Instruct",
    "ettin-17m": "jhu-clsp/ettin-encoder-17m",
    "ettin-32m": "jhu-clsp/ettin-encoder-32m",
    "ettin-68m": "jhu-clsp/ettin-encoder-68m",
    "ettin-150m": "jhu-clsp/ettin-encoder-150m",
    "ettin-400m": "jhu-clsp/ettin-encoder-400m",
    "ettin-1b": "jhu-clsp/ettin-encoder-1b",
    "ettin-decoder-17m": "jhu-clsp/ettin-decoder-17m",
    "ettin-decoder-32m": "jhu-clsp/ettin-decoder-32m",
    "ettin-decoder-68m": "jhu-clsp/ettin-decoder-68m",
    "ettin-decoder-150m": "jhu-clsp/ettin-decoder-150m",
    "ettin-decoder-400m": "jhu-clsp/ettin-decoder-400m",
    "ettin-decoder-1b": "jhu-clsp/ettin-decoder-1b",
}

# What the cards of these models name, by how the repository begins.
MODEL_LICENSES = {
    "nano": "apache-2.0",
    "answerdotai/ModernBERT": "apache-2.0",
    "jhu-clsp/ettin": "mit",
}

NANOS = ("nano", "nano-instruct", "nano-causal")  # the models whose pairs come with the checkout

# The files of a model repository that are read here; others (ONNX, optimizer states) stay there.
# By name: without a network the client wants every file in its cache that a pattern asks for.
MODEL_FILES = [
    "config.json", "tinyrm.json", "adapter_config.json", "adapter_model.safetensors",
    "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "generalist.json", "trunk.safetensors", "specialist-*.json", "specialist-*.safetensors",
]

# The Hub's * also stands for "/": of a model, folders such as checkpoint-9/ stay there.
IGNORED = {"model": ["*/*"], "dataset": None}


def fetch_model(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: `name` is one of MODEL_NAMES, a folder, or a repository on the Hub.

    Of a repository the MODEL_FILES are fetched, at the commit or branch `revision`.
    """
    wanted = wanted_model(name, revision)
    if wanted is None:
        return Path(MODEL_NAMES.get(str(name), str(name)))
    try:
        return download(wanted)
    except ValueError as error:  # a model has one more way
        raise ValueError(f"{error}, or give a folder") from None


class Wanted(NamedTuple):
    """Files of a repository on the Hub."""

    repository: str  # OWNER/NAME
    kind: str  # "model" or "dataset"
    patterns: list[str]  # globs of their paths
    revision: str | None  # a commit or a branch; None: main


def wanted_model(name: str | Path, revision: str | None = None) -> Wanted | None:
    """What the Hub has to send of a model; None where the model is a folder."""
    name = MODEL_NAMES.get(str(name), str(name))
    if os.path.isdir(name):  # which also answers for a name that no folder can have
        return None

    # a folder that was mistyped must not be asked of the Hub
    looks_like_a_path = name.startswith((".", "/", "~"))
    if looks_like_a_path or name.count("/") != 1:
        shown = " ".join(name.split())[:200]
        raise ValueError(f"{shown}: no such folder (and no Hub name, which is OWNER/NAME)")
    return Wanted(name, "model", MODEL_FILES, revision)


def license_of_model(name: str) -> str:
    """The license of a model by its name on the Hub, or "none named"."""
    for beginning, license_name in MODEL_LICENSES.items():
        if name.startswith(beginning):
            return license_name
    return "none named"


def parse_revisions(revision: Sequence[str]) -> dict[str, str]:
    """The values of --revision as {repository, or "" for the model: commit}.

    Each is COMMIT for the model, or OWNER/REPO=COMMIT for a data set.
    """
    commits = {}
    for word in revision:
        repository, commit = "", word
        if "=" in word:
            repository, _, commit = word.partition("=")

        parts = word.split("=")
        is_well_formed = len(parts) <= 2 and "" not in parts
        if not is_well_formed or repository in commits:
            given = " ".join(revision)
            raise ValueError(
                f"--revision {given}: give COMMIT for the model, and OWNER/REPO=COMMIT for each "
                "data set"
            )
        commits[repository] = commit
    return commits


def fetch_pinned(name: str, revision: Sequence[str]) -> Path:
    """The folder of a model, at the commit that the values of --revision name for it, looked over
    (infra/checks.py)."""
    commit = parse_revisions(revision).get("")
    folder = fetch_model(name, commit)
    if commit is not None and commit_of(folder) is None:
        raise ValueError(
            f"--revision {commit}: --model {name} is a folder, which has no commits: leave it out, "
            "or name a repository of the Hub"
        )
    is_folder = os.path.isdir(MODEL_NAMES.get(name, name))
    if commit is not None and is_folder and commit != commit_of(folder):
        raise ValueError(
            f"--revision {commit}: --model {name} is the folder of commit {commit_of(folder)}: "
            "leave --revision out, or name the repository"
        )
    check_model(folder)
    return folder


class Snapshot(NamedTuple):
    """Files of a data set as they were at one commit."""

    commit: str
    paths: list[Path]


def fetch_dataset(
    repository: str, patterns: Sequence[str], revision: str | None = None
) -> Snapshot:
    """The files of a data set whose paths match one of the glob `patterns`, in this order."""
    folder = download(Wanted(repository, "dataset", list(patterns), revision))
    paths = []
    for pattern in patterns:
        matching = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not matching:
            raise ValueError(
                f"{repository}: no file {pattern} at {folder.name}: give another revision"
            )
        paths.extend(matching)
    return Snapshot(folder.name, paths)


def download(wanted: Wanted) -> Path:
    """The folder with the matching files in the Hub's cache; its name is the commit."""
    repository = wanted.repository
    # its prompts are also RewardBench's; v0.2 is without them
    if "Reward-Preference-80K-v0.1" in repository:
        cleaned = repository.replace("v0.1", "v0.2")
        raise ValueError(
            f"{repository}: shares prompts with RewardBench (contaminated): use {cleaned}"
        )
    try:
        folder = snapshot_download(
            repository, repo_type=wanted.kind, revision=wanted.revision,
            allow_patterns=wanted.patterns, ignore_patterns=IGNORED[wanted.kind],
        )
    except Exception as error:  # the client raises its own, its HTTP library's, the system's errors
        # theirs are long and have many lines
        message = " ".join(f"{type(error).__name__}: {error}".split())
        one_line = re.sub("//[^/ ]*@", "//", message)[:300]  # HF_ENDPOINT may have a password
        raise ValueError(
            f"{repository}, revision {wanted.revision or 'main'}, did not come from the Hub "
            f"({one_line}): check the name, the network, the disk and HF_TOKEN"
        ) from None
    return Path(folder)


class NoBar(tqdm):
    """A bar of the client's that is not shown."""

    def __init__(self, *arguments, **settings):
        settings["disable"] = True
        super().__init__(*arguments, **settings)


def bytes_to_fetch(wanted: Wanted) -> int | None:
    """How many bytes `download` would fetch, that is of files that are not in the Hub's cache. None
    if the Hub does not say: without a network, or access to the repository."""
    try:
        files = snapshot_download(
            wanted.repository, repo_type=wanted.kind, revision=wanted.revision,
            allow_patterns=wanted.patterns, ignore_patterns=IGNORED[wanted.kind], dry_run=True,
            tqdm_class=NoBar,
        )
    except Exception:  # as in `download`, which follows and says what was wrong
        return None
    total = 0
    for file in files:
        if file.will_download and file.file_size is not None:
            total += file.file_size
    return total


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the Hub's cache; None for any other folder."""
    # .../models--OWNER--NAME/snapshots/COMMIT; a folder of one's own may be named "snapshots" too
    repository = folder.parent.parent.name
    in_cache = folder.parent.name == "snapshots"
    if in_cache and repository.startswith(("models--", "datasets--")):
        if re.fullmatch("[0-9a-f]{40}", folder.name):
            return folder.name
    return None


def version_of(path: Path) -> str:
    """What identifies a model folder or a file: the Hub's commit, else the SHA-256 of the weights,
    or of the file."""
    commit = commit_of(path)
    if commit is not None:
        return commit

    # a folder or a file from elsewhere
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path}: no *.safetensors in it: give a folder with weights")
    return ", ".join(f"sha256 {sha256_of(file)[:16]}" for file in files)
