"""Forms of pairs and items on disk: one JSON object a line, as people have them.

A pairs file, to train on or to judge by; `subset` and `domain` are optional, other keys ignored:

    {"prompt": "What is 2 + 3?", "chosen": "5.", "rejected": "6.",
     "subset": "sums",          # a name that the report has a line for
     "domain": "reasoning"}     # whose question the generalist is asked: a key of data.DOMAINS

The preference formats of TRL are read as they are. The prompt can be the beginning that both sides
share (whole words, or turns), and texts can be lists of messages:

    {"chosen": "The sky is blue.", "rejected": "The sky is green."}         # prompt: "The sky is"
    {"prompt":   [{"role": "user", "content": "What is 2 + 3?"}],
     "chosen":   [{"role": "assistant", "content": "5."}],
     "rejected": [{"role": "assistant", "content": "6."}]}

To judge by there are two forms more, whose sides are lists of responses:

    {"prompt": "What is 2 + 3?", "chosen": ["5."], "rejected": ["6.", "4."]}    # best of n

    {"id": "math/12", "prompt": "What is 2 + 3?",       # 3 x 3 styles, as RM-Bench has them: the id
     "chosen":   ["5.", "It is 5.", "It is **5**."],    # begins with one of STYLE_DOMAINS, and the
     "rejected": ["6.", "It is 6.", "It is **6**."]}    # styles are concise, detailed, markdown
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import data
from data import Item, Pair, clean
from infra.files import read_json_lines

# RM-Bench's names of its parts, which begin the id of a row, and whose question they are asked
STYLE_DOMAINS = {
    "chat": "chat",
    "code": "reasoning",
    "math": "reasoning",
    "safety-refuse": "safety",
    "safety-response": "safety",
}

# ------------------------------------------------------------------------------------------ texts


def prompt_hash(prompt: str) -> int:
    """64 bits by which two prompts count as the same: case and white space do not matter."""
    text = " ".join(clean(prompt).casefold().split())
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def is_message(value: object) -> bool:
    """Whether a value is {"role": "...", "content": "..."}; it may have more keys."""
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def to_text(value: object, where: str) -> str:
    """A string as it is; messages as `User: ...` and `Assistant: ...` with blank lines between.

    One message alone is its bare content, so that a single-turn chat and a plain string read the
    same. `where` says in errors what the value is.
    """
    if isinstance(value, str):
        return clean(value)

    # everything but a list of messages is refused
    is_list = isinstance(value, (list, tuple))
    if not is_list or not value or not all(is_message(message) for message in value):
        if value is None:
            what = "missing or null"
        else:
            what = json.dumps(value, default=repr)[:60]
        raise ValueError(
            f"{where} is {what}: give a string, or a list of messages "
            '{"role": "user", "content": "..."}'
        )

    if len(value) == 1:
        return clean(value[0]["content"])

    # [{"role": "user", "content": "Hi"}, ...] -> "User: Hi\n\n..."
    turns = []
    for message in value:
        speaker = clean(message["role"]).capitalize()
        content = clean(message["content"])
        turns.append(f"{speaker}: {content}")
    return "\n\n".join(turns)


# ------------------------------------------------------------------------------------------ pairs


def parse_pair(row: dict, where: str) -> Pair:
    """One row of a pairs file; `where` ("FILE, line N") names it in errors and in the pair.

    If there is no prompt, it is what both sides begin with.
    """
    for key in ("chosen", "rejected"):
        if key not in row:
            raise ValueError(f'{where}: no "{key}": give "prompt", "chosen" and "rejected"')
    chosen, rejected = row["chosen"], row["rejected"]
    shared = shared_beginning(chosen, rejected)

    # the prompt, and whether both sides begin with it
    if "prompt" not in row:
        prompt = to_text(shared, f'{where}: "prompt"')
        begin_with_prompt = True
    else:
        prompt = to_text(row["prompt"], f'{where}: "prompt"')
        begin_with_prompt = False  # some sets repeat it at the head of both conversations
        if isinstance(shared, list):
            begin_with_prompt = to_text(shared, f'{where}: "chosen"') == prompt

    # it is not shown twice
    if begin_with_prompt:
        chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]

    return Pair(
        prompt=prompt,
        chosen=to_text(chosen, f'{where}: "chosen"'),
        rejected=to_text(rejected, f'{where}: "rejected"'),
        subset=parse_subset(row, where),
        domain=parse_domain(row, where),
        where=where,
    )


def shared_beginning(chosen: object, rejected: object) -> str | list | None:
    """What both sides begin with: whole words of texts, turns but the last of conversations.

    None if they share nothing.
    """
    shared = None
    if isinstance(chosen, str) and isinstance(rejected, str):
        # "The sky is blue." and "The sky is black." share "The sky is bl", thus "The sky is"
        letters = chosen[: count_equal(chosen, rejected)]
        end = max(letters.rfind(" "), letters.rfind("\n"), 0)
        shared = letters[:end]

    elif isinstance(chosen, list) and isinstance(rejected, list):
        # the last turn is the response, also where both give the same
        shared = chosen[: count_equal(chosen[:-1], rejected[:-1])]

    if not shared:
        return None
    return shared


def count_equal(a: Sequence, b: Sequence) -> int:
    """How many elements two sequences share at their beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def parse_subset(row: dict, where: str) -> str:
    subset = row.get("subset")
    if subset is None:
        return ""
    return to_text(subset, f'{where}: "subset"')


def parse_domain(row: dict, where: str) -> str:
    domain = row.get("domain")
    if domain is None or domain == "":
        return ""
    if not isinstance(domain, str) or domain not in data.DOMAINS:
        known = ", ".join(data.DOMAINS)
        shown = " ".join(str(domain).split())[:60]
        raise ValueError(f'{where}: unknown domain "{shown}": use {known}, or none')
    return domain


def load_pairs(paths: Iterable[Path | str], domain: str = "all") -> list[Pair]:
    """The pairs of one file or several. Every line is checked, and an error names it.

    Of a domain: rows that name another are left out, and rows that name none are its own.
    """
    pairs = []
    for path in paths:
        pairs_before = len(pairs)
        first_has_prompt = None

        for number, row in read_json_lines(path):
            where = f"{path}, line {number}"
            pair = parse_pair(row, where)  # of every domain: a bad line is an error in any case

            # a forgotten prompt must not be taken for TRL's format without prompts
            has_prompt = "prompt" in row
            if first_has_prompt is None:
                first_has_prompt = has_prompt
            if has_prompt != first_has_prompt:
                raise ValueError(f'{where}: give "prompt" in all lines or in none')

            # keep what is of the domain that is asked for
            if domain == "all" or pair.domain == domain:
                pairs.append(pair)
            elif pair.domain == "":
                pairs.append(pair._replace(domain=domain))

        if len(pairs) == pairs_before:
            raise ValueError(f"{path}: no pairs in it for domain {domain}: give some")
    return pairs


def fingerprint(pairs: Iterable[Pair]) -> str:
    """32 hexadecimal digits that change with any text, with which side is chosen, with a domain,
    and with the order: with everything that training sees of the pairs."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        # JSON says where a text ends: ["a", "bc"] is not ["ab", "c"]
        seen = json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.domain])
        digest.update(seen.encode())
    return digest.hexdigest()


class Split(NamedTuple):
    train: list[int]  # indices into the pairs
    held_out: list[int]


def split(pairs: Sequence[Pair], held_out: float, seed: int) -> Split:
    """Hold out some pairs, by prompt: no prompt is on both sides.

    `held_out` is a share of the pairs if below 1, else their number. Which prompts depends on the
    seed, not on the order of the pairs.
    """
    wanted = held_out
    if held_out < 1:
        wanted = held_out * len(pairs)

    # prompts are put in an order that follows from their texts and the seed alone
    hashes = [prompt_hash(pair.prompt) for pair in pairs]
    pairs_of_prompt = Counter(hashes)

    def place(hashed: int) -> bytes:
        return hashlib.blake2b(b"%d %d" % (seed, hashed)).digest()

    # the first ones are held out, until they have as many pairs as wanted
    held_prompts = set()
    held_pairs = 0
    for hashed in sorted(pairs_of_prompt, key=place):
        if held_pairs >= wanted:
            break
        held_prompts.add(hashed)
        held_pairs += pairs_of_prompt[hashed]

    if len(held_prompts) == len(pairs_of_prompt):
        raise ValueError(
            f"holding out {held_out:g} of {len(pairs)} pairs ({len(pairs_of_prompt)} prompts) "
            "leaves nothing to train on: hold out fewer, or give more prompts"
        )

    sides = Split(train=[], held_out=[])
    for index, hashed in enumerate(hashes):
        if hashed in held_prompts:
            sides.held_out.append(index)
        else:
            sides.train.append(index)
    return sides


# ------------------------------------------------------------------------------------------ items


def parse_item(row: dict, where: str) -> tuple[str, Item]:
    """(form, item) of one row of a file to judge by; the form is "pairs", "pairs without a
    prompt", "best of n" or "3 x 3 styles". An id is kept as the item's tag in the subset "Ties",
    whose rows belong together by it (RewardBench 2)."""
    chosen, rejected = row.get("chosen"), row.get("rejected")

    # no list of responses on either side: a pair (lists of messages are one text)
    if not is_texts(chosen) and not is_texts(rejected):
        pair = parse_pair(row, where)
        form = "pairs" if "prompt" in row else "pairs without a prompt"
        responses = (pair.chosen, pair.rejected)
        item = Item(pair.prompt, responses, 1, pair.subset, pair.domain, where)
        return form, item

    # one list at least: best of n
    better = parse_texts(chosen, where)
    worse = parse_texts(rejected, where)
    item = Item(
        prompt=to_text(row.get("prompt"), f'{where}: "prompt"'),
        responses=(*better, *worse),
        good=len(better),
        subset=parse_subset(row, where),
        domain=parse_domain(row, where),
        where=where,
    )

    row_id = str(row.get("id"))
    if item.subset == "Ties":
        item = item._replace(tag=row_id)

    # three against three with an id such as "safety-refuse/3099": styles
    style = row_id.partition("/")[0]
    if style in STYLE_DOMAINS and len(better) == 3 and len(worse) == 3:
        domain = STYLE_DOMAINS[style]
        item = item._replace(subset=style, domain=domain, good_against_bad=True)
        return "3 x 3 styles", item

    return "best of n", item


def is_texts(value: object) -> bool:
    """Whether a value is a list of strings, and not an empty one."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(text, str) for text in value)


def parse_texts(side: object, where: str) -> list[str]:
    """A string or a list of strings as a list of clean strings."""
    if isinstance(side, str):
        side = [side]
    if not is_texts(side):
        raise ValueError(f"{where}: chosen and rejected: give lists of strings, none empty")
    return [clean(text) for text in side]
