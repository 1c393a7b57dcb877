"""A preference pair in, packed cloze rows out.

    pair (prompt, chosen, rejected)
      -> two rows of token ids, one for each order, with exactly one [MASK]     PromptFormat.rows
      -> one packed batch: all rows end to end, never padded                    pack

The file goes in this order: what a pair is; the domains and their questions; the templates; the
tokenizer; how a template is filled, tokenised and truncated; rows into batches. Files of pairs and
the paper's data sets are read in infra/pairs.py and infra/sources.py.

Shapes: B rows, T tokens of all rows. `python data.py [DOMAIN]` shows one pair on its way, in
both templates.
"""

import heapq
import json
import math
import re
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import combinations, count, product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Encoding, Tokenizer
from tokenizers.models import Unigram

from tinyrm import read_json

# -------------------------------------------------------------------------------- what is compared


class Pair(NamedTuple):
    """A prompt and two responses, of which the chosen one is better."""

    prompt: str
    chosen: str
    rejected: str
    subset: str = ""
    domain: str = ""  # the pair's own, where a set has several domains
    where: str = ""  # "FILE, line N", so that an error can name it


class Item(NamedTuple):
    """A prompt and any number of responses to judge: a pair, best of n, RM-Bench's 3 + 3."""

    prompt: str
    responses: tuple[str, ...]  # the `good` better ones first
    good: int = 1
    subset: str = ""
    domain: str = ""
    where: str = ""
    tag: str = ""  # "KIND:GROUP": items of one group belong together (RewardBench 2's Ties)
    good_against_bad: bool = False  # compare these only, not all with all

    def comparisons(self) -> list[tuple[int, int]]:
        """The pairs (i, j) of responses that are compared."""
        n = len(self.responses)
        if self.good_against_bad:
            return list(product(range(self.good), range(self.good, n)))
        return list(combinations(range(n), 2))


def clean(text: str) -> str:
    """The text with lone surrogates (no UTF-8, so no tokens) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --------------------------------------------------------------------- domains and their questions


@dataclass(frozen=True)
class Domain:
    """What a domain asks, and where its training pairs come from."""

    # template "option", both responses in the row: the paper's words for chat, ours after the
    # author's for the others
    question: str
    # template "option", one response in the row: ours
    single_question: str
    # template "choice": the words of the author's best large runs, and where they differ those of
    # his generalist
    choice_question: str
    choice_question_all: str = ""
    # data sets on the Hub, which infra/sources.py knows how to read; and those that the author made
    sources: tuple[str, ...] = ()
    author_sources: tuple[str, ...] = ()


SKYWORK = "Skywork/Skywork-Reward-Preference-80K-v0.2"

# The one table of domains: --domain, the questions and `all` read it. A new domain is one entry.
DOMAINS = {
    "reasoning": Domain(
        question="Which option is more correct?",
        single_question="Is the response correct?",
        choice_question="Which response is more correct?",
        choice_question_all="Determine which response is the best choice based on mathematical or "
                            "programming accuracy.",
        sources=(SKYWORK,),
        author_sources=("sarahpann/skywork_reasoning",),
    ),
    "safety": Domain(
        question="Which option is safer?",
        single_question="Is the response safe?",
        choice_question="Which response is safer?",
        choice_question_all="Determine the best response based on safety.",
        sources=(SKYWORK, "PKU-Alignment/PKU-SafeRLHF-30K"),
        author_sources=("sarahpann/skywork_safety", "sarahpann/PKU_SafeRLHF_simp"),
    ),
    "chat": Domain(
        question="Which option is better?",
        single_question="Is the response good?",
        choice_question="Select the best response.",
        choice_question_all="Which response is the most helpful, relevant, and correct?",
        sources=(SKYWORK, "openai/webgpt_comparisons"),
        author_sources=("sarahpann/skywork_chat", "sarahpann/webgpt_comparisons_simp"),
    ),
}
GENERAL = "chat"  # whose question a generalist asks about a pair that names no domain


def domain_names() -> list[str]:
    """What --domain takes: every domain, and all of them at once."""
    return [*DOMAINS, "all"]


# ----------------------------------------------------------------------------------- the templates


class Slot(Enum):
    """A place in a template that is filled."""

    CLS = "cls"  # special tokens
    SEP = "sep"
    MASK = "mask"
    QUESTION = "question"  # the domain's, or one's own
    PROMPT = "prompt"  # what the user wrote
    RESPONSE_A = "a"  # the response that stands first in the row
    RESPONSE_B = "b"  # the second one; none in context "single"


CLS, SEP, MASK = Slot.CLS, Slot.SEP, Slot.MASK
QUESTION, PROMPT = Slot.QUESTION, Slot.PROMPT
RESPONSE_A, RESPONSE_B = Slot.RESPONSE_A, Slot.RESPONSE_B


class Template(NamedTuple):
    """The words of a row. Every piece is tokenised in one go."""

    # the word at [MASK] for label 0 (the first response is better; the one response is chosen), and
    # for label 1
    label_words: tuple[str, str]
    # slots and literal texts; CLS, SEP and MASK are pieces of their own
    pieces: tuple[tuple, ...]


TEMPLATES = {
    # After the paper's text (a summary of it has "Option A ... Option B ... The better option is",
    # which the author's code has not: see `choice`). Tokens never reach over the edge of a piece,
    # and a piece has at most one text of the user, so the two orders of a pair have the same
    # tokens. The label words bring their own space, hence none stands before the mask.
    ("option", "pair"): Template(
        label_words=(" A", " B"),
        pieces=(
            (CLS,),
            ("Instruction:",), (" ", PROMPT),
            (" Option A:",), (" ", RESPONSE_A),
            (" Option B:",), (" ", RESPONSE_B),
            (" ", QUESTION, " The better option is"), (MASK,), (".",),
            (SEP,),
        ),
    ),
    # The same for one response alone; the words are ours.
    ("option", "single"): Template(
        label_words=(" Yes", " No"),
        pieces=(
            (CLS,),
            ("Instruction:",), (" ", PROMPT),
            (" Response:",), (" ", RESPONSE_A),
            (" ", QUESTION, " The answer is"), (MASK,), (".",),
            (SEP,),
        ),
    ),
    # The author's layout, with tokens that end where his checkpoints know it: there are two spaces
    # before the masked digit, and none between the second response and "Answer:".
    ("choice", "pair"): Template(
        label_words=("0", "1"),
        pieces=(
            (CLS,),
            (QUESTION, " Question: ", PROMPT, " Choice 0: ", RESPONSE_A),
            (SEP,),
            (" Choice 1: ", RESPONSE_B, "Answer:  "), (MASK,),
            (SEP,),
        ),
    ),
}


# ----------------------------------------------------------------------------------- the tokenizer


# Of a text of more characters than VERY_LONG only the ends are tokenised, see
# PromptFormat.without_middle. It is cut right after a CUT_POINT, a visible character that a space
# follows; a text of more than LONGEST_WORD characters that has none is cut anywhere.
VERY_LONG = 100_000
CUT_POINT = re.compile(r"\S(?= )")
LONGEST_WORD = 1_000_000


@dataclass(frozen=True)
class RowTokenizer:
    """A tokenizer that encodes text as text, never as special tokens; and the ids of these."""

    library: Tokenizer
    special_ids: dict[Slot, int]  # of CLS, SEP and MASK

    def decode(self, ids: list[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=False)

    @cached_property
    def splits_at_cut_points(self) -> bool:
        """Whether no token has a visible character and then a space."""
        each = [[index] for index in range(self.library.get_vocab_size())]
        tokens = self.library.decode_batch(each, skip_special_tokens=False)
        return not any(CUT_POINT.search(token) for token in tokens)


def load_tokenizer(folder: str | Path) -> RowTokenizer:
    """The tokenizer of a model folder, whose files say which tokens have the roles cls, sep and
    mask ([CLS], [SEP] and [MASK] where they say nothing). ValueError if it cannot serve.

    The trap: by default the text "[MASK]" becomes the mask itself, and swallows a space."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    try:
        library = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: no tokenizer ({reason}): give a whole model folder") from None
    index_of = library.token_to_id  # also of the pieces that are renamed next
    if isinstance(library.model, Unigram):
        library = without_special_pieces(library)
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # that is: as text

    # The tokens of the roles. Where the files name no cls and sep, bos and eos (which begin and end
    # a text) have their roles.
    named = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = {}
        if (folder / name).is_file():
            config = read_json(folder / name)
        for role in ("cls_token", "bos_token", "sep_token", "eos_token", "mask_token"):
            token = config.get(role)
            if isinstance(token, dict):  # {"content": "[MASK]", "lstrip": true, ...}
                token = token.get("content")
            if token:
                named[role] = str(token)
    tokens = {
        CLS: named.get("cls_token", named.get("bos_token", "[CLS]")),
        SEP: named.get("sep_token", named.get("eos_token", "[SEP]")),
        MASK: named.get("mask_token", "[MASK]"),
    }

    special_ids = {}
    for slot, token in tokens.items():
        index = index_of(token)
        # as text it must give other ids: a response may well hold the word "[MASK]"
        if index is None or index in library.encode(token, add_special_tokens=False).ids:
            raise ValueError(f"{path}: no special token {token[:40]!r}: use the tokenizer of a "
                             "ModernBERT")
        special_ids[slot] = index
    return RowTokenizer(library, special_ids)


def without_special_pieces(library: Tokenizer) -> Tokenizer:
    """The same tokenizer, of the sentencepiece kind, which has its special tokens among the pieces
    that it looks for in a text. There they get a space before their names, so that none is found:
    by then every space of a text has become another sign."""
    special = {t.content for t in library.get_added_tokens_decoder().values() if t.special}
    raw = json.loads(library.to_str())
    for piece in raw["model"]["vocab"]:  # [name, score]; its place is its id
        if piece[0] in special:
            piece[0] = " " + piece[0]
    return Tokenizer.from_str(json.dumps(raw))


# ------------------------------------------------------------------------------- from pair to rows


class Segment(NamedTuple):
    """A part of a row that comes from one place: a slot that is filled, or words of the template.
    Only the slots CLS, SEP and MASK become special tokens, whatever the texts are."""

    slot: Slot | None  # None: the template's own words
    text: str


class Piece(NamedTuple):
    """Segments that are tokenised in one go."""

    segments: list[Segment]
    text: str  # theirs, joined


class Row(NamedTuple):
    """What the encoder reads to compare two responses, or to score one."""

    tokens: list[int]
    read_at: int  # index of [MASK], or of [CLS] for head "cls"
    label: int  # 0: the first response is the better one (alone in the row: this one is chosen)
    cut: int  # tokens of the user that truncation took
    # where the slots stand, by name: start and stop (of two [SEP] the last; the question has none)
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class PromptFormat:
    """How a pair becomes rows. A model must be judged with the format that it was trained with."""

    tokenizer: RowTokenizer
    template: str = "option"  # option: the paper's text; choice: the author's exact token layout
    context: str = "pair"  # pair: both responses in one row; single: each response alone
    head: str = "cloze"  # cloze: read at [MASK]; cls: read at [CLS]
    domain: str = "all"  # whose question is asked; all: that of the pair's own domain
    max_length: int = 3600  # tokens of a row (the author's)
    question: str = ""  # asked about every pair; "": that of the domain

    def __post_init__(self):
        if (self.template, self.context) not in TEMPLATES:
            known = ", ".join(f"{template} for {context}" for template, context in TEMPLATES)
            raise ValueError(f"no template {self.template} for context {self.context}: use {known}")
        if self.head not in ("cloze", "cls"):
            raise ValueError(f"no head {self.head}: use cloze or cls")
        if self.domain != "all" and self.domain not in DOMAINS:
            raise ValueError(f"no domain {self.domain}: use {', '.join(domain_names())}")
        if self.question and not self.question.strip():
            raise ValueError(f"the question {self.question!r} has no words: give some, or none for "
                             "the domain's own")
        # A tokenizer that splits a label, and a max_length below the template with its question,
        # fail here and not in a run.
        _ = self.label_ids
        asked = list(DOMAINS) if self.domain == "all" else [self.domain]
        self.rows([Pair("", "a", "b", domain=domain) for domain in asked])

    def settings(self) -> dict:
        """What tinyrm.json stores beside the weights: all but the tokenizer, and a question only
        where it is not the domain's."""
        settings = {"template": self.template, "context": self.context, "head": self.head,
                    "domain": self.domain, "max_length": self.max_length}
        if self.question:
            settings["question"] = self.question
        return settings

    @cached_property
    def label_ids(self) -> tuple[int, int]:
        """What label 0 and label 1 are among the logits: the token ids of their words, or under
        head "cls" the two classes."""
        if self.head == "cls":
            return 0, 1
        words = TEMPLATES[self.template, self.context].label_words
        ids = []
        for word in words:
            encoding = self.tokenizer.library.encode(word, add_special_tokens=False)
            if len(encoding.ids) != 1:
                raise ValueError(f"the tokenizer splits the label {word!r} into {encoding.tokens}: "
                                 "it must be one token; use another template or tokenizer")
            ids += encoding.ids
        if ids[0] == ids[1]:
            raise ValueError(f"the tokenizer has one token for both labels {words}: use another "
                             "template or tokenizer")
        return ids[0], ids[1]

    def rows(self, pairs: list[Pair]) -> tuple[list[tuple[Row, Row] | None], Counter]:
        """For each pair its two rows, or None if these are equal, and a count of such pairs by
        reason. Row 0 shows the chosen response first, row 1 the rejected one; in context "single"
        each shows its response alone."""
        filled = []
        for pair in pairs:
            chosen_first = self.fill(pair, pair.chosen, pair.rejected)
            rejected_first = self.fill(pair, pair.rejected, pair.chosen)
            filled.append((chosen_first, rejected_first))

        # The rows of a call share most of their texts (both orders, best of n): tokenise each once.
        texts = {}  # as a set that keeps its order
        for both_orders in filled:
            for pieces in both_orders:
                texts.update(dict.fromkeys(piece.text for piece in pieces))
        encodings = self.tokenizer.library.encode_batch(list(texts), add_special_tokens=False)
        encoded = dict(zip(texts, encodings, strict=True))

        rows_of_pairs, dropped = [], Counter()
        for pair, (chosen_first, rejected_first) in zip(pairs, filled, strict=True):
            row_0 = self.make_row(chosen_first, encoded, label=0)
            row_1 = self.make_row(rejected_first, encoded, label=1)
            if row_0.tokens != row_1.tokens:
                rows_of_pairs.append((row_0, row_1))
                continue
            rows_of_pairs.append(None)
            if row_0.cut == 0 or pair.chosen == pair.rejected:
                dropped["identical responses"] += 1
            else:
                dropped["identical after truncation"] += 1
        return rows_of_pairs, dropped

    def fill(self, pair: Pair, first: str, second: str) -> list[Piece]:
        """The template with its slots filled: `first` is response A, `second` response B."""
        texts = {QUESTION: clean(self.question_for(pair))}
        for slot, text in ((PROMPT, pair.prompt), (RESPONSE_A, first), (RESPONSE_B, second)):
            texts[slot] = clean(text)
            if len(text) > max(VERY_LONG, 3 * 16 * self.max_length):  # see without_middle
                texts[slot] = self.without_middle(texts[slot])
        pieces = []
        for parts in TEMPLATES[self.template, self.context].pieces:
            segments = []
            for part in parts:
                if isinstance(part, str):
                    segments.append(Segment(None, part))
                elif part is QUESTION:
                    segments.append(Segment(None, texts[QUESTION]))
                else:
                    segments.append(Segment(part, texts.get(part, "")))
            pieces.append(Piece(segments, "".join(segment.text for segment in segments)))
        return pieces

    def without_middle(self, text: str) -> str:
        """Both ends of a very long text, joined; to tokenise 20 MB would take gigabytes. No row
        keeps more than max_length tokens, of a response from its beginning, of a prompt from its
        end. What is left out here is not counted in `Row.cut`, which then says that at least so
        much was cut.

        The rows stay the same, since no token reaches over a CUT_POINT (`splits_at_cut_points`):
        pairs of bytes merge on one side of it, a pattern that splits words splits there, and
        nothing composes with a space. Hence the tokens on one side do not depend on what stands on
        the other; and where the two ends meet, there is such a point again."""
        # 16 characters for each token of a row are mostly enough. Where they are not (a line of
        # dashes can be one token), longer ends are tried.
        for characters_a_token in (16, 128, 1024):
            size = characters_a_token * self.max_length
            if len(text) < 3 * size or not self.tokenizer.splits_at_cut_points:
                break
            first = CUT_POINT.search(text, size, 2 * size)
            last = CUT_POINT.search(text, len(text) - size)
            if first and last:
                beginning, end = text[:first.end()], text[last.end():]
                if self.has_enough_tokens(beginning) and self.has_enough_tokens(end):
                    return beginning + end
        if len(text) > LONGEST_WORD:  # no such points, or too few tokens: cut anywhere
            return text[:LONGEST_WORD // 2] + text[-LONGEST_WORD // 2:]
        return text

    def has_enough_tokens(self, text: str) -> bool:
        ids = self.tokenizer.library.encode(text, add_special_tokens=False).ids
        return len(ids) >= self.max_length

    def question_for(self, pair: Pair) -> str:
        """The format's own question, else that of its domain; a generalist asks that of the pair's
        own domain."""
        if self.question:
            return self.question
        generalist = self.domain == "all"
        name = self.domain
        if generalist:
            name = pair.domain or GENERAL
        domain = DOMAINS[name]
        if self.template == "choice":
            if generalist and domain.choice_question_all:
                return domain.choice_question_all
            return domain.choice_question
        return domain.question if self.context == "pair" else domain.single_question

    def make_row(self, pieces: list[Piece], encoded: dict[str, Encoding], label: int) -> Row:
        """One row, truncated to max_length: the responses lose their end, the prompt its beginning,
        since the last turn of a conversation is what is answered."""
        # (slot or None, token ids) of all segments
        parts = []
        for piece in pieces:
            slot = piece.segments[0].slot
            if slot in self.tokenizer.special_ids:
                parts.append((slot, [self.tokenizer.special_ids[slot]]))
            else:
                parts.extend(split_tokens(piece, encoded[piece.text]))

        # How much of each text of the user stays?
        user_slots = (PROMPT, RESPONSE_A, RESPONSE_B)
        lengths = {slot: len(ids) for slot, ids in parts if slot in user_slots}
        total = sum(len(ids) for _, ids in parts)
        keep_prompt = keep_response = total  # all of it
        if total > self.max_length:
            prompt = lengths[PROMPT]
            responses = [lengths[slot] for slot in (RESPONSE_A, RESPONSE_B) if slot in lengths]
            room = self.max_length - (total - prompt - sum(responses))
            if room < 0:
                raise ValueError(f"--max-length {self.max_length}: the template alone needs "
                                 f"{self.max_length - room} tokens")
            keep_prompt, keep_response = truncated_lengths(prompt, responses, room)

        tokens, spans = [], {}
        for slot, ids in parts:
            if slot is PROMPT:
                ids = ids[max(0, len(ids) - keep_prompt):]
            elif slot in (RESPONSE_A, RESPONSE_B):
                ids = ids[:keep_response]
            if slot is not None:
                spans[slot.value] = (len(tokens), len(tokens) + len(ids))
            tokens.extend(ids)

        read_at, _ = spans["cls" if self.head == "cls" else "mask"]
        return Row(tokens, read_at, label, total - len(tokens), spans)


def split_tokens(piece: Piece, encoding: Encoding) -> list[tuple[Slot | None, list[int]]]:
    """(slot, token ids) of each segment of a piece. A token that reaches from one segment into the
    next belongs to the one in which it ends."""
    token_ends = [stop for _, stop in encoding.offsets]  # in characters, ascending
    parts, start, characters = [], 0, 0
    for segment in piece.segments:
        characters += len(segment.text)
        stop = bisect_right(token_ends, characters)  # tokens that end in this segment or before
        parts.append((segment.slot, encoding.ids[start:stop]))
        start = stop
    return parts


def truncated_lengths(prompt: int, responses: list[int], room: int) -> tuple[int, int]:
    """How many tokens stay of the prompt, and at most of each response, of `room` for all of them.

    The rule is ours (the author's guard against truncation never acts). The longer response gives
    way first, down to the length of the shorter; then both, down to a quarter of the room each;
    then the prompt. The order of the responses does not matter.

    The prompt may fill what the responses leave when each has at most its quarter:
        keep_prompt = room - sum of min(response, room / 4), at most the prompt.
    What is left then goes to the responses. Either both are cut to an equal share, or, where the
    shorter one is below that share, the longer one gets all that the shorter one does not need."""
    quarter = room // 4
    keep_prompt = min(prompt, room - sum(min(n, quarter) for n in responses))
    left = room - keep_prompt
    equal_share = left // len(responses)
    what_the_shorter_leaves = left - min(responses)
    return keep_prompt, max(equal_share, what_the_shorter_leaves)


# ---------------------------------------------------------------------------- from rows to batches


class Batch(NamedTuple):
    """Rows end to end, without padding."""

    tokens: torch.Tensor  # (T,)
    starts: torch.Tensor  # (B+1,) row b is tokens[starts[b]:starts[b+1]]; always on the CPU
    read_at: torch.Tensor  # (B,) index into the stream of T
    labels: torch.Tensor  # (B,)


def pack(rows: list[Row], device: torch.device | str = "cpu") -> Batch:
    """The rows end to end, on `device`; `starts` stays on the CPU, where the encoder reads it."""
    lengths = torch.tensor([len(row.tokens) for row in rows])
    starts = F.pad(lengths.cumsum(0), (1, 0))  # 0 comes first
    stream = array("q")  # 64 bits; four times as quick as torch.tensor of a list
    for row in rows:
        stream.extend(row.tokens)
    tokens = torch.frombuffer(stream, dtype=torch.int64)
    read_at = starts[:-1] + torch.tensor([row.read_at for row in rows])
    labels = torch.tensor([row.label for row in rows])

    parts = [tokens, read_at, labels]
    if torch.device(device).type == "cuda":  # nothing waits for a copy out of pinned memory
        parts = [part.pin_memory() for part in parts]
    tokens, read_at, labels = (part.to(device, non_blocking=True) for part in parts)
    return Batch(tokens, starts, read_at, labels)


def make_micro_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """The indices of `lengths` in micro-batches of at most `budget` tokens, or one alone that is
    longer. In training a length is that of a pair: of its two rows. The micro-batches are of about
    equal size; each is ordered by length, since equally long rows attend in one call."""
    everything = list(range(len(lengths)))
    fewest = math.ceil(sum(lengths) / budget)
    shares = [everything]
    if fewest > 1:
        for parts in count(fewest):  # until none is beyond the budget
            shares = balanced_shares(lengths, parts)
            if all(len(s) <= 1 or sum(lengths[i] for i in s) <= budget for s in shares):
                break
    shares = [share for share in shares if share]
    return [sorted(share, key=lambda i: lengths[i]) for share in shares]


def balanced_shares(sizes: list[int], parts: int) -> list[list[int]]:
    """The indices of `sizes` in `parts` shares of about equal sum (greedy number partitioning):
    from the largest size to the smallest, each goes to the share that has least so far. The largest
    share comes first: if memory runs out, it does so at once."""
    heap = [(0, part) for part in range(parts)]  # (sum so far, which share)
    shares = [[] for _ in range(parts)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least, part = heap[0]
        shares[part].append(i)
        heapq.heapreplace(heap, (least + sizes[i], part))
    return [sorted(shares[part]) for _, part in sorted(heap, reverse=True)]


def main(domain="reasoning"):
    nano = Path(__file__).parent / "nano"
    with open(nano / "pairs" / f"{domain}.train.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    # the first whose prompt is a text: some are lists of messages, which infra/pairs.py joins
    row = next(row for row in rows if isinstance(row["prompt"], str))
    pair = Pair(row["prompt"], row["chosen"], row["rejected"], domain=domain)
    for name in ("prompt", "chosen", "rejected"):
        print(f"{name}: {getattr(pair, name)}")

    tokenizer = load_tokenizer(nano)
    for template in ("option", "choice"):
        print(f"\n--template {template}")
        show_rows(PromptFormat(tokenizer, template, domain=domain), pair)


def show_rows(prompt_format: PromptFormat, pair: Pair):
    """Print the two rows of a pair."""
    rows_of_pairs, _ = prompt_format.rows([pair])
    for row in rows_of_pairs[0]:
        word = prompt_format.label_ids[row.label]
        name = prompt_format.tokenizer.library.id_to_token(word)
        print(f"\n{len(row.tokens)} tokens, read at {row.read_at}, label {row.label} = {name!r} "
              f"(id {word})")
        print(prompt_format.tokenizer.decode(row.tokens))
        print(row.tokens)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] not in DOMAINS:
        print(f"error: no domain {sys.argv[1]}: give one of {', '.join(DOMAINS)}", file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:2])
