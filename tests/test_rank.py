"""Ranking many responses: tournaments, files and streams of rows, JSON.

    python -m pytest tests/test_rank.py
"""

import datetime
import fcntl
import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import NUMBERS

import evaluate
from data import Item
from evaluate import Judged, RewardModel, Tournament, play


@pytest.fixture(scope="module")
def judge(tiny):
    return RewardModel.load(tiny, device="cpu")


def texts(count, seed=0):
    """Different texts, in no order."""
    lot = random.Random(seed)
    return [" ".join(lot.choices(NUMBERS, k=4)) + f" {i}" for i in range(count)]


# --- tournaments -----------------------------------------------------------------------------


def perfect_judge(items):
    """Knows the better text, a number, and by how much: log-odds of the difference."""
    for item in items:
        first, second = (float(text) for text in item.responses)
        yield Judged(item, np.array([[0, first - second], [second - first, 0]]))


def played(numbers):
    item = Item("p", tuple(str(number) for number in numbers))
    tournament = Tournament.of(item)
    play([tournament], perfect_judge)
    return tournament, tournament.judged(item)


def test_a_tournament_of_64_costs_some_200_comparisons():
    tournament, _ = played(range(64))
    # 6 rounds of 32, less those who have met all who are left; all pairs are 2,016
    assert 6 * 30 < tournament.played.sum() / 2 <= 6 * 32


def test_nobody_meets_the_same_one_twice():
    games = []

    def noting(items):
        for item in items:
            games.append(frozenset(item.responses))
        return perfect_judge(items)

    play([Tournament.of(Item("p", tuple(map(str, range(40)))))], noting)
    assert len(games) == len(set(games)) > 5 * 20


@pytest.mark.parametrize("count", [9, 17, 64])
def test_log_odds_that_are_differences_are_found_whole(count):
    numbers = random.Random(count).sample(range(1000), count)
    numbers = np.array(numbers) / 100
    _, judged = played(numbers.tolist())
    np.testing.assert_allclose(judged.mean_log_odds(), numbers - numbers.mean(), atol=1e-9)


def test_were_all_played_the_scores_are_the_mean_log_odds():
    tournament = Tournament.of(Item("p", tuple(texts(9))))
    tournament.log_odds[:] = np.random.default_rng(0).normal(size=(9, 9))
    np.fill_diagonal(tournament.log_odds, 0)
    tournament.played[:] = 1 - np.eye(9)
    mean = Judged(tournament.item, tournament.log_odds).mean_log_odds()
    np.testing.assert_allclose(tournament.scores(), mean, atol=1e-12)


def test_neighbours_by_the_score_meet():
    tournament = Tournament.of(Item("p", ("a", "b", "c", "d")))
    tournament.add((0, 1), Judged(None, np.array([[0, -4.0], [4, 0]])))  # b 2, a -2
    tournament.add((2, 3), Judged(None, np.array([[0, -2.0], [2, 0]])))  # d 1, c -1
    assert tournament.next_games() == [(1, 3), (2, 0)]


def test_agreement_counts_comparisons_whose_orders_name_the_same_winner():
    # a beats b in both orders; a against c: whoever stands first wins; b and c are equal texts
    x = np.array([[0.0, 1.0, 2.0], [-1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    judged = Judged(Item("one", ("a", "b", "c")), x)
    assert judged.agreement().tolist() == [0.5, 1.0, 0.0]
    # only what was compared counts
    met = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    assert judged._replace(met=met).agreement().tolist() == [1.0, 1.0, 1.0]
    assert Judged(Item("one", ("a",)), np.zeros((1, 1))).agreement().tolist() == [1.0]


def test_agreement_of_a_tournament_is_of_what_was_played(judge):
    item = Item("one", tuple(texts(12)))
    (whole,) = judge.judge([item])
    by_text = {one.response: one.agree for one in judge.rank("one", texts(12))}
    tournament = Tournament.of(item)
    play([tournament], judge.judge)
    place = {text: index for index, text in enumerate(item.responses)}
    for i, text in enumerate(tournament.item.responses):
        opponents = np.flatnonzero(tournament.played[i])
        same = 0
        for j in opponents:
            a, b = place[text], place[tournament.item.responses[j]]
            same += (whole.log_odds[a, b] > 0) == (whole.log_odds[b, a] < 0)
        assert by_text[text] == pytest.approx(same / len(opponents))
    assert set(by_text.values()) != {1.0}  # this judge has a position bias


def test_8_responses_are_compared_each_with_each_and_9_are_not(judge):
    assert judge.rank("one", texts(8))[0].asked == 28
    assert judge.rank("one", texts(9))[0].asked == 16  # 4 rounds of 4; all were 36


def test_a_ranking_by_tournament_does_not_depend_on_the_order_to_the_last_bit(judge):
    responses = [*texts(12), "one", "one"]
    best = judge.rank("one two", responses)
    order = random.Random(1).sample(range(14), 14)
    again = judge.rank("one two", [responses[i] for i in order])
    for one, other in zip(best, again, strict=True):
        assert one._replace(index=0) == other._replace(index=0)


def test_equal_responses_of_a_tournament_share_all_numbers(judge):
    ranked = judge.rank("one two", [*texts(9), "one", "one"])
    one, other = [each for each in ranked if each.response == "one"]
    assert one._replace(index=0) == other._replace(index=0)


def test_the_mean_of_all_wins_is_a_half(judge):
    for count in (5, 20):
        wins = [one.win for one in judge.rank("one two", texts(count))]
        assert sum(wins) / count == pytest.approx(0.5, abs=1e-12)


def test_tournaments_of_many_prompts_are_those_of_each(judge):
    prompts, lists = ["one", "two", "three"], [texts(9, 1), texts(3, 2), texts(20, 3)]
    together = judge.rank(prompts, lists)
    for prompt, responses, ranked in zip(prompts, lists, together, strict=True):
        alone = judge.rank(prompt, responses)
        assert [one.index for one in ranked] == [one.index for one in alone]
        assert [one.win for one in ranked] == pytest.approx([one.win for one in alone], abs=1e-5)


def test_context_single_scores_each_of_many(tiny):
    judge = RewardModel.load(tiny, device="cpu", context="single")
    assert judge.rank("one", texts(20))[0].asked == 20


def test_a_file_of_many_responses_is_still_judged_each_with_each(judge):
    (judged,) = judge.judge([Item("one", tuple(texts(12)))])
    assert (judged.log_odds != 0).sum() == 12 * 11


# --- messages --------------------------------------------------------------------------------


def as_message(text):
    return [{"role": "assistant", "content": text}]


def test_responses_may_be_messages(judge):
    said = judge.rank("one", [as_message("two"), as_message("three four")])
    plain = judge.rank("one", ["two", "three four"])
    assert said == plain
    ask = [{"role": "user", "content": "one"}]
    assert judge.compare(ask, as_message("two"), "three") == judge.compare("one", "two", "three")
    assert judge.compare([ask], [as_message("two")], ["three"]) == [
        judge.compare("one", "two", "three")]


# --- files and streams -----------------------------------------------------------------------


@pytest.fixture
def rows():
    """Rows with keys of their own: strings, messages, one of many, one alone."""
    return [
        {"id": 7, "prompt": "one", "responses": ["two", "three", "two"], "scores": [1, 2]},
        {"prompt": [{"role": "user", "content": "one"}], "responses": [as_message("six"), "two"],
         "domain": "reasoning"},
        {"prompt": "\ud800 lone", "responses": texts(10), "note": None},
        {"prompt": "four", "responses": ["five"]},
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ranked(tiny, rows, tmp_path):
    """(IN, OUT, the flags) of a file that was ranked."""
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    flags = [str(tiny), "--rank", str(source), str(out), "--device", "cpu"]
    evaluate.main(flags)
    return source, out, flags


def read(text):
    return [json.loads(line) for line in text.splitlines()]


def test_rows_come_back_whole_with_a_ranking(judge, rows, ranked):
    _, out, _ = ranked
    for row, line in zip(rows, read(out.read_text()), strict=True):
        ranking = line.pop("ranking")
        assert line == row
        expected = judge.rank(row["prompt"], row["responses"], row.get("domain", ""))
        assert ranking["best"] == expected[0].index
        assert ranking["asked"] == expected[0].asked
        for one in expected:
            assert ranking["agree"][one.index] == one.agree
        for one in expected:
            assert ranking["ranks"][one.index] == one.rank
            assert ranking["wins"][one.index] == pytest.approx(one.win, abs=1e-6)
            assert ranking["scores"][one.index] == pytest.approx(one.score, abs=1e-5)


@pytest.mark.parametrize("whole, half", [(0, 0), (2, 0), (0, 1), (2, 15), (2, -1), (4, 0)])
def test_a_file_resumes_after_its_last_whole_line(ranked, monkeypatch, whole, half):
    """`half`: so many characters of the next line are there too."""
    _, out, flags = ranked
    before = out.read_text()
    lines = [*before.splitlines(keepends=True), ""]
    out.write_text("".join(lines[:whole]) + lines[whole][:half])
    lines.pop()

    asked = []
    rank_items = RewardModel.rank_items

    def noting(self, items):
        asked.extend(items)
        return rank_items(self, items)

    monkeypatch.setattr(RewardModel, "rank_items", noting)
    evaluate.main(flags)
    assert len(asked) == len(lines) - whole
    after = read(out.read_text())
    assert [line["ranking"]["ranks"] for line in after] == [
        line["ranking"]["ranks"] for line in read(before)]


def test_the_lines_of_other_rows_or_of_another_judge_are_not_gone_on_with(ranked):
    source, out, flags = ranked
    before = out.read_text()
    with pytest.raises(ValueError, match="line 1 was ranked by another judge"):
        evaluate.main([*flags, "--context", "single"])
    write(source, [{"prompt": "other", "responses": ["a", "b"]}])
    with pytest.raises(ValueError, match="out.jsonl, line 1 is not .*in.jsonl, line 1 of"):
        evaluate.main(flags)
    assert out.read_text() == before


@pytest.mark.parametrize("foreign", ['{"years of": "work"}', "work", '{"io', "\x00"])
def test_a_line_of_something_else_is_not_taken_for_a_half_written_one(ranked, foreign):
    _, out, flags = ranked
    for content in (foreign, out.read_text() + foreign):  # with and without lines of ours before it
        out.write_text(content)
        with pytest.raises(ValueError, match=r"out.jsonl, line \d is no row of what is read"):
            evaluate.main(flags)
        assert out.read_text() == content
        out.write_text("")
        evaluate.main(flags)


def test_a_full_disk_ends_a_ranking_with_a_line_that_says_how_to_go_on(ranked):
    _, out, flags = ranked
    whole = out.read_text()
    out.write_text("")

    def little_room():  # a disk that takes no more than that
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    done = subprocess.run([sys.executable, evaluate.__file__, *flags], preexec_fn=little_room,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "out.jsonl: File too large: make room, and give the same command again" in done.stderr
    evaluate.main(flags)
    assert read(out.read_text()) == read(whole)


def test_standard_output_that_is_full_is_one_line(ranked):
    _, _, flags = ranked
    words = [*flags[:3], "-", *flags[4:]]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, evaluate.__file__, *words], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"


def test_a_second_process_does_not_write_where_one_is_at_work(ranked):
    _, out, flags = ranked
    before = out.read_text()
    with open(out, "r+b") as at_work:
        fcntl.flock(at_work, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="out.jsonl: another process writes it"):
            evaluate.main(flags)
    assert out.read_text() == before
    evaluate.main(flags)  # it has ended


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.parquet", "OUT.CSV"])
def test_a_name_that_promises_another_format_is_refused(ranked, name):
    source, out, flags = ranked
    with pytest.raises(ValueError, match=f"{name}: JSON lines are written"):
        evaluate.main(["no-model", "--rank", str(source), str(out.with_name(name))])


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_a_number_that_json_has_not_is_refused(tmp_path, number):
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"prompt": "a", "responses": ["b", "c"], "score": {number}}}\n')
    with pytest.raises(ValueError, match="in.jsonl, line 1: .*leave that column out, or give null"):
        evaluate.main(["no-model", "--rank", str(source), str(tmp_path / "out.jsonl")])


def test_rows_that_are_no_json_are_named_before_the_work_begins(tmp_path):
    table = pyarrow.table({"prompt": ["a"], "responses": [["b", "c"]],
                           "day": [datetime.date(2026, 1, 2)]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="in.parquet, .*date.*: leave that column out"):
        evaluate.main(["no-model", "--rank", str(tmp_path / "in.parquet"),
                       str(tmp_path / "out.jsonl")])


def test_rows_that_were_cut_are_counted_on_standard_error(ranked, capsys):
    _, out, flags = ranked
    out.write_text("")
    evaluate.main([*flags, "--max-length", "40"])
    assert re.search(r"\d+ of \d+ rows were cut to 40 tokens", capsys.readouterr().err)


@pytest.mark.parametrize("row, message", [
    ({"prompt": "a", "responses": []}, "line 1: \"responses\""),
    ({"prompt": "a", "responses": ["b", 3]}, "line 1: a response is 3"),
    ({"responses": ["b"]}, 'line 1: "prompt" is missing'),
    ({"prompt": "a", "responses": ["b"], "domain": "cooking"}, "line 1: .*cooking"),
    ({"prompt": "a", "responses": ["b"], "ranking": 1}, 'has a "ranking" already'),
])
def test_a_bad_row_is_named_before_the_work_begins(tmp_path, row, message):
    source = write(tmp_path / "in.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        evaluate.main(["no-model", "--rank", str(source), str(tmp_path / "out.jsonl")])
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("names", [
    ["in.jsonl", "."], ["in.jsonl", "in.jsonl"], ["in.jsonl", "no/folder/out.jsonl"],
    ["missing.jsonl", "out.jsonl"], ["-", "in.jsonl"],
])
def test_files_that_do_not_serve_are_refused(tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"prompt": "a", "responses": ["b", "c"]}])
    with pytest.raises(ValueError):
        evaluate.main(["no-model", "--rank", *names])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_pipe_is_refused_and_not_taken_as_empty(tmp_path):
    read_end, write_end = os.pipe()
    os.close(write_end)
    out = tmp_path / "out.jsonl"
    with open(read_end, "rb"), pytest.raises(ValueError, match="is a pipe or a device"):
        evaluate.main(["no-model", "--rank", f"/dev/fd/{read_end}", str(out)])


def test_rows_may_be_in_any_of_the_tables_formats(tiny, rows, tmp_path):
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    with gzip.open(source, "wt") as file:
        file.write(json.dumps(rows[3]) + "\n")
    evaluate.main([str(tiny), "--rank", str(source), str(out), "--device", "cpu"])
    assert read(out.read_text())[0]["ranking"]["ranks"] == [1]


@pytest.fixture
def stream(tiny):
    """evaluate.py MODEL --rank - -, as a process that is open."""
    command = [sys.executable, evaluate.__file__, str(tiny), "--rank", "-", "-", "--device", "cpu"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def test_each_line_of_a_stream_is_answered_when_it_is_read(stream, rows):
    for row in rows:
        stream.stdin.write(json.dumps(row).encode() + b"\n")
        stream.stdin.flush()
        answer = json.loads(stream.stdout.readline())  # the stream is still open
        assert answer.pop("ranking")["asked"] > 0 or len(row["responses"]) == 1
        assert answer == row
    stream.stdin.write(b'{"prompt": 3}\n')
    stream.stdin.close()
    assert stream.wait() == 2
    last = stream.stderr.read().decode().splitlines()[-1]
    assert last.startswith("error: -, line 5") and stream.stdout.read() == b""


def test_a_stream_whose_reader_goes_ends_with_one_line(stream, rows):
    stream.stdout.close()
    stream.stdin.write(json.dumps(rows[0]).encode() + b"\n")
    stream.stdin.close()
    assert stream.wait() == 2
    errors = stream.stderr.read().decode()
    assert "Traceback" not in errors and "Exception ignored" not in errors
    assert errors.splitlines()[-1] == "error: standard output was closed by its reader"


def test_ask_as_json_is_one_line(tiny, capsys):
    evaluate.main([str(tiny), "--ask", "one", "two", "three", "--json", "--device", "cpu"])
    line, = read(capsys.readouterr().out)
    assert line["prompt"] == "one" and line["responses"] == ["two", "three"]
    assert sorted(line["ranking"]["ranks"]) == [1, 2] and line["ranking"]["asked"] == 1


@pytest.mark.parametrize("more", [
    ["file.jsonl", "--json"], ["--rank", "-", "-", "--json"], ["other", "--rank", "-", "-"],
    ["--ask", "one", "two", "three", "--rank", "-", "-"],
])
def test_tasks_do_not_mix(more):
    with pytest.raises(ValueError):
        evaluate.main(["model", *more])
