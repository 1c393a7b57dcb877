"""The judge: compare and rank responses, and say how good a reward model is.

    python evaluate.py runs/NAME rewardbench              one of the benchmarks in BENCHES
    python evaluate.py runs/NAME my.jsonl                 own pairs, best-of-N rows, 3 x 3 styles
    python evaluate.py runs/A runs/B a.jsonl b.jsonl      several of each, side by side
    python evaluate.py runs/NAME --ask PROMPT RESPONSE RESPONSE

Two protocols. `pair`: both responses in one row, once in each order, and P(a is better) is the
mean of the two (Tiny Reward Models, section 2). `single`: each response alone in a row, its score
s the log-odds of the two label words, and P(a is better) = sigmoid(s_a - s_b) (Bradley-Terry).

All arithmetic works on one table for each item, (k, k) for its k responses, the better ones first:
odds[i, j] is the log-odds that i beats j with i shown first; odds[i, i] is the score s of i, or 0.
As (sigmoid(x) + 1 - sigmoid(y)) / 2 > 1/2 just when x > y, the sign of odds - odds.T is the verdict
of both orders, and ties are exact. The same arithmetic on length differences, in characters, is the
baseline "the longer response wins" beside every score.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain, combinations, groupby, islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
import dora
import tinyrm

WINDOW = 256  # comparisons that are tokenised at a time, one window ahead of the encoder
BUDGET = {"cpu": 4_096, "cuda": 65_536}  # tokens in a batch; a small one stays in the CPU's cache
RESAMPLES = 1000


class Item(NamedTuple):
    prompt: str
    responses: tuple  # the `good` better ones first
    good: int = 1
    subset: str = ""
    domain: str = ""
    where: str = ""  # "FILE, line N", for errors
    tag: str = ""  # "kind:group": items of one group belong together (Ties)
    across: bool = False  # ask good against bad only, not all against all


class Judged(NamedTuple):
    item: Item  # without its texts, so that memory does not grow with them
    prompt: int  # 64-bit key of the prompt
    lengths: np.ndarray  # (k,) characters
    odds: np.ndarray  # (k, k)


# --- tables to numbers -----------------------------------------------------------------------


def win_table(odds):
    """P(i better than j), the mean of both orders. (k, k), 1/2 on the diagonal"""
    half = np.tanh(odds / 2)  # sigmoid(x) = (1 + tanh(x / 2)) / 2
    return 0.5 + (half - half.T) / 4


def strengths(odds):
    """Mean win probability of each response over its opponents and both orders. (k,) The sums are
    exactly rounded: equal responses tie exactly, in whatever order they came."""
    return np.array([(math.fsum(row) - 0.5) / max(1, len(row) - 1) for row in win_table(odds)])


def levels(odds):
    """Mean log-odds of winning, in both orders. (k,) In context "single" they differ as scores."""
    return ((odds - odds.T) / 2).mean(1)


COUNTS = ("comparisons", "right", "better is shorter", "right there", "both orders agree",
          "first slot wins", "right in one order")


def counts(j):
    """The COUNTS of an item, over each good response against each bad one. A tie is half right; in
    a row it is half a win of the first slot."""
    good, bad = slice(j.item.good), slice(j.item.good, None)
    first, second = np.sign(j.odds[good, bad]), -np.sign(j.odds[bad, good].T)  # 1, 0 or -1 for good
    right = (1 + np.sign(j.odds - j.odds.T)[good, bad]) / 2
    short = j.lengths[good, None] < j.lengths[bad]
    return [right.size, right.sum(), short.sum(), right[short].sum(), (first == second).sum(),
            (2 + first - second).sum() / 4, (2 + first + second).sum() / 4]


def best_of(scores, good, n):
    """Chance that the top of n responses, drawn without replacement, is one of the first `good`;
    a tie for the top is drawn by lot. Exact, not sampled."""
    hit = 0.0
    for s in np.unique(scores):
        lower, same = int((scores < s).sum()), int((scores == s).sum())
        top = math.comb(lower + same, n) - math.comb(lower, n)  # draws whose top score is s
        hit += top * int((scores[:good] == s).sum()) / same
    return hit / math.comb(len(scores), n)


# --- the benchmarks --------------------------------------------------------------------------
# Two functions make one. VALUES: (Judged, {tag: Judged}) -> {name: number}; the mean of a name is
# over the items that have it. LINES: names -> {title: {name: weight}}, the report's lines, weighted
# means of those means (of the names that are there). The first line is the score.


def plain_lines(names):
    return {name: {name: 1} for name in names}


def pair_values(j, _):
    return dict.fromkeys(("all", j.item.subset or "all"), counts(j)[1])


def bestofn_values(j, _):
    """The right pick from all responses, and from 1, 2, 4, 8 ... drawn from them."""
    sizes = {"all": len(j.odds), **{2**p: 2**p for p in range(len(j.odds).bit_length())}}
    scores = strengths(j.odds)
    return {f"the pick from {n}": best_of(scores, j.item.good, size) for n, size in sizes.items()}


# A subset weighs as many as its rows, but math-prm's 447 count as 984, the rows of code.
# (Early releases of RewardBench's code had the weights of the two xstest subsets swapped.)
SECTIONS = {
    "Chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95,
             "mt-bench-easy": 28, "mt-bench-med": 40},
    "Chat Hard": {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134,
                  "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    "Safety": {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154,
               "xstest-should-respond": 250, "donotanswer": 136},
    "Reasoning": {"math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164,
                  "hep-python": 164, "hep-rust": 164}}
RAW = "raw split, every row alike"  # as the paper's author counted


def rewardbench_values(j, _):
    name = RAW if j.item.subset.startswith("raw ") else j.item.subset
    return {name: counts(j)[1] == 1}  # a tie is a loss


def rewardbench_lines(names):
    overall = {}  # the plain mean of the sections that are there
    for weights in SECTIONS.values():
        there = {s: weight for s, weight in weights.items() if s in names}
        overall |= {s: weight / sum(there.values()) for s, weight in there.items()}
    return {"overall (mean of the sections)": overall, RAW: {RAW: 1}, **SECTIONS,
            **plain_lines(chain(*SECTIONS.values()))}


# A twentieth of the tanh stands in the last part, so that 0.2 of that are the formula's 0.01.
TIES = {"Ties, right of several": 0.3, "Ties, right of one": 0.3, "Ties, gap above spread": 0.2,
        "Ties, smaller gap above spread": 0.2}


def rewardbench2_values(j, by_tag):
    """Best of four, shared by those tied for the top. Of Ties, a prompt with several right answers
    ("tied:k") and its partner with one ("ref:k"): gap = worst right - best wrong, spread = best
    right - worst right."""
    def gap(j):
        return levels(j.odds)[:j.item.good].min() - levels(j.odds)[j.item.good:].max()

    kind, _, group = j.item.tag.partition(":")
    if not group:
        return {j.item.subset: best_of(strengths(j.odds), j.item.good, len(j.odds))}
    several, one, above, smaller = TIES
    if kind == "ref":
        return {one: gap(j) > 0}
    spread = np.ptp(levels(j.odds)[:j.item.good])
    least = min(gap(j), gap(by_tag.get(f"ref:{group}", j)))  # --limit can leave the partner out
    with np.errstate(divide="ignore", invalid="ignore"):
        bonus = np.nan_to_num(np.tanh(least / spread - 1))
    return {several: gap(j) > 0, above: gap(j) > spread, smaller: (least > spread) + bonus / 20}


def rewardbench2_lines(names):
    """The plain mean of the subsets; the Ties by their formula, whose maximum is 1.01."""
    subsets = dict.fromkeys([name for name in names if name not in TIES], 1)
    return {"overall (mean of the subsets)": subsets | TIES, **plain_lines(subsets), "Ties": TIES,
            **plain_lines(TIES)}


def rmbench_values(j, _):
    """The 3 x 3 matrix: does the better response in style r win over the worse one in style c (0
    concise, 1 detailed, 2 markdown)? Easy is where the better one has the fancier style."""
    domain = j.item.subset.partition("-")[0]  # both parts of safety are one
    win = (j.odds > j.odds.T)[:3, 3:]  # a tie is a loss
    return {f"{domain}, {('normal', 'easy', 'hard')[np.sign(r - c)]}, style {r} over {c}": win[r, c]
            for r, c in product(range(3), repeat=2)}


def rmbench_lines(names):
    """Plain means: of the three cells of a level, of the levels, of the domains."""
    domains, _, styles = zip(*(name.split(", ") for name in names), strict=True)
    both = [name.rpartition(", ")[0] for name in names]  # domain and level
    titles = ["easy", "normal", "hard", *domains, *both, *styles]
    return {"overall (mean of the domains)": dict.fromkeys(names, 1),
            **{title: {name: 1 for name in names if title in name} for title in titles}}


def judgebench_values(j, _):
    """Two games, each 1, 0 or -1, whose sum must be positive; and the mean of both orders."""
    split, games = j.item.subset.partition(":")[0], counts(j)[6] > 0.5
    return {f"{split}: two games": games, f"{split}: orders averaged": counts(j)[1],
            j.item.subset: games}


def judgebench_lines(names):
    return plain_lines(sorted(names, reverse=True))  # gpt before claude, two games first


BENCHES = {  # values, lines, repository, files
    "rewardbench": (rewardbench_values, rewardbench_lines, "allenai/reward-bench",
                    ("data/filtered-", "data/raw-")),
    "rewardbench2": (rewardbench2_values, rewardbench2_lines, "allenai/reward-bench-2",
                     ("data/test-",)),
    "rmbench": (rmbench_values, rmbench_lines, "THU-KEG/RM-Bench", ("total_dataset.json",)),
    "judgebench": (judgebench_values, judgebench_lines, "ScalerLab/JudgeBench",
                   ("data/gpt-", "data/claude-"))}
FORMS = {  # own files
    **dict.fromkeys(("pairs", "pairs without a prompt"), (pair_values, plain_lines)),
    "best of n": (bestofn_values, plain_lines), "3 x 3 styles": BENCHES["rmbench"]}


# --- the judge -------------------------------------------------------------------------------


class Ranked(NamedTuple):
    rank: int  # from 1; equals share a rank
    index: int  # where it stood in the list that was given
    response: str
    win: float  # mean probability of winning, over all opponents and both orders
    score: float  # log-odds: the score s of context "single"; in context "pair" see `levels`


class RewardModel:
    """A model that judges. `load` opens a stored one; the constructor takes a live one."""

    def __init__(self, model, fmt, device="cpu", about=None):
        self.model, self.fmt, self.device = model, fmt, torch.device(device)
        self.about, self.single = about or {}, fmt.context == "single"
        self.spent, self.seen = Counter(), Counter()  # by the encoder; rows, cut rows, drops

    @classmethod
    def load(cls, name, *, device="auto", dtype="auto", **flags):
        """Open a run folder, a model folder in the Hub layout, a PEFT adapter, or a Hub name. The
        format it was trained with stands in tinyrm.json beside its weights; flags (template,
        context, domain, max_length) that are not None override it."""
        folder = tinyrm.fetch(name)
        folder = next((folder / d for d in ("model", "adapter") if (folder / d).is_dir()), folder)
        adapter = read_json(folder / "adapter_config.json")
        base = tinyrm.fetch(adapter["base_model_name_or_path"]) if adapter else folder
        shown = read_json(folder / "tinyrm.json") or read_json(base / "tinyrm.json")
        if str(name).startswith("sarahpann/"):  # the published checkpoints know this layout only
            domain = next((d for d in data.DOMAINS if d in str(name)), "all")
            shown = {"template": "choice", "domain": domain, **shown}
        model = tinyrm.load(base, shown.get("head"))
        if adapter:
            dora.load_adapter(model, folder)
            dora.merge(model)
        most = model.config.max_position_embeddings
        shown = {"head": model.head_kind, "max_length": min(3600, most), **shown,
                 **{key: value for key, value in flags.items() if value is not None}}
        if shown["max_length"] > most:
            raise ValueError(f"--max-length {shown['max_length']}: {name} ends at {most} tokens")
        own = folder if (folder / "tokenizer.json").is_file() else base
        fmt = data.Format(data.load_tokenizer(own), **shown, causal=model.config.causal)
        device, compute, reason = tinyrm.pick_device(device, dtype)
        about = {"model": str(name), "parameters": sum(p.numel() for p in model.parameters()),
                 "weights": " + ".join(dict.fromkeys(map(revision, (base, folder)))),
                 "format": {key: value for key, value in vars(fmt).items() if key != "tokenizer"},
                 "device": reason}
        return cls(model.dtype_(compute).to(device).eval(), fmt, device, about)

    def compare(self, prompt, a, b, domains="", drop_long=False):
        """P(a is the better response), the mean of both orders; of lists, a list. `domains`: whose
        question a model for all domains is asked. A prompt that cannot fit is a ValueError, or 1/2
        with drop_long."""
        one = isinstance(a, str)
        prompt, a, b = ([prompt], [a], [b]) if one else (prompt, a, b)
        items = items_of(prompt, zip(a, b, strict=True), domains)
        out = [float(win_table(j.odds)[0, 1]) for j in self.judge(items, drop_long)]
        return out[0] if one else out

    def rank(self, prompt, responses, domains=""):
        """The responses best first, as `Ranked`; of lists, a list. k responses take k (k - 1) / 2
        comparisons in both orders (context "single": k scores). The order in which they come makes
        no difference, and equals share a rank."""
        one = all(isinstance(r, str) for r in responses)
        prompt, responses = ([prompt], [responses]) if one else (prompt, responses)
        items, out = items_of(prompt, responses, domains), []
        for item, j in zip(items, self.judge(items), strict=True):
            win, score = strengths(j.odds), np.diag(j.odds) if self.single else levels(j.odds)
            best = sorted(range(len(win)), key=lambda i: (-win[i], item.responses[i]))
            out.append([Ranked(1 + int((win > win[i]).sum()), i, item.responses[i], float(win[i]),
                               float(score[i])) for i in best])
        return out[0] if one else out

    def judge(self, items, drop_long=False):
        """Items in, Judged out, in the same order. A thread tokenises the next window while the
        encoder works on this one. Responses that make the same row, and with drop_long those of a
        prompt that cannot fit, are a tie that is not asked."""
        items = iter(items)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._window, items, drop_long)
            while window := ahead.result():
                ahead = pool.submit(self._window, items, drop_long)
                yield from self._finish(window)

    def _window(self, items, drop_long):
        """The next items, as [(item, comparisons, their rows)]. Context "single": i = j."""
        taken, pairs = [], []
        for item in items:
            r = item.responses
            meet = [(i, i) for i in range(len(r))] if self.single else meetings(item, len(r))
            # a response alone gets a second one that differs from it, whose row is not used
            pairs += [data.Pair(item.prompt, r[i], r[j] if i != j else "" if r[i] else "-", "",
                                item.domain, item.where) for i, j in meet]
            taken.append((item, meet))
            if len(pairs) >= WINDOW:
                break
        rows, drops = data.cloze_rows(pairs, self.fmt, drop_long)
        rows = [(two or [])[:1 if self.single else 2] for two in rows]
        cut = sum(row.cut > 0 for row in chain(*rows))
        self.seen.update({"rows": sum(map(len, rows)), "truncated rows": cut, **drops})
        rows = iter(rows)
        return [(item, meet, [*islice(rows, len(meet))]) for item, meet in taken]

    def _finish(self, window):
        """The window's items, Judged. Equal rows are asked once, and in an order of their own: no
        score depends on that of the items. It is by length, as on the CPU equally long neighbours
        share one attention call."""
        rows = {tuple(row.tokens): row for _, _, pairs in window for row in chain(*pairs)}
        order, found = sorted(rows, key=lambda tokens: (len(tokens), tokens)), {}
        words = torch.tensor(self.fmt.words, device=self.device)  # head "cls" has its own two
        for _, batch in groupby(zip(order, accumulate(map(len, order)), strict=True),
                                key=lambda pair: pair[1] // BUDGET[self.device.type]):
            keys = [tokens for tokens, _ in batch]
            tokens, starts, read, _ = data.pack([rows[key] for key in keys])
            began = time.perf_counter()
            with torch.inference_mode():
                h = self.model(tokens.to(self.device), starts, read.to(self.device))
                z = self.model.logits(h, words).double().cpu()
            found.update(zip(keys, (z[:, 0] - z[:, 1]).tolist(), strict=True))
            self.spent.update(rows=len(keys), tokens=len(tokens),
                              seconds=time.perf_counter() - began,
                              flops=flops(self.model.config, starts.diff().tolist(), self.device))
        for item, meet, pairs in window:
            odds = np.zeros((len(item.responses), len(item.responses)))
            for (i, j), pair in zip(meet, pairs, strict=True):
                z = [found[tuple(row.tokens)] for row in pair] or [0.0]
                odds[i, j], odds[j, i] = z[0], z[-1]
            if self.single:
                s = np.diag(odds)
                odds = s[:, None] - s + np.diag(s)
            bare = item._replace(prompt="", responses=(), where="")
            yield Judged(bare, data.prompt_key(item.prompt),
                         np.array([len(text) for text in item.responses]), odds)


def meetings(item, k):
    """The comparisons of an item with k responses: of each good with each bad one, or of all."""
    good = range(item.good)
    return [*product(good, range(item.good, k))] if item.across else [*combinations(range(k), 2)]


def items_of(prompts, lists, domains):
    lists, domains = [*lists], [domains] * len(prompts) if isinstance(domains, str) else domains
    if not len(prompts) == len(lists) == len(domains) or not all(map(texts, lists)):
        raise ValueError("give as many responses (strings), or lists of them, none empty, and "
                         f"domains as prompts, of which there are {len(prompts)}")
    return [Item(data.to_text(prompt, "the prompt"), tuple(map(data.clean, r)), domain=domain)
            for prompt, r, domain in zip(prompts, lists, domains, strict=True)]


def texts(side):
    return isinstance(side, (list, tuple)) and side and all(isinstance(x, str) for x in side)


def read_json(path):
    """What a JSON file holds; {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}): make it anew") from None


def revision(path):
    """The Hub's commit of a cached snapshot, else the sha256 of the weights, or of the file."""
    if path.parent.name == "snapshots":
        return path.name
    said = []
    for file in sorted(path.glob("*.safetensors")) or [path]:
        with open(file, "rb") as stream:
            said.append("sha256 " + hashlib.file_digest(stream, "sha256").hexdigest()[:16])
    return ", ".join(said)


# --- data ------------------------------------------------------------------------------------

STYLES = ("chat", "code", "math", "safety-refuse", "safety-response")  # RM-Bench's domains
DOMAIN = {  # whose question a model for all domains is asked; of all other subsets chat's
    **dict.fromkeys([*SECTIONS["Safety"], "Safety", "safety-refuse", "safety-response"], "safety"),
    **dict.fromkeys([*SECTIONS["Reasoning"], "Math", "math", "code"], "reasoning")}


def open_data(name, limit=0):
    """(bench, number of items, function to items, revision) of a benchmark or a JSON lines file,
    all of which is checked now, and read again while judging. Of a limit, items evenly spread."""
    def items():
        return (to_item(row, f"{name}, line {line}") for line, row in data.read_rows(name))

    def spread(n):
        k = min(limit or n, n)
        return {i * n // k for i in range(k)} if k < n else range(n)

    if name in BENCHES:
        _, _, repo, files = BENCHES[name]
        found = {file: data.hub_rows(repo, file) for file in files}
        rows = [to_item(hub_row(file, row), repo)[1] for file in files for row in found[file][1]]
        # RewardBench's filtered rows are raw rows too: side by side in a window, asked once
        rows = sorted((rows[i] for i in spread(len(rows))), key=lambda item: item[:2])
        return BENCHES[name], len(rows), lambda: rows, f"{repo} at {found[files[0]][0]}"
    form, count = None, 0
    for count, (kind, item) in enumerate(items(), 1):  # noqa: B007
        form = form or kind
        if kind != form:
            raise ValueError(f"{item.where}: {kind}, after lines of {form}: keep to one form")
    if not count:
        raise ValueError(f"{name}: empty: give JSON lines with prompt, chosen and rejected")
    picked = spread(count)
    return FORMS[form], len(picked), lambda: (
        item for i, (_, item) in enumerate(items()) if i in picked), revision(Path(name))


def hub_row(file, row):
    """A benchmark's row as one of an own file."""
    if "question" in row:  # JudgeBench
        sides = ("response_A", "response_B")[::1 if row["label"] == "A>B" else -1]
        source = re.match("mmlu-pro|livebench-[a-z]+|[a-z]*", row["source"])[0]
        return {"prompt": row["question"], "chosen": row[sides[0]], "rejected": row[sides[1]],
                "subset": f"{file[5:-1]}: {source}", "domain": "reasoning"}
    if "subset" not in row:  # RM-Bench
        return {**row, "id": f"{row['domain']}/", "domain": ""}
    return {**row, "subset": "raw " * ("raw" in file) + row["subset"],
            "domain": DOMAIN.get(row["subset"], "chat")}


def to_item(row, where):
    """(form, item) of a row: a pair; or best of n, `chosen` and `rejected` being lists of strings;
    or RM-Bench's 3 x 3 styles, lists of three with an id such as "safety-refuse/3099"."""
    sides = [row.get("chosen"), row.get("rejected")]
    if not any(map(texts, sides)):
        pair = data.to_pair(row, where)
        item = Item(pair.prompt, pair[1:3], 1, pair.subset, pair.domain, where)
        return "pairs" if "prompt" in row else "pairs without a prompt", item
    sides = [[side] if isinstance(side, str) else side for side in sides]
    if not all(map(texts, sides)):
        raise ValueError(f"{where}: chosen and rejected: give lists of strings, none empty")
    pair = data.to_pair({"prompt": None, **row, "chosen": "", "rejected": ""}, where)
    style, tag = str(row.get("id")).partition("/")[0], str(row.get("id")) * (pair.subset == "Ties")
    item = Item(pair.prompt, tuple(map(data.clean, sum(sides, []))), len(sides[0]), pair.subset,
                pair.domain, where, tag)
    if style in STYLES and [*map(len, sides)] == [3, 3]:
        domain = DOMAIN.get(style, "chat")
        return "3 x 3 styles", item._replace(subset=style, domain=domain, across=True)
    return "best of n", item


# --- the report ------------------------------------------------------------------------------


def report(bench, judged):
    """What results.json says of one model and benchmark, and "draws" (RESAMPLES, lines). Intervals
    are of these, bootstrap samples of whole prompts, or groups of a tag; a mean is over those items
    in a sample that have its name."""
    def table(change):
        by_tag = {j.item.tag: change(j) for j in judged if j.item.tag}
        found = [bench[0](change(j), by_tag) for j in judged]
        names = [*dict.fromkeys(chain(*found))]
        return names, np.array([[v.get(name, np.nan) for name in names] for v in found], float)

    def scores(table, drawn):  # (lines,)
        n, total = drawn[unit] @ ~np.isnan(table), drawn[unit] @ np.nan_to_num(table)
        with np.errstate(invalid="ignore"):  # nan where a sample has nothing of a line
            return total / np.maximum(n, 1) @ weights / ((n > 0) @ weights)

    known, random = {}, np.random.default_rng(0)
    unit = np.array([known.setdefault(j.item.tag.partition(":")[2] or j.prompt, len(known))
                     for j in judged])  # an array, as indexing by a list would convert it each time
    names, ours = table(lambda j: j)
    longer = table(lambda j: j._replace(odds=np.subtract.outer(j.lengths, j.lengths)))[1]
    lines = {title: w for title, w in bench[1](names).items() if not w.keys().isdisjoint(names)}
    weights = np.array([[w.get(name, 0) for w in lines.values()] for name in names])
    u = len(known)
    draws = np.array([scores(ours, np.bincount(random.integers(u, size=u), minlength=u))
                      for _ in range(RESAMPLES)])
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    has = (~np.isnan(ours) @ weights > 0).T  # (lines, items)
    sums = has @ np.fromiter(map(counts, judged), np.dtype((float, len(COUNTS))))
    columns = {"score": scores(ours, np.ones(u)), "low": low, "high": high, "n": has.sum(1),
               "longer wins": scores(longer, np.ones(u)), **dict(zip(COUNTS, sums.T, strict=True))}
    rows = [{"name": title, **{key: column[i].item() for key, column in columns.items()}}
            for i, title in enumerate(lines)]
    return {**{key: rows[0][key] for key in ("score", "low", "high", "n")}, "prompts": u,
            "lines": rows, "draws": draws}


def differences(reports):
    """Give each line of a later model its "difference" to the first one's on the same data, and
    the 95 % interval. They are paired: as the bootstrap is seeded, both drew the same prompts."""
    first = {}
    for r in reports:
        draws = r.pop("draws")
        base, lines = first.setdefault(r["data"], (draws, r["lines"]))
        for line, other, drawn in zip(r["lines"], lines, (draws - base).T, strict=True):
            if line is not other:
                line["difference"] = [line["score"] - other["score"],
                                      *np.nanpercentile(drawn, [2.5, 97.5]).tolist()]


def show(reports):
    """A table of all data in rows and all models in columns: score [95 % interval], and accuracy
    where the better one is the shorter. Of several data the first lines; of one report all."""
    found = {(r["data"], r["model"]): r["lines"] for r in reports}
    files, models = (dict.fromkeys(keys) for keys in zip(*found, strict=True))
    text = ["", f"{'':42}" + "".join(f"{model[-26:]:>28}" for model in models),
            f"{'':42}" + f"{'score [95 %]  if shorter':>28}" * len(models) + "  longer wins      n"]
    for file in files:
        rows = zip(*(found[file, model] for model in models), strict=True)
        for i, row in enumerate(islice(rows, 1 if len(files) > 1 else None)):
            short = (f"{x['right there'] / x['better is shorter']:.3f}" if x["better is shorter"]
                     else "-" for x in row)  # "-": the better one never is the shorter
            cells = (f"{x['score']:.3f} [{x['low']:.3f} {x['high']:.3f}] {part:>6}"
                     for x, part in zip(row, short, strict=True))
            text.append(f"{Path(file).stem[:14] + ': ' + row[0]['name']:42.42}"
                        + "".join(f"{cell:>28}" for cell in cells)
                        + f"{row[0]['longer wins']:13.3f}{row[0]['n']:7,}")
            if i == 0 and "difference" in row[-1]:
                text.append(f"{'    less that of the first model':70}" + "".join(
                    "{:+.3f} [{:+.3f} {:+.3f}]      ".format(*x["difference"]) for x in row[1:]))
    if len(reports) == 1:
        (r,), top = reports, reports[0]["lines"][0]
        text.append(f"{r['prompts']:,} prompts, "
                    + ", ".join(f"{n:,} {what}" for what, n in r["seen"].items()))
        if r["format"]["context"] == "pair":
            text.append(", ".join(f"{key} {top[key] / top['comparisons']:.3f}" for key in (
                "both orders agree", "first slot wins", "right in one order", "right")))
        text += [f"  {key:38} {value:>14,.4g}" for key, value in r["cost"].items()]
    return "\n".join(text)


# --- cost ------------------------------------------------------------------------------------


def flops(config, sizes, device):
    """FLOPs, two a multiply-add, of products and attention in tinyrm.py for rows of these sizes:
    the last layer's queries, output and MLP for one position a row, the decoder for two words.
    Local attention: the window on CUDA, blocks of queries over their neighbours elsewhere. What
    a decoder masks within these is counted too."""
    d, f, w, total = config.hidden_size, config.intermediate_size, config.window, sum(sizes)
    square = near = sum(n * n for n in sizes)
    if device.type == "cuda":
        near = sum(n * n if n <= w else n * (2 * w + 1) - w * (w + 1) for n in sizes)
    elif max(sizes) > w + 1:
        width = tinyrm.BLOCK + (1 if config.causal else 2) * w
        near = -(-total // tinyrm.BLOCK) * tinyrm.BLOCK * width
    count = len(sizes) * (d * d + 2 * d)  # the head
    for i, kind in enumerate(config.layer_types):
        last, full = i == config.num_hidden_layers - 1, kind == "full_attention"
        out = len(sizes) if last else total
        count += 2 * total * d * d + (out if full else total) * d * d + out * (d * d + 3 * d * f)
        count += 2 * d * ((total if last else square) if full else near)
    return 2 * count


def paper_flops(d, layers, heads, f):
    """FLOPs a token by the formula behind the paper's chart, 2 N + 2 L context K with a context of
    8,192 and N = 2 D L (2 K + F): K, the size of one head, stands for all of attention's width."""
    return 4 * d * layers * (2 * d // heads + f) + 2 * layers * 8192 * d // heads


def cost(rm, seconds):
    """What was measured in this run, counted for it, and said by the paper's formula."""
    c, spent, parameters = rm.model.config, rm.spent, rm.about["parameters"]
    unit, n = ("response", spent["rows"]) if rm.single else ("pair", spent["rows"] / 2)
    if rm.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(rm.device)
    else:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    paper = paper_flops(c.hidden_size, c.num_hidden_layers, c.num_attention_heads,
                        c.intermediate_size) * spent["tokens"] / n
    return {f"{unit}s a second": n / seconds, "tokens a second": spent["tokens"] / seconds,
            f"tokens a {unit}": spent["tokens"] / n, "seconds": seconds,
            "share of them in the encoder": spent["seconds"] / seconds, "peak GiB": peak / 2**30,
            f"GFLOPs a {unit}, counted": spent["flops"] / n / 1e9,
            f"GFLOPs a {unit}, the paper's formula": paper / 1e9,  # without most of attention
            "parameters": parameters, "times smaller than 70 billion": 70e9 / parameters}


# --- command line ----------------------------------------------------------------------------


def evaluate(rm, name, opened, scores, with_cost):
    """Judge what `open_data` opened, and report on it. A line for each comparison goes to `scores`:
    P(a is better) with a shown first, with b shown first, and their mean. Responses count from 0,
    the `good` better ones first, so a = 0 is the chosen one of a pair."""
    bench, n, items, source = opened
    print(f"\njudging {n:,} items of {name} ({source})", flush=True)
    rm.spent, rm.seen, judged, began = Counter(), Counter(), [], time.perf_counter()
    about = {"model": rm.about["model"], "data": name}
    for j in tqdm(rm.judge(items(), name in BENCHES), total=n, disable=None, leave=False):
        judged.append(j)
        p, mean = (1 + np.tanh(j.odds / 2)) / 2, win_table(j.odds)
        for a, b in meetings(j.item, len(p)):
            scores.write(json.dumps({
                **about, "prompt": f"{j.prompt:016x}", "subset": j.item.subset, "tag": j.item.tag,
                "good": j.item.good, "a": a, "b": b, "a_first": p[a, b], "b_first": 1 - p[b, a],
                "mean": mean[a, b]}) + "\n")
    seconds = time.perf_counter() - began
    r = {**rm.about, **about, "source": source, **report(bench, judged), "seen": dict(rm.seen),
         "cost": cost(rm, seconds) if with_cost else {}}
    print(show([r]))
    return r


def versions():
    here = shlex.quote(str(Path(__file__).resolve().parent))
    failed, commit = subprocess.getstatusoutput(
        f"git -C {here} --git-dir=.git describe --always --dirty --abbrev=12")
    return {"tinyrm": "not a checkout" if failed else commit, "torch": torch.__version__,
            "python": sys.version.split()[0]}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="models (folders or Hub names), and what to judge:"
        f" {', '.join(BENCHES)}, FILE.jsonl")
    add("--ask", nargs="+", metavar="TEXT", help="rank responses: PROMPT RESPONSE RESPONSE ...")
    add("--context", choices=["pair", "single"], help="default: as the model was trained")
    add("--template", choices=["option", "choice"], help="default: as the model was trained")
    add("--domain", choices=[*data.DOMAINS, "all"], help="whose question is asked")
    add("--max-length", type=int, help="tokens of a row; longer ones are truncated, and counted")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--dtype", default="auto", help="auto, fp32 or bf16")
    add("--limit", type=int, default=0, help="judge so many items, evenly spread; 0: all")
    add("--cost", action="store_true", help="speed, memory and FLOPs")
    add("--out", type=Path, metavar="DIR", help="for results.json and scores.jsonl (default: "
        "eval/DATA in a run folder, else runs/eval-MODEL/DATA)")
    args = parser.parse_intermixed_args(argv)
    args.data = [n for n in args.names if n in BENCHES or n.endswith((".jsonl", ".json"))]
    args.models = [n for n in args.names if n not in args.data]
    if not args.models or bool(args.data) == bool(args.ask) or len(args.ask or "123") < 3:
        raise ValueError("give a model and what it shall judge: a benchmark, FILE.jsonl, or --ask "
                         "PROMPT RESPONSE RESPONSE; see --help")
    if args.limit < 0:
        raise ValueError(f"--limit {args.limit}: give a positive number, or 0 for all")
    if args.out is None:
        run = len(args.models) == 1 and Path(args.models[0], "run.json").is_file()
        where = f"{args.models[0]}/eval" if run else "runs/eval-" + "+".join(
            Path(model).name for model in args.models)
        args.out = Path(where, "+".join(Path(name).stem for name in args.data))
    there = next(folder for folder in (args.out, *args.out.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"--out {args.out}: {there} is no folder to write in: give another")
    return args


def main(argv=None):
    args = parse(argv)
    flags = {key: getattr(args, key) for key in ("device", "dtype", "context", "template", "domain",
                                                 "max_length")}

    def load(name):
        rm = RewardModel.load(name, **flags)
        print("\n  ".join(f"{key} {value}" for key, value in rm.about.items()), flush=True)
        return rm

    if args.ask:
        for rm in map(load, args.models):
            k = len(args.ask) - 1
            print(f"{k} scores" if rm.single else f"{k * (k - 1) // 2} comparisons, in both orders")
            for r in rm.rank(args.ask[0], args.ask[1:]):
                print(f"{r.rank:3}.  wins {r.win:.3f}  log-odds {r.score:+.3f}  {r.response}")
        return
    opened = {name: open_data(name, args.limit) for name in args.data}  # errors before the work
    with tempfile.TemporaryDirectory() as part:  # both files appear at the end, or none
        with open(Path(part, "scores.jsonl"), "w", encoding="utf-8") as scores:
            reports = [evaluate(rm, name, opened[name], scores, args.cost)
                       for rm in map(load, args.models) for name in args.data]
        differences(reports)
        if len(reports) > 1:
            print(show(reports))
        result = {"command": shlex.join(["python", "evaluate.py", *(argv or sys.argv[1:])]),
                  "versions": versions(), "resamples": RESAMPLES, "reports": reports}
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        Path(part, "results.json").write_text(text, encoding="utf-8")
        args.out.mkdir(parents=True, exist_ok=True)
        for file in ("scores.jsonl", "results.json"):
            shutil.move(Path(part, file), args.out / file)
    print(f"\nresults.json and scores.jsonl are in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
