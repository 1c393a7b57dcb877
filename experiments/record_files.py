"""Files of records: a line of JSON for each run, written the moment it ends, so that a script may
be killed and started again at any time."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_lines(path: Path, key_of: Callable[[dict], Any], only_look: bool = False) -> list[tuple]:
    """(key, record) of each line. A last line that was cut by a kill is left out, and taken from
    the file, so that the next record begins a new line (not where the file is only looked at).
    ValueError for a line that is no record."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[:text.rfind("\n") + 1]
    if whole != text and not only_look:
        os.truncate(path, len(whole.encode()))

    found = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            found.append((key_of(record), record))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: no record ({error!r}): take the line out") \
                from None
    return found


def append_record(path: Path, record: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
