"""New facts: the words are new, the test asks of other twos of them, the probe leaves a word out.

    python -m pytest tests/test_new_facts.py
"""

import sys

import pytest
import torch

from experiments import new_facts
from experiments.new_facts import Job, known_words, new_words, pairs_of
from infra.hub import ROOT

sys.path.insert(0, str(ROOT / "nano"))
import microworld  # noqa: E402


def words_in(text, words):
    return {word for word in words if word in text.lower()}


def test_no_text_has_a_new_word():
    world, new = microworld.make_world(), new_words()
    assert len(new) == 40 and not set(new) & set(world)
    assert sorted(thing.weight for thing in new.values()) == sorted(4 * list(range(1, 11)))
    for file in (ROOT / "nano/pairs").glob("*.jsonl"):
        assert not words_in(file.read_text(encoding="utf-8"), new)


def test_known_words_are_those_of_the_test():
    assert {thing.part for thing in known_words().values()} == {"test"}
    assert len(known_words()) == 40


@pytest.mark.parametrize("world", [new_words(), known_words()], ids=["new", "known"])
def test_the_test_asks_of_other_twos_of_the_same_words(world):
    twos = pairs_of(world)
    assert (len(twos.train), len(twos.test)) == (1000, 500)
    asked = {}
    for name, pairs in (("train", twos.train), ("test", twos.test)):
        asked[name] = [frozenset(words_in(f"{p.chosen} {p.rejected}", world)) for p in pairs]
        assert all(len(two) == 2 for two in asked[name])
    assert not set(asked["train"]) & set(asked["test"])
    # each word of the test has been asked about in training
    assert set.union(*map(set, asked["test"])) <= set.union(*map(set, asked["train"]))


def test_the_better_answer_is_the_heavier_or_lighter_one():
    world = new_words()
    for pair in pairs_of(world).test:
        (right,), (wrong,) = words_in(pair.chosen, world), words_in(pair.rejected, world)
        heavier = world[right].weight > world[wrong].weight
        assert heavier == ("heavier" in pair.prompt)


def test_a_guess_leaves_its_own_row_out():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y += 0.1 * torch.randn(12, generator=generator, dtype=torch.float64)
    guesses = new_facts.left_out_guesses(x, y)
    scaled = torch.cat([(x - x.mean(0)) / (x.std(0) + 1e-6), torch.ones(12, 1)], 1).double()
    for i in range(12):
        others = [j for j in range(12) if j != i]
        a, b = scaled[others], y[others]
        w = torch.linalg.solve(a.T @ a + torch.eye(4, dtype=a.dtype), a.T @ b)
        torch.testing.assert_close(guesses[i], scaled[i] @ w)


def test_a_probe_of_noise_reads_nothing_and_of_the_weight_all():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(40, dtype=torch.float64) % 10
    noise = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    told = torch.cat([noise, y[:, None]], 1)

    def correlation(x):
        guesses = new_facts.left_out_guesses(x, y)
        return torch.corrcoef(torch.stack([guesses, y]))[0, 1].item()

    assert correlation(told) > 0.95
    assert correlation(noise) < 0.4


def test_the_table_has_a_line_a_method(capsys):
    side = {"pairs of the same words": 0.5, "nano's test": 0.8, "recall": {"weight": 1.0},
            "text loss": 0.3, "probe": [0.1, 0.4]}
    records = {}
    for seed in (1, 2):
        job = Job("new", "DoRA", seed)
        after = {**side, "nano's test": 0.6 + 0.1 * seed}
        records[job] = {**job._asdict(), "before": side, "after": after}
    new_facts.show(records, 8)
    printed = capsys.readouterr().out
    assert "| new | before | | 0.500 | 0.800 | 1.000 | 0.300 | 0.400 |" in printed
    assert "| new | DoRA | 2 | 0.500 ± 0.000 | 0.750 ± 0.635 |" in printed
