"""Preference pairs in, packed cloze batches out.

    pair (prompt, chosen, rejected)                                             `Pairs`
      -> two rows of token ids, one for each order, with exactly one [MASK]     `cloze_rows`
      -> one packed batch: all rows end to end, never padded                    `pack`

Shapes: B rows, T tokens of all rows. `python data.py [DOMAIN [FILE]]` shows one pair on its way.
"""

import hashlib
import heapq
import json
import re
import sys
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, pairwise
from os.path import commonprefix
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import huggingface_hub.constants  # the rest of it comes when first used
import torch
from tokenizers import Tokenizer

DOMAINS = ("reasoning", "safety", "chat")


class Pair(NamedTuple):
    prompt: str
    chosen: str
    rejected: str
    subset: str = ""
    domain: str = ""
    where: str = ""  # "FILE, line N" for a pair from a file, so that an error can name it


def clean(text):
    """The text with lone surrogates (no UTF-8, so no tokens) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def prompt_key(prompt):
    """64 bits by which two prompts count as the same one: case and white space do not matter."""
    text = " ".join(clean(prompt).casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def to_text(value, where):
    """A string as it is; messages as `User: ...` / `Assistant: ...` with blank lines between, but
    one alone is bare, so that a single-turn chat and a plain string read the same."""
    if isinstance(value, str):
        return clean(value)
    try:
        turns = [(clean(turn["role"]).capitalize(), clean(turn["content"])) for turn in value]
        return "\n\n".join(map(": ".join, turns)) if turns[1:] else turns[0][1]
    except (AttributeError, IndexError, KeyError, TypeError):
        said = "missing or null" if value is None else json.dumps(value)[:60]
        raise ValueError(f"{where} is {said}: give a string, or a list of messages "
                         '{"role": "user", "content": "..."}') from None


def to_pair(row, where):
    """One row of a pairs file, in any of TRL's preference formats; `where` names it in errors.
    A prompt that is not given is what both sides begin with: whole words, or turns but the last."""
    if missing := {"chosen", "rejected"} - row.keys():
        raise ValueError(f'{where}: no "{min(missing)}": give "prompt", "chosen" and "rejected"')
    a, b, domain, head = row["chosen"], row["rejected"], row.get("domain") or "", None
    if isinstance(a, str) and isinstance(b, str):
        head = commonprefix([a, b])
        head = head[:max(head.rfind(" "), head.rfind("\n"), 0)]
    elif isinstance(a, list) and isinstance(b, list):
        head = a[:len(commonprefix([[*map(str, turns[:-1])] for turns in (a, b)]))]
    prompt = to_text(row.get("prompt", head or None), f'{where}: "prompt"')
    # some sets repeat the prompt at the head of both conversations: it is not shown twice
    if "prompt" not in row or head and isinstance(head, list) and to_text(head, where) == prompt:
        a, b = a[len(head):], b[len(head):]
    if domain and domain not in DOMAINS:
        raise ValueError(f'{where}: unknown domain "{domain}": use {", ".join(DOMAINS)}, or none')
    texts = {"chosen": a, "rejected": b, "subset": row.get("subset") or ""}
    return Pair(prompt, *(to_text(texts[key], f'{where}: "{key}"') for key in texts), domain)


def read_rows(path):
    """(line number, row) of a file of JSON lines; skips blank lines."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"no object: {line[:40]!r}")
                    yield number, row
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: give a file of JSON lines") from None
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are not UTF-8
        said = f"not valid JSON ({str(error).replace('line 1 ', '')}): give one object a line"
        raise ValueError(f"{path}, line {number}: {said}") from None


class Pairs(Sequence):
    """The pairs of one file or several: every line is validated now, and read when asked for; 32
    bytes a pair are kept. With a domain, rows of others are left out, rows without are its own.
    `fingerprint` changes with the prompts, and with the lengths of the lines."""

    def __init__(self, paths, domain=""):
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        self.domain = "" if domain == "all" else domain
        self.index = array("Q")  # of each pair: file, line, prompt key
        self.starts = []  # of each file: the byte at which each line begins
        for number, path in enumerate(self.paths):
            before, forms = len(self), set()
            for line, row in read_rows(path):
                pair = to_pair(row, f"{path}, line {line}")
                forms.add("prompt" in row)
                if len(forms) > 1:  # a forgotten prompt, not TRL's format without
                    raise ValueError(f'{path}, line {line}: give "prompt" in all lines or in none')
                if not self.domain or pair.domain in ("", self.domain):
                    self.index.extend((number, line, prompt_key(pair.prompt)))
            if len(self) == before:
                raise ValueError(f"{path}: no pairs in it for domain {domain or 'all'}: give some")
            with open(path, "rb") as file:
                self.starts.append(array("Q", accumulate(map(len, file), initial=0)))
        self.fingerprint = hashlib.blake2b(b"".join([self.index, *self.starts])).hexdigest()[:32]

    def __len__(self):
        return len(self.index) // 3

    def __getitem__(self, i):
        at = 3 * range(len(self))[i]  # which also refuses an index beyond the end
        number, line, _ = self.index[at:at + 3]
        where = f"{self.paths[number]}, line {line}"
        with open(self.paths[number], "rb") as file:  # opened anew: safe from several threads
            file.seek(self.starts[number][line - 1])
            pair = to_pair(json.loads(file.readline()), where)
        return pair._replace(domain=pair.domain or self.domain, where=where)


def split(pairs, held_out, seed):
    """(train indices, held-out indices), never with a prompt in both. held_out is a share of the
    pairs if below 1, else their number; which prompts does not depend on the order of the rows."""
    keys = pairs.index[2::3]
    sizes, want = Counter(keys), held_out * len(keys) if held_out < 1 else held_out
    order = sorted(sizes, key=lambda key: hashlib.blake2b(b"%d %d" % (seed, key)).digest())
    before = accumulate(map(sizes.get, order), initial=0)  # pairs of the prompts before each
    held = {key for key, pairs_before in zip(order, before, strict=False) if pairs_before < want}
    if len(held) == len(sizes):
        raise ValueError(f"holding out {held_out:g} of {len(keys)} pairs ({len(sizes)} prompts) "
                         "leaves nothing to train on: hold out fewer, or give more prompts")
    train = [i for i, key in enumerate(keys) if key not in held]
    return train, [i for i, key in enumerate(keys) if key in held]


# --- the Hub ---------------------------------------------------------------------------------

SKYWORK = "Skywork/Skywork-Reward-Preference-80K-v0.2"
PKU = "PKU-Alignment/PKU-SafeRLHF"
WEBGPT = "openai/webgpt_comparisons"
BENCHMARK = "allenai/reward-bench"
SOURCES = {  # of each domain: the upstream repositories, and the author's ready-made ones
    "reasoning": ([SKYWORK], ["sarahpann/skywork_reasoning"]),
    "safety": ([SKYWORK, PKU], ["sarahpann/skywork_safety", "sarahpann/PKU_SafeRLHF_simp"]),
    "chat": ([SKYWORK, WEBGPT], ["sarahpann/skywork_chat", "sarahpann/webgpt_comparisons_simp"])}
# (files, branch), where not the data/ of main; WebGPT's own files are a script
PLACES = {PKU: ("data/*/train.jsonl", None), WEBGPT: ("*/train/", "refs/convert/parquet")}
# part -> domain, and how many pairs the author had (the last two rounded). A Skywork row is of the
# one part whose name its `source` holds, in any case: the split that gives exactly his counts.
PARTS = {"magpie": ("reasoning", 54_582), "offset": ("safety", 8_504),
         "wildguard": ("safety", 6_709), "helpsteer": ("chat", 7_221),
         "PKU-SafeRLHF": ("safety", 26_900), "webgpt_comparisons": ("chat", 14_300)}


def hub_rows(repo, files, revision=None):
    """(commit, rows) of a data set's files whose path begins with `files`, or matches it."""
    if "Reward-Preference-80K-v0.1" in repo:
        raise ValueError(f"{repo}: shares prompts with RewardBench (contaminated): use {SKYWORK}")
    try:
        folder = Path(huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=f"{files}*"))
    except Exception as error:  # the client raises its own, its HTTP library's, the system's errors
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{repo}, revision {revision or 'main'}, did not come from the Hub "
                         f"({said}): check name, network, disk and HF_TOKEN") from None
    paths = sorted(folder.glob(f"{files}*"))
    if not paths:
        raise ValueError(f"{repo}: no file {files}* at {folder.name}: give another revision")
    return folder.name, chain.from_iterable(map(_file_rows, paths))


def _file_rows(path):
    """The rows of a parquet or JSON lines file, streamed, or of a JSON array."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        # pre_buffer would keep all that was read of the file
        for batch in ParquetFile(path, pre_buffer=False).iter_batches(256):
            yield from batch.to_pylist()
    elif path.suffix == ".json":
        yield from json.loads(path.read_bytes())
    else:
        yield from (row for _, row in read_rows(path))


def hub_repos(domain, author=False):
    """The repositories that the pairs come from, and the one whose prompts are removed."""
    parts = DOMAINS if domain == "all" else [domain]
    return [*dict.fromkeys(repo for part in parts for repo in SOURCES[part][author]), BENCHMARK]


def hub_pairs(domain, author=False, commits=None):
    """([files of JSON lines] with the paper's training pairs, but for those whose prompt is in
    RewardBench, what is in them in words). A domain's file is made once for each set of commits:
    those that the dict `commits` names; the others', as they are now, are added to it."""
    commits, found = {} if commits is None else commits, {}
    if domain == "all":
        paths, notes = zip(*(hub_pairs(part, author, commits) for part in DOMAINS), strict=True)
        return sum(paths, []), "; ".join(notes)
    for repo in hub_repos(domain, author):
        files, branch = PLACES.get(repo, ("data/", None))
        commits[repo], found[repo] = hub_rows(repo, files, commits.get(repo, branch))
    origin = ", ".join(f"{repo}@{commits[repo]}" for repo in found)
    # the 2 goes up when the rules below change, so that no file made by older ones is taken
    key = hashlib.blake2b(f"2 {origin}".encode()).hexdigest()[:12]
    path = Path(huggingface_hub.constants.HF_HOME, "tinyrm", f"{domain}-{key}.jsonl")
    note = path.with_suffix(".txt")
    if not path.exists():
        print(f"making {path} (a minute or so, once)", file=sys.stderr, flush=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as folder:  # whole, or not at all
                whole = Path(folder, "pairs")
                note.write_text(f"{_write_pairs(whole, domain, found)}, from {origin}")
                whole.replace(path)
        except KeyError as column:
            raise ValueError(f"{origin}: no column {column}: give another revision") from None
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}: make room, or set HF_HOME") from None
    return [path], note.read_text()


def _write_pairs(path, domain, found):
    """Write a domain's pairs; returns in words what became of the rows of each part."""
    bench = {prompt_key(row["prompt"]) for row in found.pop(BENCHMARK)}
    fates = defaultdict(Counter)  # part -> what became of its rows
    with open(path, "w") as out:
        for part, row in (_hub_pair(repo, row) for repo in found for row in found[repo]):
            try:
                pair = to_pair({**row, "domain": domain}, part)
                fate = "removed" if prompt_key(pair.prompt) in bench else "kept"
            except ValueError:  # one such row does not end a run
                fate = "others"
            fates[part][fate] += 1
            if fate == "kept" and PARTS.get(part, [domain])[0] == domain:
                out.write(json.dumps(pair._asdict()) + "\n")
    if unknown := fates.keys() - PARTS.keys() - {repo.split("/")[1] for repo in found}:
        counts = {part: fate.total() for part, fate in fates.items()}
        raise ValueError(f"{SKYWORK}: the rule for `source` does not know {[*unknown]} of {counts}")
    told = []
    for part, fate in fates.items():
        home, published = PARTS.get(part, (domain, 0))
        if home == domain:
            pairs, removed = fate["kept"] + fate["removed"], fate["removed"]
            known = f" (published {published:,}: {pairs - published:+,})" if published else ""
            told.append(f"{pairs:,} {part}{known} - {removed:,} with a prompt of RewardBench "
                        f"({fate['others']:,} rows that are no pairs or ties left out)")
    return f"{domain} = {' + '.join(told)}"


def _hub_pair(repo, row):
    """(part, row of a pairs file, without responses for a tie) from a row of a repository."""
    if repo == SKYWORK:
        parts = [part for part in PARTS if part in row["source"].lower()]
        return parts[0] if len(parts) == 1 else row["source"], {**row, "subset": row["source"]}
    part, lead = repo.split("/")[1], 1
    if repo == PKU:  # safe against unsafe; two of a kind are ties (the author's rule is unknown)
        prompt, a, b = row["prompt"], row["response_0"], row["response_1"]
        lead = row["is_response_0_safe"] - row["is_response_1_safe"]
    elif repo == WEBGPT:
        prompt, a, b = row["question"]["full_text"], row["answer_0"], row["answer_1"]
        lead = row["score_0"]
    else:
        prompt, a, b = row["question"], row["chosen"], row["rejected"]
    a, b = (a, b) if lead > 0 else (b, a) if lead else (None, None)
    return part, {"prompt": prompt, "chosen": a, "rejected": b, "subset": part}


# --- cloze rows ------------------------------------------------------------------------------

# (template, context) -> label words, and the row; each piece between bars is encoded in one go. In
# `option` (the paper's text) it has one text at most, so the two orders are exact mirrors. `choice`
# is the author's layout, the digit of "Answer:  0" masked, with the seams his checkpoints know.
TEMPLATES = {
    ("option", "pair"): (" A", " B", "[CLS]|Instruction:| {prompt}| Option A:| {a}| Option B:| {b}"
                                     "| {question} The better option is|[MASK]|.|[SEP]"),
    ("option", "single"): (" Yes", " No", "[CLS]|Instruction:| {prompt}| Response:| {a}"
                                          "| {question} The answer is|[MASK]|.|[SEP]"),
    ("choice", "pair"): ("0", "1", "[CLS]|{question} Question: {prompt} Choice 0: {a}"
                                   "|[SEP]| Choice 1: {b}Answer:  |[MASK]|[SEP]")}
# {question} by domain, as in DOMAINS; of `choice` those of the author's best large runs, and of all
QUESTIONS = {
    ("option", "pair"): ("Which option is more correct?", "Which option is safer?",
                         "Which option is better?"),
    ("option", "single"): ("Is the response correct?", "Is the response safe?",
                           "Is the response good?"),
    ("choice", "pair"): ("Which response is more correct?", "Which response is safer?",
                         "Select the best response."),
    ("choice", "all"): ("Determine which response is the best choice based on mathematical or "
                        "programming accuracy.", "Determine the best response based on safety.",
                        "Which response is the most helpful, relevant, and correct?")}
SPECIAL = ("[CLS]", "[SEP]", "[MASK]")


class Row(NamedTuple):
    tokens: list[int]
    read: int  # the index of [MASK]; 0 = [CLS] for head "cls"; of a decoder's row its last token
    label: int  # 0: the first response is the better one (alone: this is the chosen one)
    cut: int  # user tokens that truncation took


def load_tokenizer(folder):
    """The tokenizer of a model folder, set so that user text never yields a special token.
    The trap: by default the text "[MASK]" becomes the mask itself, and swallows a space."""
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{path}: no tokenizer ({error}): give a whole model folder") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    for token in SPECIAL:
        index = tokenizer.token_to_id(token)
        if index is None or index in tokenizer.encode(token, add_special_tokens=False).ids:
            raise ValueError(f"{path}: no special token {token}: use the tokenizer of a ModernBERT")
    return tokenizer


@dataclass(frozen=True)
class Format:
    """How a pair becomes rows; whatever a model was trained with it must be judged with."""

    tokenizer: Tokenizer
    template: str = "option"  # option: the paper's text; choice: the author's exact token layout
    context: str = "pair"  # pair: both responses in one row; single: each response alone
    head: str = "cloze"  # cloze: read at [MASK]; cls: read at [CLS]
    domain: str = "all"  # whose question is asked; all: that of the pair's own domain
    max_length: int = 3600  # tokens of a row; the author's
    causal: bool = False  # for a decoder: the row ends where [MASK] would come, and is read there

    def __post_init__(self):
        if (self.template, self.context) not in TEMPLATES:
            raise ValueError(f"no template {self.template} for context {self.context}: use "
                             + ", ".join(map(" for ".join, TEMPLATES)))
        if self.head not in ("cloze", "cls") or self.domain not in (*DOMAINS, "all"):
            raise ValueError(f"no head {self.head}, domain {self.domain}: use cloze or cls; "
                             f"{', '.join(DOMAINS)} or all")
        assert self.words  # a tokenizer that splits them fails here, and not in a run

    @property
    def words(self):
        """The ids of the label tokens: that of label 0, that of label 1."""
        words = TEMPLATES[self.template, self.context][:2]
        ids = [self.tokenizer.encode(word, add_special_tokens=False).ids for word in words]
        if [*map(len, ids)] != [1, 1]:
            raise ValueError(f"the tokenizer splits one of the labels {words}: each must be one "
                             "token; use another template or tokenizer")
        return ids[0][0], ids[1][0]


def _layout(pair, fmt):
    """The two rows as lists of pieces: lists of texts, in turn the template's and the user's."""
    domain = (pair.domain or "chat") if fmt.domain == "all" else fmt.domain
    asked = "all" if (fmt.template, fmt.domain) == ("choice", "all") else fmt.context
    question = QUESTIONS[fmt.template, asked][DOMAINS.index(domain)]
    template = TEMPLATES[fmt.template, fmt.context][2].replace("{question}", question)
    pieces = [re.split("({prompt}|{a}|{b})", piece) for piece in template.split("|")]
    prompt, a, b = map(clean, pair[:3])
    rows = ({"{prompt}": prompt, "{a}": x, "{b}": y} for x, y in ((a, b), (b, a)))
    return [[[texts.get(part, part) for part in piece] for piece in pieces] for texts in rows]


def cloze_rows(pairs, fmt, drop_long=False):
    """(for each pair its two rows, or None if it was dropped; a Counter of the drops by reason).
    Row 0 shows the chosen response first, or alone (context single); row 1 the rejected one.
    A prompt that alone does not fit is an error, or a drop with drop_long."""
    layouts = [_layout(pair, fmt) for pair in pairs]
    # the rows of a call share most of their texts (both orders, best of n): encode each once
    texts = [*{"".join(piece): 0 for two in layouts for row in two for piece in row}]
    encodings = fmt.tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = {text: (encoding.ids, [end for _, end in encoding.offsets])
           for text, encoding in zip(texts, encodings, strict=True)}
    ids |= {token: ([fmt.tokenizer.token_to_id(token)], [0]) for token in SPECIAL}
    out, drops = [], Counter()
    for i, (pair, two) in enumerate(zip(pairs, layouts, strict=True)):
        rows = [_row(pieces, label, ids, fmt) for label, pieces in enumerate(two)]
        if None in rows and not drop_long:
            raise ValueError(f"{pair.where or f'pair {i}'}: the prompt alone is longer than the "
                             f"limit of {fmt.max_length} tokens: shorten it or raise --max-length")
        reason = ("prompt too long" if None in rows else
                  "" if rows[0].tokens != rows[1].tokens else
                  "identical after truncation" if rows[0].cut else "identical responses")
        drops.update([reason] if reason else [])
        out.append(None if reason else rows)
    return out, drops


def _row(pieces, label, ids, fmt):
    """One row from its encoded pieces, truncated if need be; None if the prompt does not fit.
    The longer response gives way first, down to the shorter; then both, down to a quarter of the
    room each, whatever their order; then the prompt. Responses lose their end; the prompt its
    beginning, since the last turn of a conversation is what is answered."""
    parts, texts = [], []  # token ids; `texts` are those parts that the user wrote, prompt first
    for piece in pieces:
        new, ends = ids["".join(piece)]  # a token is of the text in which it ends
        stops = (bisect_right(ends, stop) for stop in accumulate(map(len, piece)))
        split = [new[start:stop] for start, stop in pairwise([0, *stops])]
        parts += split
        texts += split[1::2]
    length, (prompt, *responses) = sum(map(len, parts)), map(len, texts)
    room = fmt.max_length - length + prompt + sum(responses)
    if prompt > room:
        return None
    keep = min(prompt, room - sum(min(n, room // 4) for n in responses))
    cap = max((room - keep) // len(responses), room - keep - min(responses))
    del texts[0][:prompt - keep]
    for response in texts[1:]:
        del response[cap:]
    tokens = [*chain.from_iterable(parts)]
    # no user text can hold the mask (see load_tokenizer), so this finds the template's
    read, cut = tokens.index(fmt.tokenizer.token_to_id("[MASK]")), length - len(tokens)
    if fmt.causal:
        return Row(tokens[:read], read - 1, label, cut)
    return Row(tokens, 0 if fmt.head == "cls" else read, label, cut)


class Batch(NamedTuple):
    tokens: torch.Tensor  # (T,)
    starts: torch.Tensor  # (B+1,) row b is tokens[starts[b]:starts[b+1]]; always on the CPU
    read: torch.Tensor  # (B,) index into T
    labels: torch.Tensor  # (B,)


def pack(rows, device="cpu"):
    """The rows end to end, without padding. `starts` stays on the CPU, where the model reads it."""
    tokens, read, labels, _ = zip(*rows, strict=True)
    starts = torch.tensor([0, *accumulate(map(len, tokens))])
    read = (starts[:-1] + torch.tensor(read)).to(device)
    tokens, labels = (torch.tensor(ids, device=device) for ids in ([*chain(*tokens)], labels))
    return Batch(tokens, starts, read, labels)


def deal(lengths, budget, parts=1):
    """Indices of the pairs of one step, as micro-batches of at most `budget` tokens (or one pair),
    for each rank. Each pair, longest first, goes to the emptiest micro-batch; their number grows
    by `parts` until all fit."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for many in count(parts * max(1, -(-sum(lengths) // (budget * parts))), parts):
        bins = [(0, b, []) for b in range(many)]
        for i in order:
            load, b, members = bins[0]
            heapq.heapreplace(bins, (load + lengths[i], b, [*members, i]))
        if all(load <= budget or len(members) == 1 for load, _, members in bins):
            bins = [sorted(members) for _, _, members in sorted(bins, reverse=True) if members]
            return [bins[part::parts] for part in range(parts)]


def main(domain="reasoning", file=None):
    nano = Path(__file__).parent / "nano"
    fmt = Format(load_tokenizer(nano), domain=domain)
    pair = Pairs(file or nano / "pairs" / f"{domain}.train.jsonl", domain)[0]
    print(*(f"{field}: {value}" for field, value in pair._asdict().items()), sep="\n")
    for row in cloze_rows([pair], fmt)[0][0] or []:
        word = fmt.words[row.label]
        print(f"\n{len(row.tokens)} tokens, read at {row.read}, label {row.label} = "
              f"{fmt.tokenizer.id_to_token(word)!r} (id {word})",
              fmt.tokenizer.decode(row.tokens, skip_special_tokens=False), row.tokens, sep="\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
