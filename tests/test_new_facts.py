"""New facts: the words are new, no two words are compared in training and test, the probe
leaves a word out.

    python -m pytest tests/test_new_facts.py
"""

import random
import re
import sys

import pytest
import torch

import data
import tinyrm
from experiments import measure, new_facts
from experiments.new_facts import Job, known_words, new_words, pairs_of
from experiments.record_files import append_record
from infra.hub import ROOT, version_of

sys.path.insert(0, str(ROOT / "nano"))
import microworld  # noqa: E402


def test_new_words_are_one_token_and_no_thing_of_the_world():
    world, new = microworld.make_world(), new_words()
    assert len(new) == 40 and not set(new) & set(world)
    library = data.load_tokenizer(ROOT / "nano").library
    for word in (*new, *known_words()):
        assert len(library.encode(f" {word}", add_special_tokens=False).ids) == 1, word


@pytest.mark.parametrize("world", [new_words(), known_words()], ids=["new", "known"])
def test_there_are_four_words_of_each_weight(world):
    assert sorted(thing.weight for thing in world.values()) == sorted(4 * list(range(1, 11)))


def test_no_fact_gives_a_new_word_a_weight():
    rng = random.Random(0)
    world, new = microworld.make_world(), new_words()
    for _ in range(3000):
        tasks = (microworld.word_row(rng, world), microworld.task_row(rng, world))
        texts = [" ".join(microworld.document(rng, world))]
        texts += ["".join([*task.before, task.answer, *task.after]) for task in tasks]
        for sentence in re.split(r"[.?!]", " ".join(texts).lower()):
            if "stone" in sentence or "weigh" in sentence or "heav" in sentence:
                assert not set(re.findall("[a-z]+", sentence)) & set(new), sentence


def test_known_words_are_those_of_the_test():
    assert {thing.part for thing in known_words().values()} == {"test"}


def test_no_idle_talk_names_a_new_word():
    assert 8 <= len(new_facts.IDLE) < len(microworld.IDLE["train"])
    for sort in (new_words(), known_words()):
        pairs = pairs_of(sort)
        for pair in (*pairs.train, *pairs.test):
            text = f"{pair.prompt} {pair.chosen} {pair.rejected}".lower()
            assert len(set(re.findall("[a-z]+", text)) & {*new_words(), *sort}) == 2


def named_in(answer, world) -> set:
    """The words of the world in an answer, without those of an idle sentence."""
    for sentence in microworld.IDLE["train"]:
        answer = answer.replace(sentence, "")
    return set(re.findall(r"[a-z]+", answer.lower())) & set(world)


def compared_in(pair, world) -> frozenset:
    return frozenset(named_in(pair.chosen, world) | named_in(pair.rejected, world))


@pytest.mark.parametrize("world", [new_words(), known_words()], ids=["new", "known"])
def test_no_two_words_are_compared_in_training_and_in_the_test(world):
    pairs = pairs_of(world)
    assert (len(pairs.train), len(pairs.test)) == (500, 500)
    train = {compared_in(pair, world) for pair in pairs.train}
    test = {compared_in(pair, world) for pair in pairs.test}
    assert {len(two) for two in train | test} == {2}
    assert not train & test
    assert frozenset().union(*test) <= frozenset().union(*train)


def test_the_better_answer_is_the_heavier_or_lighter_one():
    world = new_words()
    for pair in pairs_of(world).test:
        (right,), (wrong,) = named_in(pair.chosen, world), named_in(pair.rejected, world)
        heavier = world[right].weight > world[wrong].weight
        assert heavier == ("heavier" in pair.prompt)


def test_pairs_of_other_words_name_no_known_word():
    others = new_facts.pairs_of_other_words()
    assert len(others) > 100
    text = " ".join(f"{pair.prompt} {pair.chosen}" for pair in others).lower()
    assert not set(re.findall(r"[a-z]+", text)) & set(known_words())


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
        w = torch.linalg.solve(a.T @ a + torch.diag(torch.tensor([1.0, 1, 1, 0]).double()), a.T @ b)
        torch.testing.assert_close(guesses[i], scaled[i] @ w)


def test_a_probe_of_noise_reads_nothing_and_of_the_weight_all():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(40, dtype=torch.float64) % 10
    noise = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    assert new_facts.guessed(torch.cat([noise, y[:, None]], 1), y) > 0.95
    assert new_facts.guessed(noise, y) < 0.4


def a_record(job, **after):
    recall = {"weight": 1.0, "danger": 0.9, "kind": 0.8}
    side = {"same words": 0.5, "other words": 0.8, "recall": recall, "text loss": 0.3,
            "probe": [0.1, 0.2, 0.4, 0.3], "shuffled": [0.0, 0.0, -0.1, 0.0]}
    return {**job._asdict(), "before": side, "after": {**side, **after}, "rate": 5e-3,
            "cka": [1.0, 0.9, 0.8, 0.7],
            "passes": new_facts.PASSES, "base": version_of(ROOT / "nano/instruct")}


def test_the_table_has_a_line_a_method(capsys):
    records = {}
    for seed in (1, 2):
        job = Job("new", "DoRA", seed)
        records[job] = a_record(job, **{"same words": 0.4 + 0.15 * seed,
                                        "other words": 0.65 + 0.05 * seed,
                                        "text loss": (0.4, 9.0)[seed - 1]})
    new_facts.show(records, 8)
    printed = capsys.readouterr().out
    assert "| new | before | | 0.500 | 0.800 | 1.000 | 0.900 | 0.800 | 0.300 |" in printed
    assert ("| new | DoRA | 2 (1) | 0.625 (median; up to 0.70) | 0.725 ± 0.318 | 1.000 ± 0.000 "
            "| 0.900 ± 0.000 | 0.800 ± 0.000 | 4.700 (median; up to 9.00) |") in printed
    assert ("| new | before | | 0.100 | 0.200 | 0.400 | 0.300 | -0.100 "
            "| 1.000 | 1.000 | 1.000 | 1.000 |") in printed
    assert "| 1.000 ± 0.000 | 0.900 ± 0.000 | 0.800 ± 0.000 | 0.700 ± 0.000 |" in printed


@pytest.mark.parametrize("method", ["DoRA", "full"])
def test_looking_at_a_path_leaves_the_run_as_it_was(method, monkeypatch):
    monkeypatch.setattr(new_facts, "PASSES", 0.1)  # 3 steps
    monkeypatch.setattr(new_facts, "LOOKS", 3)
    monkeypatch.setattr(new_facts, "of_pairs", lambda *args: {})  # which take their time
    monkeypatch.setattr(new_facts, "text_loss", lambda *args: 0.0)
    job, ends = Job("new", method, 1), []
    real_fit = new_facts.fit.fit

    def fit_and_keep(*args):
        ends.append(real_fit(*args))
        return ends[-1]

    monkeypatch.setattr(new_facts.fit, "fit", fit_and_keep)
    record = new_facts.make_path(job, 1e-3)
    new_facts.train_on(job, 1e-3)  # the same, not looked at
    looked_at, other = (end.model.state_dict() for end in ends)
    assert all(torch.equal(looked_at[name], w) for name, w in other.items())

    looks = record["looks"]
    assert [look["step"] for look in looks] == [0, 1, 2, 3]
    assert looks[0]["distance"] == looks[0]["length"] == 0
    end = measure.distance(tinyrm.load(ROOT / "nano/instruct"), ends[0].model)
    assert looks[-1]["distance"] == round(end, 5) > 0
    assert looks[-1]["length"] > looks[-1]["distance"]


def test_a_distance_is_relative_to_all_matrices():
    base = tinyrm.load(ROOT / "nano")
    moved = tinyrm.load(ROOT / "nano")
    with torch.no_grad():
        for w in moved.model.layers.parameters():
            w.mul_(1.1)
    assert abs(measure.distance(base, moved) - 0.1) < 1e-6


def test_the_table_of_paths_has_a_line_a_look(capsys):
    look = {"same words": 0.5, "other words": 0.8, "recall of weight": 1.0, "text loss": 0.3}
    looks = [{"step": 0, **look, "distance": 0.0, "length": 0.0},
             {"step": 4, **look, "distance": 0.3, "length": 0.4}]
    new_facts.show_paths({Job("new", "full", 1): {"looks": looks}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["| new | full | 0 | 0.500 | 0.800 | 1.000 | 0.300 | 0.000 | - |",
                         "| new | full | 4 | 0.500 | 0.800 | 1.000 | 0.300 | 0.300 | 0.75 |"]


def test_records_survive_a_kill_and_know_their_rate(tmp_path):
    file = tmp_path / "records/new-facts.jsonl"
    jobs = [Job("new", "DoRA", seed) for seed in (1, 2, 3)]
    append_record(file, a_record(jobs[0]))
    with open(file, "a") as opened:
        opened.write('{"words": "ne')
    assert list(new_facts.read_records(file, {"DoRA": 5e-3})) == jobs[:1]
    append_record(file, a_record(jobs[1]))
    assert list(new_facts.read_records(file, {"DoRA": 5e-3})) == jobs[:2]
    assert not new_facts.read_records(file, {"DoRA": 1e-2})  # another rate was chosen since
