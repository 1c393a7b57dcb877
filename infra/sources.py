"""Where pairs come from: what --data can name, and the rules that read the paper's data.

Which repositories on the Hub a domain takes stands in data.DOMAINS. Here is, for each repository,
the rule that makes its rows rows of a pairs file. The conversion leaves out every pair whose prompt
is in RewardBench, and counts what it takes beside the numbers of the paper's author.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TextIO

import torch
from huggingface_hub import constants

import data
from data import Pair
from infra.files import read_rows
from infra.hub import ROOT, Snapshot, fetch_dataset, parse_revisions
from infra.pairs import load_pairs, parse_pair, prompt_hash, split

SKYWORK = "Skywork/Skywork-Reward-Preference-80K-v0.2"
PKU = "PKU-Alignment/PKU-SafeRLHF"
WEBGPT = "openai/webgpt_comparisons"
BENCHMARK = "allenai/reward-bench"  # whose prompts no training pair may have

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
    """A safe response wins over an unsafe one; two of a kind are a tie (the author's own rule is
    unknown)."""
    first, second = row["response_0"], row["response_1"]
    first_is_safe, second_is_safe = row["is_response_0_safe"], row["is_response_1_safe"]
    if first_is_safe == second_is_safe:
        return SourceRow(name, None)
    if second_is_safe:
        first, second = second, first
    return SourceRow(name, pair_row(row["prompt"], first, second, name))


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

    published: int  # how many pairs the author had (PKU and WebGPT: rounded)
    domain: str = ""  # whose pairs they are; empty: of any domain that names the repository


class Source(NamedTuple):
    """How a repository is read."""

    read_row: Callable[[dict, str], SourceRow]
    files: str = "data/*"
    branch: str | None = None
    parts: dict[str, Part] = {}  # of rows that have no other part; empty: one, without a number


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
    PKU: Source(read_pku, "data/*/train.jsonl", parts={"PKU-SafeRLHF": Part(26_900)}),
    # its own files are a script; the branch has what the Hub made of them
    WEBGPT: Source(
        read_webgpt,
        "*/train/*",
        branch="refs/convert/parquet",
        parts={"webgpt_comparisons": Part(14_300)},
    ),
    "sarahpann/skywork_reasoning": Source(read_author),
    "sarahpann/skywork_safety": Source(read_author),
    "sarahpann/skywork_chat": Source(read_author),
    "sarahpann/PKU_SafeRLHF_simp": Source(read_author),
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
    """The repositories that a domain's pairs come from; the last has the prompts to leave out."""
    names = []
    for part in domains_with_sources(domain, author):
        for repository in repositories_of_domain(part, author):
            if repository not in names:
                names.append(repository)
    return [*names, BENCHMARK]


class Converted(NamedTuple):
    """The paper's pairs, made from the Hub."""

    files: list[Path]  # a pairs file for each domain
    note: str  # what is in them, in words
    commits: dict[str, str]  # of every repository that was read


def convert(
    domain: str, author: bool = False, commits: dict[str, str] | None = None
) -> Converted:
    """Training pairs from the Hub, less those whose prompt is in RewardBench.

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
            source = source_of(repository)
            revision = pinned.get(repository, source.branch)
            snapshots[repository] = fetch_dataset(repository, [source.files], revision)
            # the next domain takes the very same, also when the Hub moves on in between
            pinned[repository] = read[repository] = snapshots[repository].commit

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
    # the 2 goes up when the rules above change, so that no file made by older ones is taken
    key = hashlib.blake2b(f"2 {origin}".encode()).hexdigest()[:12]
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
            new_note.write_text(f"{note}, from {origin}", encoding="utf-8")
            new_note.replace(note_of(file))
            new_file.replace(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}: make room, or set HF_HOME") from None
    return file


def write_pairs(file: Path, domain: str, snapshots: dict[str, Snapshot]) -> str:
    """Write a domain's pairs; returns in words how many there are of each part."""
    # the prompts that no pair may have
    benchmark_prompts = set()
    for row in rows_of(snapshots[BENCHMARK]):
        if "prompt" not in row:
            raise missing_column(BENCHMARK, snapshots[BENCHMARK], "'prompt'")
        benchmark_prompts.add(prompt_hash(row["prompt"]))

    # the pairs, repository by repository
    counts = []
    with open(file, "w", encoding="utf-8") as out:
        for repository, snapshot in snapshots.items():
            if repository != BENCHMARK:
                counts += write_source(out, domain, repository, snapshot, benchmark_prompts)
    all_counts = " + ".join(counts)
    return f"{domain} = {all_counts}"


def write_source(
    out: TextIO, domain: str, repository: str, snapshot: Snapshot, benchmark_prompts: set[int]
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
        pair = pair_of(row, domain)
        if pair is None:
            counts[row.part]["left out"] += 1
        elif prompt_hash(pair.prompt) in benchmark_prompts:
            counts[row.part]["removed"] += 1
        else:
            counts[row.part]["kept"] += 1
            line = json.dumps(pair._replace(where="")._asdict())
            out.write(line + "\n")

    # a new set in the mix must not be counted as another one, or be lost
    unknown = [part for part in rows_of_part if parts and part not in parts]
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
        yield converted


def rows_of(snapshot: Snapshot) -> Iterator[dict]:
    for path in snapshot.paths:
        yield from read_rows(path)


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
    return (
        f"{pairs:,} {part}{published} - {count['removed']:,} with a prompt of RewardBench "
        f"({count['left out']:,} rows that are no pairs or ties left out)"
    )


# ----------------------------------------------------------------------------- what --data can name


def check_names(names: Sequence[str]) -> None:
    """Refuse what --data cannot be: it is one of the names, or files of pairs, never both."""
    if list(names) in (["auto"], ["nano"], ["hub"], ["hub:author"]):
        return
    for name in names:
        if name.partition(":")[0] in ("auto", "nano", "hub"):
            given = " ".join(names)
            raise ValueError(f"--data {given}: give nano, hub, hub:author or files of pairs")


def pinned_commits(revision: Sequence[str], names: Sequence[str], domain: str) -> dict[str, str]:
    """What --revision says, as {repository, or "" for the model: commit}. ValueError for a
    repository that --data and --domain do not put to use."""
    in_use = []
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
    """The pairs that --data names: ["nano"], ["hub"], ["hub:author"], or files of pairs.

    nano brings pairs to choose by and test pairs of its own. Any other source is split by prompt
    (`split` in infra/pairs.py says how); RewardBench is never used to choose anything. With a
    limit, so many of the training pairs are drawn by the seed. `revision`: values of --revision.
    """
    names = list(names)
    check_names(names)
    commits = pinned_commits(revision, names, domain)
    if names == ["nano"]:
        sets = load_nano(domain)
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
    """The paper's data, or files of pairs, split by prompt."""
    files, note, read = names, " ".join(names), {}
    if names in (["hub"], ["hub:author"]):
        files, note, read = convert(domain, names == ["hub:author"], commits)

    pairs = load_pairs(files, domain)
    sides = split(pairs, held_out, seed)
    kept_back = [pairs[index] for index in sides.held_out]
    return PairSets(
        train=[pairs[index] for index in sides.train],
        held_out=kept_back,
        test=kept_back,
        note=f"{note}; {held_out:g} held out, by prompt",
        commits=read,
    )


def load_nano(domain: str) -> PairSets:
    """The micro-world's pairs of a domain; of "all" those of every domain that it has. Each of the
    three sets is about words that the others do not have."""
    names = [domain]
    if domain == "all":
        names = list(data.DOMAINS)

    sets = PairSets([], [], [], "nano/pairs; no word of the test is in another set", commits={})
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
