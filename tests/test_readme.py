"""The README keeps its word: the map points at what exists, the tree and its counts are current.

    pytest tests/test_readme.py
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_function_of_the_map_exists():
    rows = README.split("| paper | here | notebook |")[1].split("\n\n")[0].splitlines()[2:]
    names = [name for row in rows for name in re.findall(r"`(\w+\.\w+)`", row.split("|")[2])]
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.partition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_notebook_of_the_map_exists():
    for name in set(re.findall(r"`(\d\d_\w+)`", README)):
        assert (ROOT / "notebooks" / f"{name}.ipynb").exists(), name


def test_the_tree_counts_the_lines():
    tree = dict(re.findall(r"^(\w+\.py) +(\d[\d,]*) lines", README, re.M))
    assert set(tree) == {"tinyrm.py", "dora.py", "data.py", "train.py", "evaluate.py"}
    for name, lines in tree.items():
        assert int(lines.replace(",", "")) == len((ROOT / name).read_text().splitlines()), name
    total, code = re.findall(r"(\d[\d,]*) in all", README), 0
    assert [int(total[0].replace(",", ""))] == [sum(int(n.replace(",", "")) for n in tree.values())]
    for name in tree:  # without blank lines, comments and docstrings
        lines = (ROOT / name).read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                if ast.get_docstring(node):
                    first, last = node.body[0].lineno - 1, node.body[0].end_lineno
                    lines[first:last] = [""] * (last - first)
        code += sum(bool(line.strip()) and line.strip()[0] != "#" for line in lines)
    assert f"{code:,} of them are code" in README, code


def test_the_bytes_of_a_token_are_those_that_train_counts():
    import benchmark
    import torch

    rows = re.findall(r"^\| (no|yes) +\| (\w+) +\| +[\d,]+ \| +([\d,]+) \|$", README, re.M)
    assert len(rows) == 4
    for recomputed, kind, said in rows:
        args = benchmark.argparse.Namespace(size="base", type=getattr(torch, kind))
        side = "checkpoint" if recomputed == "yes" else "ours"
        assert benchmark.counted(args, side) == int(said.replace(",", ""))


def test_two_commands_stand_in_the_readme():
    assert "pip install . && python train.py --domain reasoning" in README
    assert len(re.findall(r"^pip install .*pytest$", README, re.M)) == 1  # what .ci/run calls


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`?(--[a-z][a-z-]+)", README))))
def test_every_flag_that_is_named_exists(flag):
    import evaluate
    import train

    known = {"--quiet", "--nproc-per-node"}  # pip's, torchrun's
    for file in (train.__file__, evaluate.__file__, ROOT / "experiments/run.py",
                 ROOT / "tests/benchmark.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', Path(file).read_text()))
    import dataclasses

    known |= {"--" + f.name.replace("_", "-") for f in dataclasses.fields(train.Settings)}
    assert flag in known
