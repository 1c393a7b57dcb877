"""README and CONTRIBUTING keep their word: what they name exists.

    pytest tests/test_readme.py
"""

import dataclasses
import importlib
import re
from pathlib import Path

import benchmark
import pytest
import torch

import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
OTHER_PEOPLES_FLAGS = {"--quiet", "--nproc-per-node"}  # pip's and torchrun's


def table_under(heading, text):
    """The rows of the table with this heading line, as lists of cells."""
    body = text.split(heading)[1].split("\n\n")[0]
    lines = body.splitlines()[2:]  # after the rest of the heading line, and the rule
    return [line.strip("|").split("|") for line in lines]


def test_every_function_of_the_map_exists():
    names = []
    for row in table_under("| paper | here | notebook |", README):
        names += re.findall(r"`(\w+\.\w+)`", row[1])
    names = [name for name in names if not name.endswith(".py")]
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.partition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_file_of_the_map_and_of_the_tree_exists():
    tree = README.split("## The files")[1].split("```")[1]
    names = re.findall(r"^(\w+\.py|\w+/)", tree, re.M)
    assert len(names) == 12
    for row in table_under("| paper | here | notebook |", README):
        names += re.findall(r"`([\w/]+\.py)`", row[1])
    for name in names:
        assert (ROOT / name).exists(), name


def test_every_notebook_of_the_map_exists():
    for name in set(re.findall(r"`(\d\d_\w+)`", README)):
        assert (ROOT / "notebooks" / f"{name}.ipynb").exists(), name


def test_every_test_file_is_named_with_its_promise():
    named = set()
    for row in table_under("| promise | tests |", CONTRIBUTING):
        named |= set(re.findall(r"`(test_\w+\.py)`", row[1]))
    assert named == {path.name for path in (ROOT / "tests").glob("test_*.py")}


def test_the_bytes_of_a_token_are_those_that_are_counted():
    measured = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (no|yes) +\| (\w+) +\| +[\d,]+ \| +([\d,]+) \|$", measured, re.M)
    assert len(rows) == 4
    for recomputed, dtype, printed in rows:
        args = benchmark.argparse.Namespace(size="base", type=getattr(torch, dtype))
        side = "checkpoint" if recomputed == "yes" else "ours"
        assert benchmark.counted(args, side) == int(printed.replace(",", ""))


def test_two_commands_stand_in_the_readme():
    assert "pip install . && python train.py --domain reasoning" in README
    assert len(re.findall(r"^pip install .*pytest$", README, re.M)) == 1  # what .ci/run calls


def known_flags():
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(train.Settings)}
    for file in ("infra/flags.py", "evaluate.py", "experiments/run.py", "tests/benchmark.py"):
        flags |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / file).read_text(encoding="utf-8")))
    return flags | OTHER_PEOPLES_FLAGS


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`?(--[a-z][a-z-]+)", README))))
def test_every_flag_that_is_named_exists(flag):
    assert flag in known_flags()

