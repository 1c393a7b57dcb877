"""What the notebooks promise without being run: short, executed without errors, their outputs
committed, versions and device on top, and no second copy of a function of ours. CI executes them.

    pytest tests/test_notebooks.py
"""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = ("cloze modernbert dora train_and_judge claims open_questions your_own_pairs "
            "mechanisms").split()
CELLS, WORDS = 20, 500  # at most, in a notebook; the words are those of its markdown


def cells(path, kind="code"):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def printed(cell):
    return "".join("".join(out.get("text", [])) for out in cell["outputs"])


def defined(tree):
    """Names of the functions and classes at the top of a module or cell."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_there_is_a_notebook_for_each_part_of_the_paper_in_order():
    assert [p.stem for p in NOTEBOOKS] == [f"0{n}_{name}" for n, name in enumerate(EXPECTED, 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_short_and_executed_without_errors(path):
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(every) <= CELLS
    assert sum(len(source(cell).split()) for cell in cells(path, "markdown")) <= WORDS
    assert max(len(source(cell).splitlines()) for cell in every) <= 40
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {out["output_type"] for cell in code for out in cell["outputs"]}
    assert {"stream", "display_data"} <= kinds and "error" not in kinds
    assert any("assert " in source(cell) for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_cell_prints_versions_and_device_and_the_last_sets_exercises(path):
    code = cells(path)
    assert all(word in printed(code[0]) for word in ("python ", "torch ", "cpu"))
    assert "## Exercises" in source(cells(path, "markdown")[-1])
    assert "1." in printed(code[-1]) and "assert " in source(code[-1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_of_ours_is_defined_a_second_time(path):
    ours = set()
    for folder in (ROOT, ROOT / "infra", ROOT / "experiments", ROOT / "nano"):
        for module in folder.glob("*.py"):
            ours |= defined(ast.parse(module.read_text(encoding="utf-8")))
    for cell in cells(path):
        again = defined(ast.parse(source(cell))) & (ours - {"main"})
        assert not again, f"{path.name} defines {again} once more"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_name_no_folder_of_the_machine_that_made_them(path):
    for cell in cells(path):
        text = printed(cell)
        assert not any(place in text for place in ("/tmp/", "/home/", "/root/", "/Users/")), text
        assert str(ROOT) not in text
