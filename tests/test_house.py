"""How the house stands: its floors and the length of its functions; the three modules of the root
work where nothing else of ours is; a domain is added with one entry and a file of pairs.

    python -m pytest tests/test_house.py

The plain forms of attention, GeGLU and DoRA are compared with transformers and peft, and the fast
forms with them, in test_tinyrm.py and test_dora.py.
"""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import NUMBERS

import data
import evaluate
import train
from data import Domain
from infra import sources
from infra.hub import ROOT
from infra.tables import read_rows
from tinyrm import read_json

# --- the floors ------------------------------------------------------------------------------

THE_PAPER = {"tinyrm", "dora", "data"}
INFRA = {f"infra.{path.stem}" for path in (ROOT / "infra").glob("*.py")} - {"infra.__init__"}
COMMANDS = {"train", "evaluate"}
OURS = THE_PAPER | INFRA | COMMANDS


def file_of(module):
    return ROOT / (module.replace(".", "/") + ".py")


def imports_of(module) -> set[str]:
    """All modules that a file of ours imports, on top or in a function, as full names."""
    names = set()
    for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: give the full name"
            if node.module == "infra":  # from infra import hub, flags
                names |= {f"infra.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def is_standard(name):
    return name.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted(THE_PAPER))
def test_the_paper_needs_torch_safetensors_and_tokenizers_alone(module):
    allowed = {"torch", "safetensors", "tokenizers"} | THE_PAPER
    others = {name for name in imports_of(module) if not is_standard(name)}
    assert {name.partition(".")[0] for name in others} <= allowed


@pytest.mark.parametrize("module", sorted(INFRA))
def test_infra_uses_the_paper_and_itself(module):
    ours = {name for name in imports_of(module) if file_of(name).exists()}
    assert ours <= THE_PAPER | INFRA


@pytest.mark.parametrize("module, other", [("train", "evaluate"), ("evaluate", "train")])
def test_the_commands_use_what_is_below_and_not_each_other(module, other):
    ours = {name for name in imports_of(module) if file_of(name).exists()}
    assert ours <= THE_PAPER | INFRA
    assert other not in ours


@pytest.mark.parametrize("module", sorted(OURS))
def test_nothing_imports_what_stands_above_the_commands(module):
    above = {"experiments", "notebooks", "examples", "tests", "nano"}
    assert not {name.partition(".")[0] for name in imports_of(module)} & above


def test_no_modules_import_each_other_in_a_circle():
    # modules whose imports are all below are taken away, until there are none: a circle stays
    waiting = {module: imports_of(module) & OURS for module in OURS}
    while waiting:
        free = {module for module, below in waiting.items() if not below & waiting.keys()}
        assert free, f"a circle among {sorted(waiting)}"
        for module in free:
            del waiting[module]


def test_infra_is_flat():
    folders = {path.name for path in (ROOT / "infra").iterdir() if path.is_dir()}
    assert folders <= {"__pycache__"}


def test_importing_infra_does_nothing():
    statements = ast.parse((ROOT / "infra/__init__.py").read_text()).body
    assert len(statements) == 1 and isinstance(statements[0], ast.Expr)  # its docstring


# --- short functions -------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(OURS))
def test_no_function_is_longer_than_60_lines(module):
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    long = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > 60:
                long.append(f"{node.name}: {lines} lines")
    assert not long


# --- the paper alone -------------------------------------------------------------------------

# What someone does with the three modules in a project of their own. argv: a model folder.
ALONE = """
import sys
from pathlib import Path

import torch

import data, dora, tinyrm

here = Path(__file__).parent
folder = sys.argv[1]

# a model folder, and the rows of a pair
model = tinyrm.load(folder)
prompt_format = data.PromptFormat(data.load_tokenizer(folder))
rows_of_pairs, _ = prompt_format.rows([data.Pair("two or six?", "six", "two")])
batch = data.pack(rows_of_pairs[0])

# one step forward and back
trained = dora.adapt(model, "dora", rank=2, alpha=2.0, freeze=1)
optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)


def loss():
    h = model(batch.tokens, batch.starts, batch.read_at)
    target = torch.tensor(prompt_format.label_ids)[batch.labels]
    return torch.nn.functional.cross_entropy(model.logits(h), target)


before = loss()
before.backward()
optimizer.step()
assert loss() < before

# nothing of it came from elsewhere
for module in (data, dora, tinyrm):
    assert Path(module.__file__).parent == here, module
for name in ("infra", "train", "evaluate", "huggingface_hub", "pyarrow"):
    assert name not in sys.modules, name
print("a step was taken")
"""


def test_the_three_modules_of_the_paper_work_in_an_empty_folder(tiny, tmp_path):
    for module in THE_PAPER:
        shutil.copy(file_of(module), tmp_path)
    (tmp_path / "alone.py").write_text(ALONE)
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)  # the checkout must not be found
    ended = subprocess.run([sys.executable, "alone.py", tiny], cwd=tmp_path, env=environment,
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "a step was taken\n"


# --- a new domain ----------------------------------------------------------------------------

KINDNESS = Domain(
    question="Which option is kinder?",
    single_question="Is the response kind?",
    choice_question="Which response is kinder?",
)


@pytest.fixture
def kindness(monkeypatch, tmp_path):
    """One entry in the table, and a file of 24 pairs: all that a domain needs."""
    monkeypatch.setitem(data.DOMAINS, "kindness", KINDNESS)
    path = tmp_path / "kindness.jsonl"
    with open(path, "w") as file:
        for i in range(24):
            row = {"prompt": f"Be kind to {NUMBERS[i % 10]}, {i}.", "chosen": NUMBERS[7],
                   "rejected": NUMBERS[2], "domain": "kindness"}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def kind_run(kindness, flags, tmp_path):
    """A run of two steps on them."""
    train.main(flags(domain="kindness", data=kindness, max_steps=2, held_out=4))
    return tmp_path / "run"


def test_a_new_domain_can_be_trained_on(kind_run):
    record = read_json(kind_run / "run.json")
    assert (record["train_pairs"], record["result"]["n"]) == (20, 4)
    assert len(list(read_rows(kind_run / "metrics.jsonl"))) == 2


def test_a_new_domain_without_a_recipe_takes_that_of_all(kindness, flags, capsys):
    train.main(flags(domain="kindness", data=kindness, held_out=4, dry_run=True))
    assert "epochs=4.0" in capsys.readouterr().out  # nano's for all


def test_a_model_of_a_new_domain_asks_its_question(kind_run):
    judge = evaluate.RewardModel.load(kind_run, device="cpu")
    rows_of_pairs, _ = judge.prompt_format.rows([data.Pair("p", "a", "b")])
    text = judge.prompt_format.tokenizer.decode(rows_of_pairs[0][0].tokens)
    assert "Which option is kinder?" in text


@pytest.mark.parametrize("more", [[], ["--domain", "kindness"], ["--domain", "all"]], ids=str)
def test_a_new_domain_can_be_judged(kind_run, kindness, tmp_path, more):
    out = tmp_path / "judged"
    evaluate.main([str(kind_run), str(kindness), "--device", "cpu", "--out", str(out), *more])
    (report,) = read_json(out / "results.json")["reports"]
    assert report["seen"]["rows"] == 2 * 24
    assert report["format"]["domain"] == ("all" if "all" in more else "kindness")


def test_all_domains_take_the_pairs_of_a_new_one_too(kindness, pairs_file, flags, tmp_path):
    train.main(flags(domain="all", data=[pairs_file, kindness], max_steps=2))
    record = read_json(tmp_path / "run/run.json")
    # 48 of reasoning and 24 of kindness
    assert record["train_pairs"] + record["result"]["n"] == 48 + 24


def test_a_specialist_leaves_the_pairs_of_a_new_domain_out(kindness, pairs_file, flags, tmp_path):
    both = tmp_path / "both.jsonl"
    both.write_text(pairs_file.read_text() + kindness.read_text())
    train.main(flags(domain="reasoning", data=both, max_steps=2))
    record = read_json(tmp_path / "run/run.json")
    assert record["train_pairs"] + record["result"]["n"] == 48


def count_nano_pairs(domain):
    return len(sources.load_sets(["nano"], domain, held_out=0, limit=0, seed=17).train)


def test_all_domains_of_nano_stay_the_three_that_it_has_pairs_of(kindness):
    of_each = [count_nano_pairs(domain) for domain in ("reasoning", "safety", "chat")]
    assert count_nano_pairs("all") == sum(of_each)


def test_all_domains_of_the_hub_stay_those_that_name_repositories(kindness):
    of_each = set()
    for domain in ("reasoning", "safety", "chat"):
        of_each |= set(sources.repositories(domain))
    assert set(sources.repositories("all")) == of_each
