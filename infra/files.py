"""Reading files of JSON; writing files and folders whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# ---------------------------------------------------------------------------------------- reading


def parse_object(text: bytes, where: str, advice: str) -> dict:
    """The JSON object in `text`; a ValueError says where it should stand and what to do."""
    try:
        value = json.loads(text, object_pairs_hook=object_of)
    except NameTwice as error:
        raise ValueError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are not UTF-8
        reason = str(error).replace("line 1 ", "")  # JSON lines: `where` has the line's number
        raise ValueError(f"{where}: not valid JSON ({reason}): {advice}") from None

    if not isinstance(value, dict):
        start = text[:40].decode(errors="replace").strip()
        raise ValueError(f"{where}: no object, but {start!r}: {advice}")
    return value


class NameTwice(ValueError):
    """A name of an object, or of a column, is there twice: which of the two would be read?"""


def object_of(fields: list[tuple]) -> dict:
    """A JSON object of its names and values. NameTwice where json.loads would keep the last of
    two."""
    value = dict(fields)
    if len(value) < len(fields):
        check_names([name for name, _ in fields])
    return value


def check_names(names: Iterable[str]) -> None:
    """NameTwice if one is there twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise NameTwice(f"{name[:40]!r} is there twice: rename one, or leave it out")
        seen.add(name)


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or a folder to the path that this yields; it then takes the place of `path`.

        with replacing(out / "model") as temporary:
            temporary.mkdir()
            ...

    Nobody ever finds half of it at `path`, also if the process is killed; an old folder, which
    cannot be replaced in one go, is away for a moment. If the block raises, what it wrote is
    removed: half a file would take the room that is short.
    """
    temporary = path.with_name(path.name + ".tinyrm.tmp")  # a name that nobody else has
    old = path.with_name(path.name + ".tinyrm-old.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)  # of a process that was killed here
    if os.path.lexists(path):
        remove(old)
    try:
        yield temporary

        if temporary.is_dir():
            for file in temporary.iterdir():
                sync(file)
        sync(temporary)
        if path.is_dir():
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
        remove(old)
    finally:
        remove(temporary)


def sync(path: Path) -> None:
    """Have a file, or the list of a folder's files, on the disk, so that a power cut spares it."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    # an error in here comes before anything is written
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
