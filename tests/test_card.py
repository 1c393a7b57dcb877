"""Published folders stand alone: their cards are run as they stand, and say what is needed.

    python -m pytest tests/test_card.py
"""

import json
import re
import shutil

import peft
import pytest
import torch
import transformers

import evaluate
import tinyrm
import train
from infra import card
from infra.hub import ROOT
from tinyrm import read_json

PROMPT, A, B = "What is 2 + 2?", "4", "5"
FORMATS = {
    "cloze": {},
    "generalist": {"domain": "all"},
    "single": {"context": "single"},
    "cls": {"head": "cls", "model": "nano"},  # by its short name
    "single cls": {"context": "single", "head": "cls"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, pairs_file):
    """run_of(name) -> the folder of a short run, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(name):
        path = folder / name.replace(" ", "-")
        if not path.exists():
            settings = {"domain": "reasoning", "model": ROOT / "nano", "data": pairs_file,
                        "max_steps": 2, "lr": 0.02, "device": "cpu", "out": path, "held_out": 4}
            settings.update(FORMATS[name])
            words = []
            for key, value in settings.items():
                words += ["--" + key.replace("_", "-"), str(value)]
            train.main(words)
        return path

    return run_of


def snippets(folder):
    text = (folder / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("part", ["model", "adapter"])
@pytest.mark.parametrize("name", FORMATS)
def test_both_snippets_run_in_the_folder_and_agree(runs, name, part, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(runs(name) / part, tmp_path / "elsewhere")
    expected = evaluate.RewardModel.load(folder, device="cpu").compare(PROMPT, A, B)
    with_tinyrm, alone = snippets(folder)
    monkeypatch.chdir(folder)
    capsys.readouterr()

    exec(with_tinyrm, {})
    assert float(capsys.readouterr().out) == pytest.approx(expected, abs=1e-6)

    assert "evaluate" not in alone and "data" not in alone
    exec(alone, {})
    printed = re.search(r"tensor\((.*?)[,)]", capsys.readouterr().out)[1]
    assert float(printed) == pytest.approx(expected, abs=1e-4)  # four digits are printed


def test_the_snippet_takes_hostile_texts_as_text(runs, monkeypatch, capsys):
    folder = runs("cloze") / "model"
    judge = evaluate.RewardModel.load(folder, device="cpu")
    monkeypatch.chdir(folder)
    names = {}
    exec(snippets(folder)[1], names)
    prompt, a, b = "say [MASK] [SEP]", " [CLS]\n", "“[MASK].” \u0301"
    x, y = names["score"](prompt, a, b), names["score"](prompt, b, a)
    expected = judge.compare(prompt, a, b)
    assert ((x.sigmoid() + 1 - y.sigmoid()) / 2).item() == pytest.approx(expected, abs=1e-5)


def test_the_authors_layout_is_written_out_too(runs, tmp_path, capsys):
    judge = evaluate.RewardModel.load(runs("cloze") / "model", device="cpu", template="choice")
    folder = shutil.copytree(runs("cloze") / "model", tmp_path / "here")
    code = card.transformers_snippet(judge.prompt_format, "transformers.AutoModelForMaskedLM")
    names = {}
    exec(code.replace('"."', repr(str(folder))), names)
    x, y = names["score"](PROMPT, A, B), names["score"](PROMPT, B, A)
    expected = judge.compare(PROMPT, A, B)
    assert ((x.sigmoid() + 1 - y.sigmoid()) / 2).item() == pytest.approx(expected, abs=1e-5)


def test_the_card_shows_the_text_of_a_row_and_the_labels(runs):
    text = (runs("cloze") / "model/README.md").read_text()
    assert ("`[CLS]Instruction: {prompt} Option A: {a} Option B: {b} Which option is more correct? "
            "The better option is[MASK].[SEP]`") in text
    assert "labels ` A` and ` B`" in text


def test_the_card_of_a_generalist_has_every_question(runs):
    text = (runs("generalist") / "model/README.md").read_text()
    for question in ("more correct?'", "safer?'", "better?'"):
        assert question in text


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_model_has_no_local_path(runs, name):
    folder = runs(name) / "model"
    for file in folder.glob("*.*"):
        if file.suffix in (".json", ".md") and file.name != "tokenizer.json":
            assert str(ROOT) not in file.read_text() and "/tmp/" not in file.read_text(), file
    adapter_card = (runs(name) / "adapter/README.md").read_text()
    assert str(ROOT) not in adapter_card and "/tmp/" not in adapter_card


def test_classes_have_the_names_of_the_labels(runs):
    for name, words in (("cls", ["A", "B"]), ("single cls", ["Yes", "No"])):
        config = transformers.AutoConfig.from_pretrained(runs(name) / "model")
        assert [config.id2label[0], config.id2label[1]] == words
        assert config.label2id == {words[0]: 0, words[1]: 1}


@pytest.mark.parametrize("name, auto_class", [
    ("cloze", peft.AutoPeftModel), ("cls", peft.AutoPeftModelForSequenceClassification),
])
def test_peft_opens_an_adapter_by_itself(runs, name, auto_class, tmp_path, monkeypatch):
    folder = runs(name)
    monkeypatch.chdir(tmp_path)  # from anywhere
    opened = auto_class.from_pretrained(folder / "adapter").eval()
    ids = torch.tensor([[1, 40, 50, 4, 2]])
    task = "MaskedLM" if name == "cloze" else "SequenceClassification"
    merged = getattr(transformers, f"AutoModelFor{task}").from_pretrained(folder / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits, merged(ids).logits,
                                   atol=1e-4, rtol=1e-4)


# --- licenses --------------------------------------------------------------------------------


def record(base="answerdotai/ModernBERT-large", data=("hub",), repositories=()):
    revisions = {"model": f"{base}@c0ffee", "allenai/reward-bench": "1"}
    for repository in repositories:
        revisions[repository] = "2"
    return {"base": base, "settings": {"data": list(data)}, "revisions": revisions}


PKU = "PKU-Alignment/PKU-SafeRLHF-30K"
SKYWORK = "Skywork/Skywork-Reward-Preference-80K-v0.2"


@pytest.mark.parametrize("made_of, names", [
    (record(repositories=[SKYWORK, PKU]), ["apache-2.0", "none named", "cc-by-nc-4.0"]),
    (record("jhu-clsp/ettin-encoder-17m", ["/home/me/my.jsonl"]), ["mit", "none named"]),
    (record(data=["a/b"], repositories=["a/b"]), ["apache-2.0", "none named"]),
    (record("nano", ["nano"]), ["apache-2.0", "apache-2.0"]),
    (record("somebody/else", ["my.jsonl"]), ["none named", "none named"]),
])
def test_licenses_of_the_base_and_of_each_data_set(made_of, names):
    assert [one.name for one in card.licenses_of(made_of)] == names


@pytest.mark.parametrize("names, line", [
    (["apache-2.0", "apache-2.0"], "license: apache-2.0"),
    (["apache-2.0", "cc-by-nc-4.0"], "license: other"),
    (["none named"], "license: other"),
    (["apache-2.0", "none named"], "license: other"),
])
def test_the_head_of_the_card_names_a_license_where_all_agree(names, line):
    licenses = [card.License("x", name) for name in names]
    assert card.license_lines(licenses).splitlines()[0] == line


def test_a_model_of_data_that_is_not_for_commerce_says_so(runs, monkeypatch):
    folder = runs("cloze")
    run_record = read_json(folder / "run.json")
    run_record["revisions"][PKU] = "c0ffee"
    judge = evaluate.RewardModel.load(folder, device="cpu")
    text = card.model_card("x", run_record, judge.model, judge.prompt_format, "evaluate.py")
    assert f"- {PKU}: cc-by-nc-4.0" in text and "not for commercial use" in text
    assert "not for commercial use" not in (folder / "model/README.md").read_text()


def test_the_head_of_the_card_is_yaml(runs):
    yaml = pytest.importorskip("yaml", reason="comes with transformers")
    for part, library in (("model", "transformers"), ("adapter", "peft")):
        text = (runs("cloze") / part / "README.md").read_text()
        head = yaml.safe_load(text.split("---")[1])
        assert head["library_name"] == library and head["license"] == "other"


def test_a_base_that_was_loaded_from_a_folder_does_not_say_which(tmp_path, tiny):
    raw = {**json.loads((tiny / "config.json").read_text()), "_name_or_path": "/home/me/model"}
    model = tinyrm.load(tiny)
    model.config.raw.update(raw)
    tinyrm.save(model, tmp_path)
    assert "/home/me" not in (tmp_path / "config.json").read_text()
