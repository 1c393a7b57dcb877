"""Where pairs come from: what --data can name, and the rules that read the paper's data.

Which repositories on the Hub a domain takes stands in data.DOMAINS. Here is, for each repository,
the rule that makes its rows rows of a pairs file. The conversion leaves out every pair whose prompt
is in one of the four benchmarks, and counts what it takes beside the numbers of the paper's author.
Files of one's own, and data sets that are named on the Hub, are taken as they are.
"""

import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TextIO

import torch
from huggingface_hub import constants

import data
from data import SKYWORK, Pair
from infra.benchmarks import BENCHMARKS
from infra.hub import ROOT, Snapshot, Wanted, download, fetch_dataset, parse_revisions
from infra.pairs import (
    FEW_PAIRS,
    HELD_OUT_MOST,
    HELD_OUT_SHARE,
    is_preferred,
    load_pairs,
    parse_pair,
    prompt_column,
    prompt_hash,
    split,
    to_text,
)
from infra.tables import has_known_ending, is_table, read_rows

PKU = "PKU-Alignment/PKU-SafeRLHF-30K"
WEBGPT = "openai/webgpt_comparisons"

UNREADABLE = "unreadable"  # what rows are counted under of which not even the part can be read

# where a data set on the Hub may have its split `train`
TRAIN_FILES = ("train.*", "train-*", "*/train.*", "*/train-*", "train/*", "*/train/*")

# "<|im_start|>", "<|eot_id|>", "<start_of_turn>", "[INST]": tokens of chat templates
TEMPLATE_TOKEN = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>|\[/?INST\]")

NANO_PAIRS = ROOT / "nano/pairs"

# --------------------------------------------------------------- how a row of each repository reads


class SourceRow(NamedTuple):
    """One row of a repository, converted."""

    part: str  # what it is counted under
    pair: dict | None  # a row of a pairs file; None for a tie


def read_skywork(row: dict, name: str) -> SourceRow:
    """Conversations, and the set they are from. A row is of the one part whose name its `source`
    holds, in any case: the split that gives exactly the author's counts."""
    source = row["source"]
    part = source
    # "magpie-ultra-v0.1" holds the name of the part "magpie"; none or two of them are unknown
    matching = [known for known in SOURCES[SKYWORK].parts if known in source.lower()]
    if len(matching) == 1:
        part = matching[0]
    pair = {"chosen": row["chosen"], "rejected": row["rejected"], "subset": source}
    return SourceRow(part, pair)


def read_pku(row: dict, name: str) -> SourceRow:
    """The safer response wins. The paper's 26.9 k pairs are very likely this set's split train,
    whose rows are as many; whether its author took the safer or the better one is not known."""
    responses = {0: row["response_0"], 1: row["response_1"]}
    safer = row["safer_response_id"]
    if safer not in responses:
        return SourceRow(name, None)
    return SourceRow(name, pair_row(row["prompt"], responses[safer], responses[1 - safer], name))


def read_webgpt(row: dict, name: str) -> SourceRow:
    """The scores of the two answers add up to 0; a score of 0 is a tie."""
    first, second = row["answer_0"], row["answer_1"]
    if row["score_0"] == 0:
        return SourceRow(name, None)
    if row["score_0"] < 0:
        first, second = second, first
    return SourceRow(name, pair_row(row["question"]["full_text"], first, second, name))


def read_author(row: dict, name: str) -> SourceRow:
    """The ready-made sets of the paper's author."""
    return SourceRow(name, pair_row(row["question"], row["chosen"], row["rejected"], name))


def read_pairs(row: dict, name: str) -> SourceRow:
    """Rows that are rows of a pairs file already."""
    return SourceRow(name, dict(row))


def pair_row(prompt: str, chosen: str, rejected: str, subset: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": subset}


class Part(NamedTuple):
    """Rows of a repository that are counted together."""

    published: int  # how many pairs the author had (WebGPT: rounded)
    domain: str = ""  # whose pairs they are; empty: of any domain that names the repository
    remark: str = ""  # what the count cannot say


class Source(NamedTuple):
    """How a repository is read."""

    read_row: Callable[[dict, str], SourceRow]
    files: str = "data/*"
    branch: str | None = None
    parts: dict[str, Part] = {}  # of rows that have no other part; empty: one, without a number
    license: str = "none named"  # what its card on the Hub names


# A repository that is not here has rows of a pairs file, in data/.
SOURCES = {
    SKYWORK: Source(
        read_skywork,
        parts={
            "magpie": Part(54_582, "reasoning"),
            "offset": Part(8_504, "safety"),
            "wildguard": Part(6_709, "safety"),
            "helpsteer": Part(7_221, "chat"),
        },
    ),
    # of these two the branch has what the Hub made of their own files (xz, a script)
    PKU: Source(
        read_pku,
        "*/train/*",
        branch="refs/convert/parquet",
        parts={
            "PKU-SafeRLHF-30K": Part(
                26_874, remark="by safer_response_id; which label the author took is unknown"
            )
        },
        license="cc-by-nc-4.0",
    ),
    WEBGPT: Source(
        read_webgpt,
        "*/train/*",
        branch="refs/convert/parquet",
        parts={"webgpt_comparisons": Part(14_300)},
    ),
    "sarahpann/skywork_reasoning": Source(read_author),
    "sarahpann/skywork_safety": Source(read_author),
    "sarahpann/skywork_chat": Source(read_author),
    "sarahpann/PKU_SafeRLHF_simp": Source(read_author, license="cc-by-nc-4.0"),  # PKU's
    "sarahpann/webgpt_comparisons_simp": Source(read_author),
}


def source_of(repository: str) -> Source:
    return SOURCES.get(repository, Source(read_pairs))


# ---------------------------------------------------------------------------------- the conversion


def repositories_of_domain(domain: str, author: bool) -> tuple[str, ...]:
    if author:
        return data.DOMAINS[domain].author_sources
    return data.DOMAINS[domain].sources


def domains_with_sources(domain: str, author: bool) -> list[str]:
    """The domain, or for "all" every domain that takes pairs from the Hub."""
    names = [domain]
    if domain == "all":
        names = list(data.DOMAINS)  # read when called: a domain can be added

    found = [name for name in names if repositories_of_domain(name, author)]
    if not found:
        flag = "hub:author" if author else "hub"
        raise ValueError(
            f"--data {flag}: domain {domain} names no repositories of the Hub: give files of "
            "pairs, or name its repositories in data.DOMAINS"
        )
    return found


def repositories(domain: str, author: bool = False) -> list[str]:
    """The repositories that a domain's pairs come from, then the benchmarks' own, whose prompts no
    pair may have."""
    names = []
    for part in domains_with_sources(domain, author):
        for repository in repositories_of_domain(part, author):
            if repository not in names:
                names.append(repository)
    return names + [benchmark.repository for benchmark in BENCHMARKS.values()]


def wanted_of(repository: str, commit: str | None) -> Wanted:
    """The files of one of these repositories, at a commit or as they are now."""
    source = source_of(repository)
    patterns = [source.files]
    for benchmark in BENCHMARKS.values():
        if benchmark.repository == repository:
            patterns = list(benchmark.files.values())
    revision = commit
    if commit is None:
        revision = source.branch
    return Wanted(repository, "dataset", patterns, revision)


class Converted(NamedTuple):
    """The paper's pairs, made from the Hub."""

    files: list[Path]  # a pairs file for each domain
    note: str  # what is in them, in words
    commits: dict[str, str]  # of every repository that was read


def convert(
    domain: str, author: bool = False, commits: dict[str, str] | None = None
) -> Converted:
    """Training pairs from the Hub, less those whose prompt is in a benchmark.

    `commits` pins repositories; of others the newest is taken. A domain's file is made once for
    each set of commits, and kept in the Hub's cache.
    """
    pinned = {} if commits is None else dict(commits)  # the caller's stays as it is
    read = {}
    files, notes = [], []
    for name in domains_with_sources(domain, author):
        # the files of its repositories
        snapshots = {}
        for repository in repositories(name, author):
            wanted = wanted_of(repository, pinned.get(repository))
            snapshot = fetch_dataset(repository, wanted.patterns, wanted.revision)
            snapshots[repository] = snapshot
            # the next domain takes the very same, also when the Hub moves on in between
            pinned[repository] = read[repository] = snapshot.commit

        # its pairs, made of them
        file = convert_domain(name, snapshots)
        files.append(file)
        notes.append(note_of(file).read_text(encoding="utf-8"))
    return Converted(files, "; ".join(notes), read)


def note_of(file: Path) -> Path:
    """Where it stands in words what is in a converted file."""
    return file.with_suffix(".txt")


def convert_domain(domain: str, snapshots: dict[str, Snapshot]) -> Path:
    """The pairs file of a domain, made now if it is not in the cache."""
    # the name of the file says what it was made of
    named = [f"{repository}@{snapshot.commit}" for repository, snapshot in snapshots.items()]
    origin = ", ".join(named)
    # the 3 goes up when the rules above change, so that no file made by older ones is taken
    key = hashlib.blake2b(f"3 {origin}".encode()).hexdigest()[:12]
    file = Path(constants.HF_HOME, "tinyrm", f"{domain}-{key}.jsonl")
    if file.exists() and note_of(file).exists():
        return file

    print(f"making {file} (a minute or so, once)", file=sys.stderr, flush=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # in a folder of its own, since another run may be making the same file now
        with TemporaryDirectory(dir=file.parent) as folder:
            new_file, new_note = Path(folder, "pairs.jsonl"), Path(folder, "note.txt")
            note = write_pairs(new_file, domain, snapshots)
            new_note.write_text(note, encoding="utf-8")
            new_note.replace(note_of(file))
            new_file.replace(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}: make room, or set HF_HOME") from None
    return file


def write_pairs(file: Path, domain: str, snapshots: dict[str, Snapshot]) -> str:
    """Write a domain's pairs; returns in words how many there are of each part."""
    # the prompts that no pair may have, of each benchmark
    sources = dict(snapshots)
    prompts = {}
    for name, benchmark in BENCHMARKS.items():
        prompts[name] = prompts_of(benchmark.repository, sources.pop(benchmark.repository))

    # the pairs, repository by repository
    counts = []
    with open(file, "w", encoding="utf-8") as out:
        for repository, snapshot in sources.items():
            counts += write_source(out, domain, repository, snapshot, prompts)
    all_counts = " + ".join(counts)
    origin = ", ".join(f"{repository}@{each.commit[:8]}" for repository, each in sources.items())
    return f"{domain} = {all_counts}, from {origin}"


def prompts_of(repository: str, snapshot: Snapshot) -> set[int]:
    """The hashes of a benchmark's prompts."""
    hashes = set()
    for row in rows_of(snapshot):
        column = prompt_column(row, repository)
        if column is None:
            raise missing_column(repository, snapshot, "'prompt'")
        hashes.add(prompt_hash(to_text(row[column], repository)))
    return hashes


def write_source(
    out: TextIO, domain: str, repository: str, snapshot: Snapshot, prompts: dict[str, set[int]]
) -> list[str]:
    """Write the pairs that a domain has in one repository; returns in words what was counted."""
    parts = source_of(repository).parts
    rows_of_part = Counter()  # also of other domains
    counts = defaultdict(Counter)  # of each part of this domain what became of its rows

    for row in source_rows(repository, snapshot):
        rows_of_part[row.part] += 1
        part = parts.get(row.part, Part(0))
        if part.domain not in ("", domain):
            continue

        # what becomes of the row
        count = counts[row.part]
        pair = pair_of(row, domain)
        if pair is None:
            count["left out"] += 1
            continue
        hashed = prompt_hash(pair.prompt)
        found = [name for name, hashes in prompts.items() if hashed in hashes]
        if found:
            count["removed"] += 1
            count.update(found)
            continue

        count["kept"] += 1
        if TEMPLATE_TOKEN.search(pair.chosen) or TEMPLATE_TOKEN.search(pair.rejected):
            count["template tokens"] += 1
        line = json.dumps(pair._replace(where="")._asdict())
        out.write(line + "\n")

    # a new set in the mix must not be counted as another one, or be lost
    known = {*parts, UNREADABLE}
    unknown = [part for part in rows_of_part if parts and part not in known]
    if unknown:
        raise ValueError(
            f"{repository}: its rule does not know {unknown} of {dict(rows_of_part)}: "
            "give another revision, or name them in infra/sources.py"
        )
    return [describe(part, parts, counts[part]) for part in counts]


def source_rows(repository: str, snapshot: Snapshot) -> Iterator[SourceRow]:
    """The rows of a repository, converted by its rule."""
    name = repository.split("/")[1]
    read_row = source_of(repository).read_row
    for row in rows_of(snapshot):
        try:
            converted = read_row(row, name)
        except KeyError as column:
            raise missing_column(repository, snapshot, column) from None
        except (AttributeError, TypeError):  # null where a text should be: counted, as no pair
            part = UNREADABLE
            if name in source_of(repository).parts:
                part = name
            converted = SourceRow(part, None)
        yield converted


def rows_of(snapshot: Snapshot) -> Iterator[dict]:
    for path in snapshot.paths:
        for _, _, row in read_rows(path):
            yield row


def missing_column(repository: str, snapshot: Snapshot, column: object) -> ValueError:
    return ValueError(
        f"{repository}@{snapshot.commit}: no column {column}: give another revision"
    )


def pair_of(row: SourceRow, domain: str) -> Pair | None:
    """The pair of a converted row; None for a tie, and for a row that is no pair: one odd row of a
    public set does not end a run, it is counted."""
    if row.pair is None:
        return None
    own_row = dict(row.pair, domain=domain)
    try:
        if not is_preferred(own_row, row.part):
            return None
        return parse_pair(own_row, row.part)
    except ValueError:
        return None


def describe(part: str, parts: dict[str, Part], count: Counter) -> str:
    """What became of the rows of a part, in words."""
    pairs = count["kept"] + count["removed"]
    published = ""
    if part in parts:
        author_had = parts[part].published
        published = f" (published {author_had:,}: {pairs - author_had:+,})"

    details = [f"{name} {count[name]:,}" for name in BENCHMARKS]
    details.append(f"left out {count['left out']:,} rows that are no pairs or ties")
    if count["template tokens"]:
        details.append(f"kept {count['template tokens']:,} with tokens of a chat template")
    if part in parts and parts[part].remark:
        details.append(parts[part].remark)
    return (
        f"{pairs:,} {part}{published} - {count['removed']:,} with a prompt of a benchmark "
        f"({', '.join(details)})"
    )


# ----------------------------------------------------------------------------- what --data can name


def check_names(names: Sequence[str]) -> None:
    """Refuse what --data cannot be: it is one of the names, or files of pairs and data sets on the
    Hub, never both."""
    if list(names) in (["auto"], ["nano"], ["hub"], ["hub:author"]):
        return
    for name in names:
        if name.partition(":")[0] in ("auto", "nano", "hub"):
            given = " ".join(names)
            raise ValueError(f"--data {given}: give nano, hub, hub:author or files of pairs")


def is_repository(name: str) -> bool:
    """Whether a name is that of a data set on the Hub, OWNER/NAME, and no file or folder."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return False
    return not is_table(name) and not os.path.exists(name)


def fetch_train_split(repository: str, revision: str | None) -> Snapshot:
    """The files of a data set's split `train`. ValueError if there is none, or more than one."""
    folder = download(Wanted(repository, "dataset", list(TRAIN_FILES), revision))
    paths, kinds = [], {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if has_known_ending(name) and any(fnmatch(name, pattern) for pattern in TRAIN_FILES):
            paths.append(path)
            kinds[path.parent, path.suffix] = name

    if len(kinds) != 1:
        found = "none"
        if kinds:
            found = ", ".join(kinds.values())[:200]
        raise ValueError(
            f"--data {repository}: needs one split train of parquet, JSON or CSV files, has "
            f"{found}: download what you mean and give its files"
        )
    return Snapshot(folder.name, paths)


def pinned_commits(revision: Sequence[str], names: Sequence[str], domain: str) -> dict[str, str]:
    """What --revision says, as {repository, or "" for the model: commit}. ValueError for a
    repository that --data and --domain do not put to use."""
    in_use = [name for name in names if is_repository(name)]
    if list(names) == ["hub"]:
        in_use = repositories(domain)
    if list(names) == ["hub:author"]:
        in_use = repositories(domain, author=True)

    commits = parse_revisions(revision)
    unknown = set(commits) - {"", *in_use}
    if unknown:
        given = " ".join(revision)
        known = ", ".join(in_use) if in_use else "none"
        raise ValueError(
            f"--revision {given}: give COMMIT for the model, and OWNER/REPO=COMMIT for data sets "
            f"in use, here {known}"
        )
    return commits


def to_fetch(names: Sequence[str], domain: str, revision: Sequence[str]) -> list[Wanted]:
    """What the Hub has to send for `load_sets`. Raises ValueError as that does."""
    check_names(names)
    commits = pinned_commits(revision, names, domain)
    if list(names) in (["hub"], ["hub:author"]):
        used = repositories(domain, author=list(names) == ["hub:author"])
        return [wanted_of(repository, commits.get(repository)) for repository in used]

    wanted = []
    for name in names:
        if is_repository(name):
            wanted.append(Wanted(name, "dataset", list(TRAIN_FILES), commits.get(name)))
    return wanted


class PairSets(NamedTuple):
    """What a run trains on, and what it is judged by."""

    train: list[Pair]
    held_out: list[Pair]  # on the way; rates and passes may be chosen by them
    test: list[Pair]  # before and after; the held-out pairs themselves, if there are no others
    note: str  # where they come from, in words
    commits: dict[str, str]  # of the repositories that were read


def load_sets(
    names: Sequence[str],
    domain: str,
    held_out: float,
    limit: int,
    seed: int,
    revision: Sequence[str] = (),
) -> PairSets:
    """The pairs that --data names: ["nano"], ["hub"], ["hub:author"], or files of pairs and data
    sets on the Hub.

    nano brings pairs to choose by and test pairs of its own. Any other source is split by prompt
    (`split` in infra/pairs.py says how); a benchmark is never used to choose anything. With a
    limit, so many of the training pairs are drawn by the seed. `revision`: values of --revision.
    """
    names = list(names)
    check_names(names)
    commits = pinned_commits(revision, names, domain)
    if names == ["nano"]:
        sets = load_nano(domain)
        if held_out != -1:
            sets = sets._replace(note=f"{sets.note}; --held-out does not change them")
    else:
        sets = load_and_split(names, domain, held_out, seed, commits)

    if limit:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(sets.train), generator=generator)[:limit]
        kept = [sets.train[index] for index in sorted(drawn.tolist())]
        sets = sets._replace(train=kept)
    return sets


def load_and_split(
    names: list[str], domain: str, held_out: float, seed: int, commits: dict[str, str]
) -> PairSets:
    """The paper's data, or files of pairs and data sets on the Hub, split by prompt."""
    files, note, read = [], " ".join(names), {}
    if names in (["hub"], ["hub:author"]):
        files, note, read = convert(domain, names == ["hub:author"], commits)
    else:
        for name in names:
            if not is_repository(name):
                files.append(name)
                continue
            snapshot = fetch_train_split(name, commits.get(name))
            read[name] = snapshot.commit
            files.extend(snapshot.paths)

    left_out = Counter()
    pairs = load_pairs(files, domain, left_out)
    sides = split(pairs, held_out, seed)
    for what, count in left_out.items():
        if count:
            note += f"; left out {count:,} {what}"
    share = f"{held_out:g}"
    if held_out < 0:
        share = f"{HELD_OUT_SHARE:g}, at most {HELD_OUT_MOST},"
    note = f"{note}; {share} held out, by prompt"
    kept_back = [pairs[index] for index in sides.held_out]
    if 0 < len(kept_back) < FEW_PAIRS:
        note += "; few pairs to judge by: their accuracy will say little, see --held-out"
    return PairSets(
        train=[pairs[index] for index in sides.train],
        held_out=kept_back,
        test=kept_back,
        note=note,
        commits=read,
    )


def load_nano(domain: str) -> PairSets:
    """The micro-world's pairs of a domain; of "all" those of every domain that it has. Each of the
    three sets is about words that the others do not have."""
    names = [domain]
    if domain == "all":
        names = list(data.DOMAINS)

    note = "nano/pairs; no invented word of the test is in another set"
    sets = PairSets([], [], [], note, commits={})
    for name in names:
        files = [NANO_PAIRS / f"{name}.{part}.jsonl" for part in ("train", "choose", "test")]
        if all(file.is_file() for file in files):
            train, held_out, test = [load_pairs([file], name) for file in files]
            sets.train.extend(train)
            sets.held_out.extend(held_out)
            sets.test.extend(test)

    if not sets.train:
        raise ValueError(
            f"--data nano: {NANO_PAIRS} has no {domain}.train.jsonl, {domain}.choose.jsonl and "
            f"{domain}.test.jsonl: give files of pairs"
        )
    return sets
