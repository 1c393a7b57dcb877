"""What --help says: flags in groups, each with its default; and programs by their names.

    python -m pytest tests/test_help.py
"""

import re
from dataclasses import fields

import pytest

import evaluate
import train
from experiments import causal
from infra.flags import GROUPS, option


def help_of(main, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    return capsys.readouterr().out


def groups_in(text):
    """{title: its lines}"""
    parts = re.split(r"\n(the [a-z]+)[^\n]*:\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("main", [train.main, evaluate.main])
def test_flags_are_in_three_groups(main, monkeypatch, capsys):
    groups = groups_in(help_of(main, monkeypatch, capsys))
    assert list(groups) == ["the paper", "the machine", "the files"] and len(GROUPS) == 3
    assert "--template" in groups["the paper"]
    assert "--dtype" in groups["the machine"]
    assert "--out" in groups["the files"]


@pytest.mark.parametrize("name", [f.name for f in fields(train.Settings)])
def test_each_setting_shows_its_default(name, monkeypatch, capsys):
    text = help_of(train.main, monkeypatch, capsys)
    after = text.split(f"\n  {option(name)} ")[1]
    assert re.match(r"[^\0]*?\(default: [^()]+\)", after).group().count("\n  --") == 0


def test_the_default_that_is_shown_is_the_one_that_is_taken(monkeypatch, capsys):
    text = help_of(train.main, monkeypatch, capsys)
    shown = re.search(r"--lr .*\(default: (.*)\)", text)[1]
    assert float(shown) == train.Settings.lr


def test_the_causal_twin_names_its_own_commands(flags, monkeypatch, tmp_path, capsys):
    for command in ("train", "evaluate"):
        text = help_of(lambda more, c=command: causal.main([c, *more]), monkeypatch, capsys)
        assert text.startswith(f"usage: experiments/causal.py {command} ")

    causal.main(["train", *flags(model="nano-causal", data="nano", max_steps=1, limit=8)])
    printed = capsys.readouterr().out
    assert f"judge with: python experiments/causal.py evaluate {tmp_path / 'run'}" in printed
