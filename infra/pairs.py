"""Forms of pairs and items on disk, as people have them.

A pairs file, to train on or to judge by; `subset` and `domain` are optional, other keys ignored:

    {"prompt": "What is 2 + 3?", "chosen": "5.", "rejected": "6.",
     "subset": "sums",          # a name that the report has a line for
     "domain": "reasoning"}     # whose question the generalist is asked: a key of data.DOMAINS

The formats of a file (JSON lines, parquet, CSV ...) are those of infra/tables.py. The preference
formats of TRL are read as they are. The prompt can be the beginning that both sides share (whole
words, or turns), and texts can be lists of messages:

    {"chosen": "The sky is blue.", "rejected": "The sky is green."}         # prompt: "The sky is"
    {"prompt":   [{"role": "user", "content": "What is 2 + 3?"}],
     "chosen":   [{"role": "assistant", "content": "5."}],
     "rejected": [{"role": "assistant", "content": "6."}]}

Columns have these names; all others are ignored:

    prompt             else `question`, else `instruction`; next to it no `input`, `query`,
                       `context` or `system` may have text: join them in `prompt`
    chosen, rejected   the responses, or whole conversations that begin with the prompt
    score_chosen, score_rejected   if both are there, a row whose first is not above its second
                       (a tie) is no training pair: it is left out, and counted

Rows of any other form become such rows by a line. Where `preference` names the better of a1 and a2:

    jq -c '{prompt: .task, chosen: (if .preference == 1 then .a1 else .a2 end),
            rejected: (if .preference == 1 then .a2 else .a1 end)}' mine.jsonl > pairs.jsonl

To judge by there are two forms more, whose sides are lists of responses:

    {"prompt": "What is 2 + 3?", "chosen": ["5."], "rejected": ["6.", "4."]}    # best of n

    {"id": "math/12", "prompt": "What is 2 + 3?",       # 3 x 3 styles, as RM-Bench has them: the id
     "chosen":   ["5.", "It is 5.", "It is **5**."],    # begins with one of STYLE_DOMAINS, or the
     "rejected": ["6.", "It is 6.", "It is **6**."]}    # domain is one (and none of ours), and the
                                                        # styles are concise, detailed, markdown
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import data
from data import Item, Pair, clean
from infra.tables import read_rows

# RM-Bench's names of its parts, which begin the id of a row, and whose question they are asked
STYLE_DOMAINS = {
    "chat": "chat",
    "code": "reasoning",
    "math": "reasoning",
    "safety-refuse": "safety",
    "safety-response": "safety",
}
PROMPT_COLUMNS = ("prompt", "question", "instruction")  # the first that a row has
# columns that are a part of the prompt where they have text, and are not read
OTHER_PROMPT_COLUMNS = ("input", "query", "context", "user", "system")
REASONING = ("reasoning_content", "thinking")  # keys of messages that are left out, and counted

# by default, --held-out: this share of the pairs, but not more than so many
HELD_OUT_SHARE, HELD_OUT_MOST = 0.2, 200
FEW_PAIRS = 100  # fewer held-out pairs than this know an accuracy to +- 0.1 at best

# ------------------------------------------------------------------------------------------ texts


def prompt_hash(prompt: str) -> int:
    """64 bits by which two prompts count as the same: case and white space do not matter."""
    text = " ".join(clean(prompt).casefold().split())
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def prompt_key(prompt: str) -> str:
    """The same as 16 hexadecimal digits, for files."""
    return f"{prompt_hash(prompt):016x}"


def is_objects(value: object) -> bool:
    """Whether a value is a list of objects, and not an empty one."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(isinstance(one, dict) for one in value)


def is_text(value: object) -> bool:
    """Whether a value stands for one text: a string, or a list of messages."""
    return isinstance(value, str) or is_objects(value)


def is_texts(value: object) -> bool:
    """Whether a value is a list of texts, and not an empty one."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(is_text(text) for text in value)


def is_message(value: object) -> bool:
    """Whether a value is {"role": "...", "content": "..."}; it may have more keys. The content may
    be a list of parts, or null next to tool calls."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content, calls = value.get("content"), value.get("tool_calls")
    if calls is None or calls == []:
        return is_text(content)
    return is_objects(calls) and (content is None or is_text(content))


def message_text(message: dict, where: str) -> str:
    """What a message says: its content, then each tool call in a line of its own."""
    parts, calls = message.get("content"), message.get("tool_calls")
    if parts is None:
        parts = []
    elif isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]

    lines = []
    for part in parts:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type")
            raise ValueError(f"{where} has a part of type {kind!r}: only text can be judged")
        if part["text"]:
            lines.append(part["text"])

    if calls is None:
        calls = []
    for call in calls:
        function = call.get("function")  # {"type": "function", "function": {"name": ...}}
        if function is None:
            function = call
        text = json.dumps(function, ensure_ascii=False, default=repr)
        lines.append(f"Tool call: {text}")
    return clean("\n".join(lines))


def to_text(value: object, where: str) -> str:
    """A string as it is; messages as `User: ...` and `Assistant: ...` with blank lines between.

    One message alone is its bare content, so that a single-turn chat and a plain string read the
    same. `where` says in errors what the value is.
    """
    if isinstance(value, str):
        return clean(value)

    # everything but a list of messages is refused
    if not is_objects(value) or not all(is_message(message) for message in value):
        what = "missing or null"
        if value is not None:
            what = json.dumps(value, default=repr)[:60]
        raise ValueError(
            f"{where} is {what}: give a string, or a list of messages "
            '{"role": "user", "content": "..."}'
        )

    if len(value) == 1:
        return message_text(value[0], where)

    # [{"role": "user", "content": "Hi"}, ...] -> "User: Hi\n\n..."
    turns = []
    for message in value:
        speaker = clean(message["role"]).capitalize()
        turns.append(f"{speaker}: {message_text(message, where)}")
    return "\n\n".join(turns)


def count_reasoning(row: dict) -> int:
    """How many messages of a row have reasoning, which is not part of their text."""
    count = 0
    for side in row.values():
        if is_objects(side):
            count += sum(any(message.get(key) for key in REASONING) for message in side)
    return count


# ------------------------------------------------------------------------------------------ pairs


def parse_pair(row: dict, where: str) -> Pair:
    """One row of a pairs file; `where` ("FILE, line N") names it in errors and in the pair."""
    for key in ("chosen", "rejected"):
        if key not in row:
            found = ", ".join(row)[:100]
            raise ValueError(
                f'{where}: no "{key}" among its columns {found}: give "prompt", "chosen" and '
                '"rejected" (infra/pairs.py has a line that converts)'
            )
    sides = split_off_prompt(row, where)
    return Pair(
        prompt=sides.prompt,
        chosen=to_text(sides.chosen, f'{where}: "chosen"'),
        rejected=to_text(sides.rejected, f'{where}: "rejected"'),
        subset=parse_subset(row, where),
        domain=parse_domain(row, where),
        where=where,
    )


def prompt_column(row: dict, where: str) -> str | None:
    """The name of the column that has the prompt, if there is one."""
    found = [column for column in PROMPT_COLUMNS if column in row]
    # a part of the prompt must not be lost
    lost = [column for column in OTHER_PROMPT_COLUMNS if row.get(column)]
    if "prompt" in found and "user" in lost:
        lost.remove("user")  # next to a prompt it is somebody's name
    if lost:
        names = " and ".join(f'"{column}"' for column in lost)
        if not found:
            raise ValueError(f'{where}: {names}, but no "prompt": name it "prompt"')
        raise ValueError(f'{where}: {names} next to "{found[0]}": join them in "prompt"')
    if not found:
        return None
    return found[0]


class Sides(NamedTuple):
    prompt: str
    chosen: object  # without the prompt
    rejected: object


def split_off_prompt(row: dict, where: str) -> Sides:
    """The prompt, which is not shown twice where both sides begin with it."""
    chosen, rejected = row["chosen"], row["rejected"]
    shared = shared_beginning(chosen, rejected)
    column = prompt_column(row, where)

    if column is None:
        prompt = to_text(shared, f'{where}: "prompt"')
        return Sides(prompt, chosen[len(shared) :], rejected[len(shared) :])

    prompt = to_text(row[column], f'{where}: "{column}"')
    if not is_whole(chosen) and not is_whole(rejected):
        return Sides(prompt, chosen, rejected)

    turns = count_prompt_turns(row[column], shared)
    if turns == 0:
        raise ValueError(
            f'{where}: "{column}" is not the last user turn that the conversations "chosen" and '
            '"rejected" share: leave it out, or give the responses alone'
        )
    prompt = to_text(shared[:turns], f'{where}: "chosen"')
    return Sides(prompt, chosen[turns:], rejected[turns:])


def is_whole(side: object) -> bool:
    """Whether messages are a whole conversation, not a response alone: an assistant begins one."""
    return is_objects(side) and side[0].get("role") in ("system", "developer", "user")


def count_prompt_turns(prompt: object, shared: object) -> int:
    """How many of the turns that two conversations share are the prompt; 0 if they are another.

    Messages are the first turns. A string is the last turn of the user, and what both sides say
    before and after it belongs to the prompt.
    """
    if not isinstance(shared, list):
        return 0
    text = to_text(prompt, "")
    if not isinstance(prompt, str) and to_text(shared[: len(prompt)], "") == text:
        return len(prompt)

    user_turns = [message for message in shared if message.get("role") == "user"]
    if to_text(shared, "") == text or (user_turns and to_text(user_turns[-1:], "") == text):
        return len(shared)
    return 0


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


def is_preferred(row: dict, where: str) -> bool:
    """Whether the scores of a row, if it has them, say that the chosen response is better."""
    better, worse = row.get("score_chosen"), row.get("score_rejected")
    if better in (None, "") or worse in (None, ""):  # "": an empty cell of CSV
        return True
    try:
        better, worse = float(better), float(worse)
    except (TypeError, ValueError, OverflowError):  # the last: a whole number of 400 digits
        better = math.nan
    if math.isnan(better) or math.isnan(worse):
        raise ValueError(f"{where}: score_chosen and score_rejected: give numbers")
    return better > worse


def load_pairs(
    paths: Iterable[Path | str], domain: str = "all", left_out: Counter | None = None
) -> list[Pair]:
    """The pairs of one file or several. Every line is checked, and an error names it.

    Of a domain: rows that name another are left out, and rows that name none are its own. What
    else is left out is counted in `left_out`.
    """
    if left_out is None:
        left_out = Counter()
    pairs = []
    for path in paths:
        pairs_before = len(pairs)
        first_has_prompt = None

        for _, where, row in read_rows(path):
            pair = parse_pair(row, where)  # of every domain: a bad line is an error in any case

            # a forgotten prompt must not be taken for TRL's format without prompts
            has_prompt = prompt_column(row, where) is not None
            if first_has_prompt is None:
                first_has_prompt = has_prompt
            if has_prompt != first_has_prompt:
                raise ValueError(f'{where}: give "prompt" in all lines or in none')

            if pair.domain not in ("", domain) and domain != "all":
                continue
            if not is_preferred(row, where):
                left_out["rows whose score_chosen is not above score_rejected"] += 1
                continue
            left_out["reasonings of messages"] += count_reasoning(row)

            if pair.domain == "" and domain != "all":
                pair = pair._replace(domain=domain)
            pairs.append(pair)

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

    `held_out` is a share of the pairs if below 1, else their number; -1: HELD_OUT_SHARE of them, at
    most HELD_OUT_MOST. Which prompts depends on the seed, not on the order of the pairs.
    """
    if held_out < 0 and held_out != -1:
        raise ValueError(f"--held-out {held_out:g}: give -1, a share from 0 to 1, or a number")
    wanted = held_out
    if held_out < 0:
        wanted = min(HELD_OUT_SHARE * len(pairs), HELD_OUT_MOST)
    elif held_out < 1:
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

    if len(held_prompts) == len(pairs_of_prompt) == 1:
        raise ValueError(
            f"there is one prompt only ({len(pairs)} pairs), which cannot both train and judge: "
            "give --held-out 0, or more prompts"
        )
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
        form = "pairs without a prompt"
        if prompt_column(row, where) is not None:
            form = "pairs"
        responses = (pair.chosen, pair.rejected)
        item = Item(pair.prompt, responses, 1, pair.subset, pair.domain, where)
        return form, item

    # three against three, in RM-Bench's styles
    better = parse_texts(chosen, where)
    worse = parse_texts(rejected, where)
    column = prompt_column(row, where)
    style = ""
    if len(better) == 3 and len(worse) == 3:
        style = style_domain(row)
    if style:
        row = row | {"domain": STYLE_DOMAINS[style], "subset": style}

    # one list at least: best of n
    item = Item(
        prompt=to_text(row.get(column), f'{where}: "{column or "prompt"}"'),
        responses=(*better, *worse),
        good=len(better),
        subset=parse_subset(row, where),
        domain=parse_domain(row, where),
        where=where,
    )

    if item.subset == "Ties":
        item = item._replace(tag=str(row.get("id")))
    if style:
        return "3 x 3 styles", item._replace(good_against_bad=True)
    return "best of n", item


def style_domain(row: dict) -> str:
    """Which of RM-Bench's parts a row of three against three is of; "" if of none."""
    part = str(row.get("id")).partition("/")[0]  # "safety-refuse/3099"
    if part in STYLE_DOMAINS:
        return part
    domain = str(row.get("domain"))
    if domain in STYLE_DOMAINS.keys() - data.DOMAINS.keys():
        return domain
    return ""


def parse_texts(side: object, where: str) -> list[str]:
    """A text or a list of texts as a list of clean strings."""
    if is_text(side):
        side = [side]
    if not is_texts(side):
        raise ValueError(f"{where}: chosen and rejected: give lists of strings, none empty")
    if any(is_whole(text) for text in side):
        raise ValueError(f"{where}: chosen and rejected: give the responses, without the prompt")
    return [to_text(text, f"{where}: a response") for text in side]
