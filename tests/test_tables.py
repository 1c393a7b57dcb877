"""Files of rows: every format reads as the same rows, gzipped or not, and what is damaged, or is no
file, is one line.

Run: python -m pytest tests/test_tables.py
"""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys

import pyarrow
import pytest
from hub_server import json_lines, parquet, skywork_row

import evaluate
from infra.hub import ROOT
from infra.tables import is_table, read_rows
from tinyrm import read_json

ROWS = [{"prompt": f"p{i}, \"or\"\n\u00e9?", "chosen": str(i), "rejected": ""} for i in range(1000)]


def arrow(rows) -> bytes:
    table, out = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def comma_separated(rows) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8-sig")  # as spreadsheets write it


def arrow_file(rows) -> bytes:
    table, out = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return out.getvalue()


BODIES = {
    "a.jsonl": json_lines(ROWS),
    "lines.json": json_lines(ROWS),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "array.jsonl": b"\n  " + json.dumps(ROWS).encode(),
    "a.parquet": parquet(ROWS),
    "a.arrow": arrow(ROWS),
    "a.csv": comma_separated(ROWS),
    "A.CSV": comma_separated(ROWS),
    "file.arrow": arrow_file(ROWS),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "marked.jsonl": b"\xef\xbb\xbf" + json_lines(ROWS),
    "a.txt": json_lines(ROWS),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_all_formats_read_as_the_same_rows(tmp_path, name, zipped):
    path, body = tmp_path / name, BODIES[name]
    if zipped:
        path, body = tmp_path / f"{name}.gz", gzip.compress(body)
    path.write_bytes(body)
    rows = list(read_rows(path))
    assert [found.row for found in rows] == ROWS
    assert rows[0].where.startswith(f"{path}, ") and rows[0].where != rows[1].where
    assert is_table(str(path))


def test_a_row_of_lines_knows_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n  \n{"a": 2}\n')
    assert list(read_rows(tmp_path / "a.jsonl")) == [
        (1, f"{tmp_path}/a.jsonl, line 1", {"a": 1}),
        (3, f"{tmp_path}/a.jsonl, line 3", {"a": 2}),
    ]


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{')
    rows = read_rows(tmp_path / "a.jsonl")
    assert next(rows).row == {"a": 1}
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        next(rows)


def test_cells_of_csv_are_text_and_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f"chosen,rejected\n007,{'x' * 200_000}\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert row.row == {"chosen": "007", "rejected": "x" * 200_000}


@pytest.mark.parametrize("name, body, message", [
    ("a.json", b'[{"a": 1}, 2]', "row 2: no object, but '2'"),
    ("a.json", b'[{"a": 1}', "a.json: not valid JSON"),
    ("a.json", b"[" * 100_000, "a.json: not valid JSON"),
    ("a.csv", b"a,b\n1,2,3\n", "line 2: more cells"),
    ("a.csv", b'a,b\n1,"2\n', "a.csv: damaged"),
    ("a.csv", b"a,b\n\xff,2\n", "a.csv: damaged"),
    ("a.parquet", b"PAR1", "a.parquet: damaged"),
    ("a.arrow", b"x" * 99, "a.arrow: damaged"),
    ("a.jsonl.gz", b'{"a": 1}', "a.jsonl.gz: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(json_lines(ROWS))[:-20], "a.jsonl.gz: damaged"),
])  # fmt: skip
def test_a_bad_file_is_one_line_that_names_it(tmp_path, name, body, message):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ValueError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 350


def arrow_with_a_name_twice(kind: str) -> bytes:
    table = pyarrow.table([pyarrow.array(["x"])] * 3, names=["chosen", "b", "chosen"])
    sink = pyarrow.BufferOutputStream()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name, body, where", [
    ("a.jsonl", b'{"chosen": "x", "b": "y", "chosen": "z"}\n', "a.jsonl, line 1: "),
    ("a.json", b'[{"chosen": "x", "b": {"chosen": 1, "chosen": 2}}]', "a.json: "),
    ("a.csv", b"chosen,b,chosen\nx,y,z\n", "a.csv: "),
    ("a.parquet", arrow_with_a_name_twice("parquet"), "a.parquet: "),
    ("a.arrow", arrow_with_a_name_twice("arrow"), "a.arrow: "),
])  # fmt: skip
def test_a_name_that_is_there_twice_is_refused(tmp_path, name, body, where):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ValueError, match=f"{where}.*'chosen' is there twice") as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value) and "not valid" not in str(error.value)


def test_columns_of_csv_without_a_name_are_left_alone(tmp_path):
    (tmp_path / "a.csv").write_text("chosen,,\nx,,\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert row.row["chosen"] == "x"


@pytest.mark.parametrize("name", BODIES)
def test_any_damage_is_refused_or_harmless(tmp_path, name):
    rng = random.Random(name)
    path = tmp_path / f"{name}.gz" if rng.random() < 0.3 else tmp_path / name
    for _ in range(40):
        body = bytearray(BODIES[name])
        for _ in range(rng.choice([1, 1, 20])):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        path.write_bytes(body[: rng.choice([len(body), rng.randrange(len(body))])])
        try:
            list(read_rows(path))
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_memory_does_not_grow_with_the_rows_of_a_parquet_file(tmp_path):
    path = tmp_path / "rows.parquet"
    peaks = []
    for count in (3000, 9000):
        rows = [skywork_row("magpie", f"{i} " + "x" * 2000) for i in range(count)]
        path.write_bytes(parquet(rows, row_group_size=500))
        del rows
        pyarrow.default_memory_pool().release_unused()
        before = pyarrow.total_allocated_bytes()
        peaks.append(max(pyarrow.total_allocated_bytes() - before for _ in read_rows(path)))
    assert 0 < peaks[1] < 1.2 * peaks[0]


# --- what is no file -----------------------------------------------------------------------------


def test_a_pipe_is_refused_at_once_also_without_a_writer(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="a.jsonl is a pipe or a device: .*write it to a file"):
        list(read_rows(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="/dev/null is a pipe or a device"):
        list(read_rows("/dev/null"))


@pytest.mark.parametrize("command", ["cat F | {0}", "{0} < F"])
def test_standard_input_is_read_if_it_is_a_file(tmp_path, command):
    (tmp_path / "F").write_text('{"a": 1}\n')
    code = "from infra.tables import read_rows; print(*read_rows('/dev/stdin'))"
    shell = command.format(f'PYTHONPATH={ROOT} {sys.executable} -c "{code}"')
    run = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True)
    if "|" in command:
        assert run.stderr.endswith("write it to a file first\n")
    else:
        assert "{'a': 1}" in run.stdout


def test_the_judge_takes_any_table_and_refuses_a_pipe(tiny, pairs_file, tmp_path):
    rows = [found.row for found in read_rows(pairs_file)]
    (tmp_path / "pairs.parquet").write_bytes(parquet(rows))
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress(comma_separated(rows)))
    scores = []
    for name in (pairs_file, tmp_path / "pairs.parquet", tmp_path / "pairs.csv.gz"):
        out = tmp_path / f"of {name.name}"
        evaluate.main([str(tiny), str(name), "--device", "cpu", "--out", str(out)])
        (report,) = read_json(out / "results.json")["reports"]
        scores.append(report["lines"])
    assert scores[0] == scores[1] == scores[2]

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        evaluate.main([str(tiny), str(tmp_path / "pipe"), "--out", str(tmp_path / "out")])


def test_a_name_is_a_table_by_its_ending_or_as_there_is_such_a_file(tmp_path):
    (tmp_path / "mine").write_text("")
    assert is_table(f"{tmp_path}/mine") and not is_table(f"{tmp_path}/other")
    assert is_table("nowhere.csv.gz") and not is_table(str(tmp_path)) and not is_table("org/name")
