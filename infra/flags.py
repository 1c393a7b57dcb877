"""A frozen dataclass as command-line flags: a field is a flag, its default, its range and its
help."""

import argparse
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, NamedTuple

# What --help shows together.
GROUPS = {
    "paper": "the paper: what is trained, and how",
    "machine": "the machine: what a step takes of it",
    "files": "the files: what is read and written",
}


def flag(default: Any, help: str, choices: Callable | Sequence | None = None,
         least: float | None = None, most: float = 10**9, positive: bool = False,
         group: str = "paper") -> Any:
    """A field of a settings class. `choices` may be a function, so that a table is read when the
    command line is; `least`, `most` and `positive` are the range of a number; `group` is one of
    GROUPS."""
    metadata = {"help": help, "choices": choices, "least": least, "most": most,
                "positive": positive, "group": group}
    return field(default=default, metadata=metadata)


class Programs(NamedTuple):
    """What a user types for the two commands: what is printed names them."""

    train: str = "python train.py"
    evaluate: str = "python evaluate.py"


OURS = Programs()


def option(name: str) -> str:
    """micro_tokens -> --micro-tokens"""
    return "--" + name.replace("_", "-")


class CommandLine(NamedTuple):
    given: dict[str, Any]  # field: value, of the flags that were given
    resume: str | None
    dry_run: bool


def parse(settings_class: type, argv: Sequence[str] | None, description: str,
          program: str = OURS.train) -> CommandLine:
    """Read the command line. Abbreviated flags are refused; a flag that is not given is not in
    `given`, so that a recipe can stand between the flag and the default."""
    parser = argparse.ArgumentParser(
        prog=program.removeprefix("python "), description=description, allow_abbrev=False,
        epilog="The recipe of the model's size and the domain stands above these defaults, a flag "
               "that is given above both.")
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for f in fields(settings_class):
        add_flag(groups[f.metadata["group"]], f)
    groups["files"].add_argument("--resume", metavar="DIR",
                                 help="go on with the run in DIR as it was begun; --data says "
                                      "where its pairs have moved")
    groups["files"].add_argument("--dry-run", action="store_true",
                                 help="print the plan and stop; what the run needs from the Hub "
                                      "is fetched first")
    given = vars(parser.parse_args(argv))
    resume = given.pop("resume")
    dry_run = given.pop("dry_run")
    for f in fields(settings_class):
        if f.name in given:
            check_range(f, given[f.name])
    return CommandLine(given, resume, dry_run)


METAVARS = {int: "N", float: "X"}  # what stands for a value in --help; NAME for any other


def add_flag(group: argparse._ArgumentGroup, f: Any):
    text = f"{f.metadata['help']} (default: {shown(f.default)})"
    if f.default is False:
        group.add_argument(option(f.name), action="store_true", default=argparse.SUPPRESS,
                           help=text)
        return

    choices = f.metadata["choices"]
    if callable(choices):
        choices = choices()
    several = isinstance(f.default, tuple)
    metavar = None
    if choices is None:
        metavar = METAVARS.get(type(f.default), "NAME")
    group.add_argument(option(f.name), default=argparse.SUPPRESS, help=text, choices=choices,
                       type=str if several else type(f.default), nargs="+" if several else None,
                       metavar=metavar)


def shown(default: Any) -> str:
    """A default as --help shows it."""
    if default is False:
        return "off"
    if isinstance(default, tuple):
        default = " ".join(default)
    if isinstance(default, float):
        return f"{default:g}"
    if default == "":
        return "none"
    return str(default)


def check_stored(settings_class: type, values: dict[str, Any], where: str):
    """ValueError if the settings in the file `where` are not those of `settings_class`."""
    known = {f.name: f for f in fields(settings_class)}
    if values.keys() != known.keys():
        odd = sorted(values.keys() ^ known.keys())
        raise ValueError(f"{where}: its settings lack or do not have {', '.join(odd)[:200]}")
    for name, value in values.items():
        default, choices = known[name].default, known[name].metadata["choices"]
        if callable(choices):
            choices = choices()
        if isinstance(default, tuple):
            fits = isinstance(value, list) and all(isinstance(word, str) for word in value)
        elif type(default) is float:
            fits = type(value) in (int, float)
        else:
            fits = type(value) is type(default) and (choices is None or value in choices)
        if not fits:
            raise ValueError(f"{where}: {option(name)} cannot be {str(value)[:60]!r}")
        try:
            check_range(known[name], value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def has_controls(text: str) -> bool:
    """Whether a text has line breaks or other characters that print nothing: Unicode's categories
    C (controls, formats, halves of pairs), Zl and Zp. A no-break space is none."""
    kinds = {unicodedata.category(letter) for letter in text}
    return any(kind.startswith("C") or kind in ("Zl", "Zp") for kind in kinds)


def check_range(f: Any, value: Any):
    """ValueError for a number that is out of the range of its flag, and for a text with line
    breaks, which could write lines of its own in a model's card."""
    texts = []
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list | tuple):
        texts = value
    for text in texts:
        if has_controls(text):
            raise ValueError(f"{option(f.name)} {text!r}: give it without line breaks")

    if f.metadata["positive"] and not 0 < value < math.inf:
        raise ValueError(f"{option(f.name)} {value}: give a number above 0")
    least = f.metadata["least"]
    if least is not None and not least <= value < math.inf:
        raise ValueError(f"{option(f.name)} {value}: give {least} or more")
    most = f.metadata["most"]
    if type(value) in (int, float) and not -most <= value <= most:
        raise ValueError(f"{option(f.name)} {str(value)[:40]}: give at most {most}")
