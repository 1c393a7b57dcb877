"""Rows of a file, in the formats in which people have pairs, items and data sets:

    .jsonl or any other name    an object a line; or, if it begins with "[", one array of objects
    .parquet  .arrow            as Hugging Face's `datasets` writes them
    .csv                        with the columns' names in the first line; every cell is text, a
                                missing one None

each also gzipped (.jsonl.gz), in small or capital letters. A format is known by the name, JSON's
two by the first character, Arrow's two by the first six. All but arrays are streamed: memory
does not grow with the number of rows.
"""

import csv
import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow
from pyarrow.parquet import ParquetFile

from infra.files import NameTwice, check_names, object_of, parse_object

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv")
ADVICE = "give a file of JSON lines or a JSON array, parquet, Arrow or CSV"


class FileRow(NamedTuple):
    number: int  # of its line (of CSV the row's last); where there are no lines, of the row: from 1
    where: str  # "FILE, line 3", for errors; where there are no lines "FILE, row 3"
    row: dict


def is_table(name: str) -> bool:
    """Whether a name is that of a file of rows: by its ending, or as there is such a file."""
    is_other_file = os.path.exists(name) and not os.path.isdir(name)  # of a name too long: False
    return has_known_ending(name) or is_other_file


def has_known_ending(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def read_rows(path: Path | str) -> Iterator[FileRow]:
    """The rows of a file. ValueError for one that cannot be read, or is damaged."""
    name = str(path)
    try:
        # a pipe would be empty the second time, and one without a writer waits for ever
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{path} is a pipe or a device: files are read more than once, so "
                             "write it to a file first")

        lower = name.lower()  # some programs write .CSV
        open_file = gzip.open if lower.endswith(".gz") else open
        with open_file(path, "rb") as file:
            yield from read_open_file(file, Path(lower.removesuffix(".gz")).suffix, name)
    except OSError as error:
        reason = error.strerror or error  # those of gzip have no strerror
        raise ValueError(f"{path}: {reason}: {ADVICE}") from None
    except (EOFError, zlib.error, csv.Error, UnicodeError, pyarrow.ArrowException) as error:
        one_line = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: damaged, or no such format ({one_line}): {ADVICE}") from None


def read_open_file(file: BinaryIO, suffix: str, name: str) -> Iterator[FileRow]:
    """The rows of an open file; the format follows from the suffix."""
    if suffix == ".parquet":
        # pre_buffer would keep everything that was read of the file
        with ParquetFile(file, pre_buffer=False) as parquet:
            yield from rows_of_batches(parquet.iter_batches(batch_size=256), name)

    elif suffix == ".arrow":
        yield from rows_of_batches(arrow_batches(file), name)

    elif suffix == ".csv":
        csv.field_size_limit(sys.maxsize)  # it is 131,072 characters
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, strict=True)
        named = filter(None, reader.fieldnames or ())  # spreadsheets add columns without a name
        check_columns(named, name)
        for row in reader:
            where = f"{name}, line {reader.line_num}"
            if None in row:
                raise ValueError(f"{where}: more cells than the first line has: quote the commas")
            yield FileRow(reader.line_num, where, row)

    else:
        yield from read_json_rows(file, name)


def check_columns(columns: Iterable[str], name: str) -> None:
    try:
        check_names(columns)
    except NameTwice as error:
        raise ValueError(f"{name}: column {error}") from None


def arrow_batches(file: BinaryIO) -> Iterator[pyarrow.RecordBatch]:
    """The batches of Arrow's stream format, which `datasets` writes, or of its file format."""
    magic = file.read(6)
    file.seek(0)
    if magic != b"ARROW1":
        yield from pyarrow.ipc.open_stream(file)
        return
    reader = pyarrow.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def rows_of_batches(batches: Iterator[pyarrow.RecordBatch], name: str) -> Iterator[FileRow]:
    number = 0
    for batch in batches:
        check_columns(batch.schema.names, name)
        for row in batch.to_pylist():
            number += 1
            yield FileRow(number, f"{name}, row {number}", row)


def read_json_rows(file: BinaryIO, name: str) -> Iterator[FileRow]:
    """An array of objects, or an object a line; blank lines are skipped."""
    is_first = True
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of some editors
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith(b"["):
            yield from read_array(line + file.read(), name)
            return
        is_first = False
        where = f"{name}, line {number}"
        yield FileRow(number, where, parse_object(line, where, "give one object a line"))


def read_array(text: bytes, name: str) -> Iterator[FileRow]:
    try:
        rows = json.loads(text, object_pairs_hook=object_of)
    except NameTwice as error:
        raise ValueError(f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON ({error}): give an array of objects") from None
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: no object, but {str(row)[:40]!r}: give an array of objects")
        yield FileRow(number, where, row)
