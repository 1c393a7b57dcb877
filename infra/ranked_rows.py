"""Rows of prompts and responses that are ranked, and come back whole with their ranking:

    {"prompt": "What is 2 + 3?", "responses": ["6.", "5."], "id": 7}
 -> {"prompt": "What is 2 + 3?", "responses": ["6.", "5."], "id": 7,
     "ranking": {"best": 1,                  # index of the best response, from 0
                 "ranks": [2, 1],            # from 1; equals share a rank
                 "wins": [0.1, 0.9],         # chance of beating each of the others, on average
                 "scores": [-1.1, 1.1],      # log-odds; in context "single" scores
                 "agree": [1.0, 1.0],        # share of its comparisons that agree in both orders
                 "asked": 1,                 # comparisons; in context "single" scores
                 "judge": "sha256 ..."}}     # the weights and the format that judged

Texts are strings or lists of messages; a row may name its `domain`.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data import Item
from infra.files import parse_object
from infra.pairs import parse_domain, to_text
from infra.tables import FileRow, has_known_ending, read_rows

STREAM = "-"  # in place of a file: standard input, standard output
ROWS_AT_A_TIME = 32  # of a file; a stream is answered line by line


class RowToRank(NamedTuple):
    where: str  # "FILE, line N"
    row: dict  # as it came
    item: Item


def read_rows_to_rank(source: str) -> Iterator[RowToRank]:
    """The rows of a file (infra/tables.py has the formats), or of JSON lines on standard input, as
    they come."""
    rows = read_stream() if source == STREAM else read_rows(source)
    for _, where, row in rows:
        yield RowToRank(where, row, parse_row(row, where))


def read_stream() -> Iterator[FileRow]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            where = f"{STREAM}, line {number}"
            row = parse_object(line, where, "give one object a line")
            yield FileRow(number, where, row)


def parse_row(row: dict, where: str) -> Item:
    if "ranking" in row:
        raise ValueError(f'{where} has a "ranking" already: rename it, or give the rows of before')
    responses = row.get("responses")
    if not isinstance(responses, list) or not responses:
        raise ValueError(f'{where}: "responses": give a list of strings, not an empty one')

    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError) as error:  # a date or bytes of a parquet file, NaN
        raise ValueError(f"{where}: {error}: leave that column out, or give null") from None

    texts = tuple(to_text(text, f'{where}: a response') for text in responses)
    prompt = to_text(row.get("prompt"), f'{where}: "prompt"')
    return Item(prompt, texts, domain=parse_domain(row, where), where=where)


def ranking_of(ranked: list) -> dict:
    """What `RewardModel.rank` gave, in the order in which the responses came."""
    in_given_order = sorted(ranked, key=lambda one: one.index)
    return {
        "best": ranked[0].index,
        "ranks": [one.rank for one in in_given_order],
        "wins": [one.win for one in in_given_order],
        "scores": [one.score for one in in_given_order],
        "agree": [one.agree for one in in_given_order],
        "asked": ranked[0].asked,
    }


def with_ranking(row: dict, ranked: list, judge: str) -> str:
    """The row with its ranking, as a line of JSON."""
    ranking = ranking_of(ranked)
    ranking["judge"] = judge
    return json.dumps({**row, "ranking": ranking}) + "\n"


# -------------------------------------------------------------------------------------- the output


def check_rank_files(source: str, out: str) -> None:
    """ValueError for what would be found only when a model is loaded, or much later: a row that is
    none, an OUT that cannot be written."""
    if source != STREAM:
        for _ in read_rows_to_rank(source):
            pass
    if out == STREAM:
        return

    if has_known_ending(out) and not out.lower().endswith((".json", ".jsonl")):
        raise ValueError(f"{out}: JSON lines are written: give a name that ends in .jsonl")
    path = Path(out)
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"{out}: {path.parent} is no folder to write in: give another")
        return
    if not path.is_file() or not os.access(path, os.W_OK):
        raise ValueError(f"{out} is no file that can be written: give another")
    if source == STREAM:
        raise ValueError(f"{out} is there, and a stream cannot be resumed: give another")
    if os.path.samefile(source, out):
        raise ValueError(f"{out} is what is read: give another file to write")


class Output(NamedTuple):
    """Where rankings are written."""

    file: BinaryIO
    rows: Iterator[RowToRank]  # those that it does not have yet


@contextmanager
def open_out(out: str, rows: Iterator[RowToRank], judge: str) -> Iterator[Output]:
    """OUT, to be written behind the whole lines that are there; the rows of these are taken from
    `rows`, and a half-written last line is removed. ValueError if what is there is not a beginning
    of what would be written, or was ranked by another judge, and if the disk is full."""
    if out == STREAM:
        try:
            yield Output(sys.stdout.buffer, rows)
        except BrokenPipeError:
            # what is left in the buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise ValueError("standard output was closed by its reader") from None
        except OSError as error:
            if error.filename is not None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise ValueError(f"standard output: {error.strerror}") from None
        return

    Path(out).touch()
    try:
        with open(out, "r+b") as file:
            lock(file, out)
            yield Output(file, go_on(file, out, rows, judge))
    except OSError as error:  # also of what is still to be written when the file is closed
        if error.filename is not None:  # another file
            raise
        raise ValueError(f"{out}: {error.strerror}: make room, and give the same command again"
                         ) from None


def lock(file: BinaryIO, out: str) -> None:
    """ValueError if another process writes the file; the system lets go however this one ends."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"{out}: another process writes it: wait for it, or give another file"
                         ) from None


def go_on(file: BinaryIO, out: str, rows: Iterator[RowToRank], judge: str) -> Iterator[RowToRank]:
    """Put the file behind its whole lines; gives the rows that have none yet."""
    whole = 0  # bytes
    for number, line in enumerate(file, 1):
        expected = next(rows, None)
        if not line.endswith(b"\n"):
            check_half_line(line, f"{out}, line {number}", expected)
            rows = chain([expected], rows)
            break
        check_line(line, f"{out}, line {number}", expected, judge)
        whole += len(line)
    file.seek(whole)
    file.truncate()
    return rows


def check_half_line(line: bytes, where: str, expected: RowToRank | None) -> None:
    """Whether a line that was cut begins as the expected row does."""
    begins = b""
    if expected is not None:
        begins = json.dumps(expected.row).removesuffix("}").encode()
    shared = min(len(line), len(begins))
    if not shared or line[:shared] != begins[:shared]:
        raise ValueError(f"{where} is no row of what is read: remove the file, or give another")


def check_line(line: bytes, where: str, expected: RowToRank | None, judge: str) -> None:
    """Whether a line of OUT is the expected row, ranked by this judge."""
    row = parse_object(line, where, "remove the file, or give another")
    ranking = row.pop("ranking", None)
    if expected is None or json.dumps(row) != json.dumps(expected.row):
        of = "no row" if expected is None else f"not {expected.where}"
        raise ValueError(f"{where} is {of} of what is read: remove the file, or give another")
    if not isinstance(ranking, dict) or ranking.get("judge") != judge:
        raise ValueError(f"{where} was ranked by another judge: remove the file, or give another")
