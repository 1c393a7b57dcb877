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
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain, combinations, groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory
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
    odds: np.ndarray = None  # (k, k), of a judged item

    def meetings(self):
        """The comparisons (i, j): of each good response with each bad one, or of all."""
        n = range(len(self.responses))
        return [*product(n[:self.good], n[self.good:])] if self.across else [*combinations(n, 2)]


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


def counts(item):
    """The COUNTS of an item, over each good response against each bad one. A tie is half right; in
    a row it is half a win of the first slot."""
    good, sign, length = item.good, np.sign(item.odds), np.array([*map(len, item.responses)])
    first, second = sign[:good, good:], -sign[good:, :good].T  # 1, 0 or -1 for the good one
    right = (1 + np.sign(item.odds - item.odds.T)[:good, good:]) / 2
    short = length[:good, None] < length[good:]
    return [right.size, right.sum(), short.sum(), right[short].sum(), (first == second).sum(),
            (2 + first - second).sum() / 4, (2 + first + second).sum() / 4]


def best_of(scores, good, n):
    """Chance that the top of n responses, drawn without replacement, is one of the first `good`;
    a tie for the top is drawn by lot. Exact, not sampled."""
    hits = 0.0
    for s in scores[:good]:
        lower, same = int((scores < s).sum()), int((scores == s).sum())
        hits += (math.comb(lower + same, n) - math.comb(lower, n)) / same  # draws with s on top
    return hits / math.comb(len(scores), n)


# --- the benchmarks --------------------------------------------------------------------------
# One function each: judged items -> (of each item {name: number}, {title: {name: weight}}). The
# mean of a name is over the items that have it. The titles are the report's lines: weighted means
# of those means that are there; None stands for the mean of that name. The first is the score.


def pairs(items):
    found = [dict.fromkeys(("all", item.subset or "all"), counts(item)[1]) for item in items]
    return found, dict.fromkeys(chain(*found))


def best_of_n(items):
    """The right pick from all responses, and from 1, 2, 4, 8 ... drawn from them."""
    found = []
    for item in items:
        k, scores = len(item.odds), strengths(item.odds)
        found.append({"the pick from all": best_of(scores, item.good, k), **{
            f"the pick from {2**p}": best_of(scores, item.good, 2**p)
            for p in range(k.bit_length())}})
    return found, dict.fromkeys(chain(*found))


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


def rewardbench(items):
    """The plain mean of the sections, of the subsets that are there; a tie is a loss."""
    found = [{RAW if item.subset.startswith("raw ") else item.subset: counts(item)[1] == 1}
             for item in items]
    names, overall = set(chain(*found)), {}
    for section in SECTIONS.values():
        there = section.keys() & names
        overall |= {subset: section[subset] / sum(map(section.get, there)) for subset in there}
    return found, {"overall (mean of the sections)": overall, RAW: None, **SECTIONS,
                   **dict.fromkeys(chain(*SECTIONS.values()))}


# A twentieth of the tanh stands in the last part, so that 0.2 of that are the formula's 0.01.
TIES = {"Ties, right of several": 0.3, "Ties, right of one": 0.3, "Ties, gap above spread": 0.2,
        "Ties, smaller gap above spread": 0.2}


@np.errstate(divide="ignore", invalid="ignore")
def rewardbench2(items):
    """The plain mean of the subsets: best of four, shared by those tied for the top; and the Ties,
    whose maximum is 1.01. There a prompt has several right answers ("tied:k") and its partner one
    ("ref:k"): gap = worst right - best wrong, spread = best right - worst right."""
    found, (several, one, above, smaller) = [], TIES
    sides = [np.split(levels(item.odds), [item.good]) for item in items]
    gaps = {item.tag: right.min() - wrong.max()
            for item, (right, wrong) in zip(items, sides, strict=True)}
    for item, (right, _) in zip(items, sides, strict=True):
        kind, _, group = item.tag.partition(":")
        gap, spread = gaps[item.tag], np.ptp(right)
        least = min(gap, gaps.get(f"ref:{group}", gap))  # --limit can leave the partner out
        bonus = np.nan_to_num(np.tanh(least / spread - 1)) / 20
        found.append({several: gap > 0, above: gap > spread, smaller: (least > spread) + bonus}
                     if kind == "tied" else {one: gap > 0} if kind == "ref" else
                     {item.subset: best_of(strengths(item.odds), item.good, len(item.odds))})
    subsets = dict.fromkeys((name for name in chain(*found) if name not in TIES), 1)
    return found, {"overall (mean of the subsets)": subsets | TIES, **dict.fromkeys(subsets),
                   "Ties": TIES, **dict.fromkeys(TIES)}


def rmbench(items):
    """The 3 x 3 matrix: does the better response in style r win over the worse one in style c (0
    concise, 1 detailed, 2 markdown)? A tie is a loss; easy is where the better one has the fancier
    style. Plain means: of the three cells of a level, of the levels, of the domains."""
    found = []
    for item in items:
        domain, win = item.subset.partition("-")[0], item.odds > item.odds.T  # one domain safety
        found.append({f"{domain}, {('normal', 'easy', 'hard')[np.sign(r - c)]}, style {r} over {c}":
                      win[r, 3 + c] for r, c in product(range(3), repeat=2)})
    names = dict.fromkeys(chain(*found), 1)
    domains, _, styles = zip(*(name.split(", ") for name in names), strict=True)
    both = (name.rpartition(", ")[0] for name in names)  # domain and level
    titles = "easy", "normal", "hard", *domains, *both, *styles
    return found, {"overall (mean of the domains)": names, **{
        title: {name: 1 for name in names if title in name} for title in titles}}


def judgebench(items):
    """Two games, each 1, 0 or -1, whose sum must be positive; and the mean of both orders."""
    found = []
    for item in items:
        split, games = item.subset.partition(":")[0], counts(item)[6] > 0.5
        found.append({f"{split}: two games": games, f"{split}: orders averaged": counts(item)[1],
                      item.subset: games})
    return found, dict.fromkeys(sorted(chain(*found), reverse=True))  # gpt first, two games first


BENCHES = {  # function, repository, files
    "rewardbench": (rewardbench, "allenai/reward-bench", ("data/filtered-", "data/raw-")),
    "rewardbench2": (rewardbench2, "allenai/reward-bench-2", ("data/test-",)),
    "rmbench": (rmbench, "THU-KEG/RM-Bench", ("total_dataset.json",)),
    "judgebench": (judgebench, "ScalerLab/JudgeBench", ("data/gpt-", "data/claude-"))}
FORMS = {"pairs": pairs, "pairs without a prompt": pairs, "best of n": best_of_n,  # own files
         "3 x 3 styles": rmbench}
STYLES = ("chat", "code", "math", "safety-refuse", "safety-response")  # RM-Bench's domains
DOMAIN = {  # whose question a model for all domains is asked; of all other subsets chat's
    **dict.fromkeys([*SECTIONS["Safety"], "Safety", *STYLES[3:]], "safety"),
    **dict.fromkeys([*SECTIONS["Reasoning"], "Math", *STYLES[1:3]], "reasoning")}


def open_data(name, limit=0):
    """(function, number of items, function that yields them, revision) of a benchmark or a file of
    JSON lines. A file is checked whole now and read again while judging, so memory does not grow
    with it. With a limit that many items, evenly spread."""
    held = []
    if name in BENCHES:
        bench, repo, files = BENCHES[name]
        found = {file: data.hub_rows(repo, file) for file in files}
        held = [to_item(row, repo, file) for file in files for row in found[file][1]]

    def rows():
        return held or (to_item(row, f"{name}, line {line}") for line, row in data.read_rows(name))

    def items():
        chosen = (item for i, (_, item) in enumerate(rows()) if i in picked)
        # RewardBench's filtered rows are raw rows too: side by side in a window, asked once
        return sorted(chosen, key=lambda item: item[:2]) if held else chosen

    first, n = "", 0
    for n, (form, item) in enumerate(rows(), 1):  # noqa: B007
        if form != (first := first or form):
            raise ValueError(f"{item.where}: {form}, after lines of {first}: keep to one form")
    if not n:
        raise ValueError(f"{name}: empty: give JSON lines with prompt, chosen and rejected")
    k = min(limit or n, n)
    picked = {i * n // k for i in range(k)} if k < n else range(n)
    if held:
        return bench, k, items, f"{repo} at {found[files[0]][0]}"
    return FORMS[first], k, items, revision(Path(name))


def to_item(row, where, file=""):
    """(form, item) of a row: a pair; or best of n, `chosen` and `rejected` being lists of strings;
    or RM-Bench's 3 x 3 styles, lists of three with an id such as "safety-refuse/3099". The rows of
    the benchmarks' files are made such rows first."""
    if file and "question" in row:  # JudgeBench
        sides = ("response_A", "response_B")[::1 if row["label"] == "A>B" else -1]
        source = re.match("mmlu-pro|livebench-[a-z]+|[a-z]*", row["source"])[0]
        row = {"prompt": row["question"], "chosen": row[sides[0]], "rejected": row[sides[1]],
               "subset": f"{file[5:-1]}: {source}", "domain": "reasoning"}
    elif file and "subset" not in row:  # RM-Bench
        row = {**row, "id": f"{row['domain']}/", "domain": ""}
    elif file:
        row = {**row, "subset": "raw " * ("raw" in file) + row["subset"],
               "domain": DOMAIN.get(row["subset"], "chat")}
    sides = [row.get("chosen"), row.get("rejected")]
    if not any(map(texts, sides)):
        pair = data.to_pair(row, where)
        item = Item(pair.prompt, pair[1:3], 1, pair.subset, pair.domain, where)
        return "pairs" if "prompt" in row else "pairs without a prompt", item
    sides = [[side] if isinstance(side, str) else side for side in sides]
    if not all(map(texts, sides)):
        raise ValueError(f"{where}: chosen and rejected: give lists of strings, none empty")
    pair = data.to_pair({"prompt": None, **row, "chosen": "", "rejected": ""}, where)
    tag, style = str(row.get("id")), str(row.get("id")).partition("/")[0]
    item = Item(pair.prompt, tuple(map(data.clean, sum(sides, []))), len(sides[0]), pair.subset,
                pair.domain, where, tag * (pair.subset == "Ties"))
    if style not in STYLES or [*map(len, sides)] != [3, 3]:
        return "best of n", item
    item = item._replace(subset=style, domain=DOMAIN.get(style, "chat"), across=True)
    return "3 x 3 styles", item


def items_of(prompts, lists, domains):
    lists, domains = [*lists], [domains] * len(prompts) if isinstance(domains, str) else domains
    if not len(prompts) == len(lists) == len(domains) or not all(map(texts, lists)):
        raise ValueError("give as many responses (strings), or lists of them, none empty, and "
                         f"domains as prompts, of which there are {len(prompts)}")
    return [Item(data.to_text(prompt, "the prompt"), tuple(map(data.clean, r)), domain=domain)
            for prompt, r, domain in zip(prompts, lists, domains, strict=True)]


def texts(side):
    return isinstance(side, (list, tuple)) and side and all(isinstance(x, str) for x in side)


def revision(path):
    """The Hub's commit of a cached snapshot, else the sha256 of the weights, or of the file."""
    if path.parent.name == "snapshots":
        return path.name
    return ", ".join(f"sha256 {hashlib.sha256(np.memmap(file, mode='r')).hexdigest()[:16]}"
                     for file in sorted(path.glob("*.safetensors")) or [path])


def read_json(path):
    """What a JSON file holds; {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}): make it anew") from None


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
        tokenizer = data.load_tokenizer(folder if (folder / "tokenizer.json").is_file() else base)
        fmt = data.Format(tokenizer, **shown, causal=model.config.causal)
        device, compute, reason = tinyrm.pick_device(device, dtype)
        about = {"model": str(name), "parameters": sum(p.numel() for p in model.parameters()),
                 "weights": " + ".join(dict.fromkeys(map(revision, (base, folder)))),
                 "format": {key: value for key, value in vars(fmt).items() if key != "tokenizer"},
                 "device": reason}
        return cls(model.dtype_(compute).to(device).eval(), fmt, device, about)

    def compare(self, prompt, a, b, domains="", drop_long=False):
        """P(a is better), the mean of both orders; of lists, a list. `domains`: whose question a
        model for all is asked. A prompt that cannot fit is a ValueError, or 1/2 with drop_long."""
        one = isinstance(a, str)
        prompt, a, b = ([prompt], [a], [b]) if one else (prompt, a, b)
        items = items_of(prompt, zip(a, b, strict=True), domains)
        out = [float(win_table(item.odds)[0, 1]) for item in self.judge(items, drop_long)]
        return out[0] if one else out

    def rank(self, prompt, responses, domains=""):
        """The responses best first, as `Ranked`; of lists, a list. Of k responses all k (k - 1) / 2
        pairs are compared (context "single": k scored). In what order they come does not matter."""
        one, out = all(isinstance(r, str) for r in responses), []
        prompt, responses = ([prompt], [responses]) if one else (prompt, responses)
        for item in self.judge(items_of(prompt, responses, domains)):
            win = strengths(item.odds)
            score = np.diag(item.odds) if self.single else levels(item.odds)
            ranked = [Ranked(1 + int((win > win[i]).sum()), i, text, float(win[i]), float(score[i]))
                      for i, text in enumerate(item.responses)]
            out.append(sorted(ranked, key=lambda r: (r.rank, r.response)))
        return out[0] if one else out

    def judge(self, items, drop_long=False):
        """The items with their odds. A thread tokenises a window ahead of the encoder. Responses
        that make the same row, or with drop_long a prompt that cannot fit, tie without asking."""
        items = iter(items)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._window, items, drop_long)
            while window := ahead.result():
                ahead = pool.submit(self._window, items, drop_long)
                found = self._ask([row for _, rows in window for row in rows.values()])
                for item, rows in window:
                    odds = np.zeros((len(item.responses),) * 2)
                    for at, row in rows.items():
                        odds[at] = found[tuple(row.tokens)]
                    if self.single:
                        s = np.diag(odds)
                        odds = s[:, None] - s + np.diag(s)
                    yield item._replace(odds=odds)

    def _window(self, items, drop_long):
        """The next items, each with {(i, j): the row that shows i first}. Context "single": i = j,
        and a second response only makes the pair whole; its row is left out."""
        window, asked, pairs = [], [], []
        for item in items:
            r, rows = item.responses, {}
            for i, j in [(i, i) for i in range(len(r))] if self.single else item.meetings():
                other = r[j] if i != j else "" if r[i] else "-"
                pairs.append(data.Pair(item.prompt, r[i], other, "", item.domain, item.where))
                asked.append((rows, [(i, j), (j, i)][:1 if self.single else 2]))
            window.append((item, rows))
            if len(pairs) >= WINDOW:
                break
        both, drops = data.cloze_rows(pairs, self.fmt, drop_long)
        for (rows, slots), two in zip(asked, both, strict=True):
            rows.update(zip(slots, two or [], strict=False))
        cuts = [row.cut > 0 for _, rows in window for row in rows.values()]
        self.seen.update({"rows": len(cuts), "truncated rows": sum(cuts), **drops})
        return window

    def _ask(self, rows):
        """{tokens: log-odds}. Equal rows are asked once, and in an order of their own: no score
        depends on that of the items. By length, as on the CPU equally long neighbours share an
        attention call."""
        rows, found = {tuple(row.tokens): row for row in rows}, {}
        order = sorted(rows, key=lambda tokens: (len(tokens), tokens))
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
        return found


@np.errstate(invalid="ignore")
def report(bench, items, first=None):
    """(what results.json says of bare items; scores (1 + RESAMPLES, lines) of all of them, and of
    bootstrap samples of whole prompts, or groups of a tag). `first`: another model's scores on the
    same data; as the bootstrap is seeded, the same prompts were drawn: "difference" is paired."""
    def scores(table, drawn):  # (lines,) nan where a sample has nothing of a line
        n, total = drawn[unit] @ ~np.isnan(table), drawn[unit] @ np.nan_to_num(table)
        return total / np.maximum(n, 1) @ weights / ((n > 0) @ weights)

    def interval(draws):  # of all items, and 95 % of the samples
        return [draws[0], *np.nanpercentile(draws[1:], [2.5, 97.5], axis=0)]

    found, lines = bench(items)
    longer = [item._replace(odds=np.subtract.outer(n := [*map(len, item.responses)], n))
              for item in items]
    names = [*dict.fromkeys(chain(*found))]
    ours, theirs = (np.array([[of.get(name, np.nan) for name in names] for of in table], float)
                    for table in (found, bench(longer)[0]))
    lines = {title: w or {title: 1} for title, w in lines.items()}
    lines = {title: w for title, w in lines.items() if w.keys() & names}
    weights = np.array([[w.get(name, 0) for w in lines.values()] for name in names])
    keys = [item.tag.partition(":")[2] or item.prompt for item in items]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    unit, u, random = np.array([*map(number.get, keys)]), len(number), np.random.default_rng(0)
    samples = (np.bincount(random.integers(u, size=u), minlength=u) for _ in range(RESAMPLES))
    draws = np.array([scores(ours, drawn) for drawn in chain([np.ones(u)], samples)])
    has = (~np.isnan(ours) @ weights > 0).T  # (lines, items)
    keys = "score", "low", "high", "n", "longer wins", *COUNTS
    columns = dict(zip(keys, [*interval(draws), has.sum(1), scores(theirs, np.ones(u)),
                              *(has @ np.array([*map(counts, items)], float)).T], strict=True))
    if first is not None:
        columns["difference"] = np.transpose(interval(draws - first))
    rows = [{"name": title, **{key: column[i].tolist() for key, column in columns.items()}}
            for i, title in enumerate(lines)]
    return {**{key: rows[0][key] for key in keys[:4]}, "prompts": u, "lines": rows}, draws


def show(reports):
    """A table of all data in rows and all models in columns: score [95 % interval], and accuracy
    where the better one is the shorter. Of several data the first lines; of one report all."""
    files, models = ([*dict.fromkeys(r[key] for r in reports)] for key in ("data", "model"))
    text = ["", f"{'':42}" + "".join(f"{model[-26:]:>28}" for model in models),
            f"{'':42}" + f"{'score [95 %]  if shorter':>28}" * len(models) + "  longer wins      n"]
    for file in files:
        rows = [*zip(*(r["lines"] for r in reports if r["data"] == file), strict=True)]
        for row in rows if len(files) == 1 else rows[:1]:
            line = f"{Path(file).stem[:14] + ': ' + row[0]['name']:42.42}"
            for x in row:
                short = x["better is shorter"]  # "-": it never is
                part = f"{x['right there'] / short:.3f}" if short else "-"
                cell = f"{x['score']:.3f} [{x['low']:.3f} {x['high']:.3f}] {part:>6}"
                line += f"{cell:>28}"
            text.append(f"{line}{row[0]['longer wins']:13.3f}{row[0]['n']:7,}")
            if row is rows[0] and len(row) > 1:
                text.append(f"{'    less that of the first model':70}" + "".join(
                    "{:+.3f} [{:+.3f} {:+.3f}]      ".format(*x["difference"]) for x in row[1:]))
    if len(reports) == 1:
        (r,), top = reports, reports[0]["lines"][0]
        seen = ", ".join(f"{n:,} {what}" for what, n in r["seen"].items())
        text.append(f"{r['prompts']:,} prompts, {seen}")
        if r["format"]["context"] == "pair":
            text.append(", ".join(f"{key} {top[key] / top['comparisons']:.3f}" for key in (
                "both orders agree", "first slot wins", "right in one order", "right")))
        text += [f"  {key:38} {value:>14,.4g}" for key, value in r["cost"].items()]
    return "\n".join(text)


def flops(config, sizes, device):
    """FLOPs, two a multiply-add, of products and attention in tinyrm.py for rows of these sizes:
    the last layer's queries, output and MLP for one position a row, the decoder for two words.
    Local attention: the window on CUDA, else blocks of queries, with what a decoder masks there."""
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
    paper = spent["tokens"] / n * paper_flops(c.hidden_size, c.num_hidden_layers,
                                              c.num_attention_heads, c.intermediate_size)
    return {f"{unit}s a second": n / seconds, "tokens a second": spent["tokens"] / seconds,
            f"tokens a {unit}": spent["tokens"] / n, "seconds": seconds,
            "share of them in the encoder": spent["seconds"] / seconds,
            "peak GiB": tinyrm.peak_bytes(rm.device) / 2**30,
            f"GFLOPs a {unit}, counted": spent["flops"] / n / 1e9,
            f"GFLOPs a {unit}, the paper's formula": paper / 1e9,  # without most of attention
            "parameters": parameters, "times smaller than 70 billion": 70e9 / parameters}


# --- command line ----------------------------------------------------------------------------


def bare(item):
    """A judged item without its texts, so that memory does not grow with them: the key of its
    prompt, and ranges as long as the responses."""
    return item._replace(prompt=f"{data.prompt_key(item.prompt):016x}", where="",
                         responses=tuple(range(len(text)) for text in item.responses))


def score_rows(r, item):
    """A row of scores.jsonl for each comparison: P(a is better) with a shown first, with b shown
    first, their mean. Of the responses, counted from 0, the `good` better ones come first."""
    p, mean = (1 + np.tanh(item.odds / 2)) / 2, win_table(item.odds)
    for a, b in item.meetings():
        yield {"model": r["model"], "data": r["data"], "prompt": item.prompt,
               "subset": item.subset, "tag": item.tag, "good": item.good, "a": a, "b": b,
               "a_first": p[a, b], "b_first": 1 - p[b, a], "mean": mean[a, b]}


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
    names = dict.fromkeys(args.names)
    args.data = [n for n in names if n in BENCHES or n.endswith((".jsonl", ".json"))]
    args.models = [n for n in names if n not in args.data]
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
    opened = {name: open_data(name, args.limit) for name in args.data}  # errors before the work
    reports, judged, first = [], [], {}
    for model in args.models:
        rm = RewardModel.load(model, **{key: getattr(args, key) for key in (
            "device", "dtype", "context", "template", "domain", "max_length")})
        print("\n  ".join(f"{key} {value}" for key, value in rm.about.items()), flush=True)
        if args.ask:
            k = len(args.ask) - 1
            print(f"{k} scores" if rm.single else f"{k * (k - 1) // 2} comparisons, in both orders")
            for r in rm.rank(args.ask[0], args.ask[1:]):
                print(f"{r.rank:3}.  wins {r.win:.3f}  log-odds {r.score:+.3f}  {r.response}")
        for name, (bench, n, items, source) in opened.items():
            print(f"\njudging {n:,} items of {name} ({source})", flush=True)
            rm.spent, rm.seen, began = Counter(), Counter(), time.perf_counter()
            judged.append([bare(item) for item in tqdm(
                rm.judge(items(), name in BENCHES), total=n, disable=None, leave=False)])
            spent = cost(rm, time.perf_counter() - began) if args.cost else {}
            said, draws = report(bench, judged[-1], first.get(name))
            first.setdefault(name, draws)
            reports.append({**rm.about, "data": name, "source": source, **said,
                            "seen": dict(rm.seen), "cost": spent})
            print(show(reports[-1:]))
    if args.ask:
        return
    if len(reports) > 1:
        print(show(reports))
    here = shlex.quote(str(Path(__file__).resolve().parent))
    failed, commit = subprocess.getstatusoutput(
        f"git -C {here} --git-dir=.git describe --always --dirty --abbrev=12")
    result = {"command": shlex.join(["python", "evaluate.py", *(argv or sys.argv[1:])]),
              "versions": {"tinyrm": "not a checkout" if failed else commit,
                           "torch": torch.__version__, "python": sys.version.split()[0]},
              "resamples": RESAMPLES, "reports": reports}
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out) as part:  # each file appears whole, or not at all
        with open(Path(part, "scores.jsonl"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for r, items in zip(reports, judged, strict=True)
                            for item in items for row in score_rows(r, item))
        Path(part, "results.json").write_text(
            json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for file in Path(part).iterdir():
            file.replace(args.out / file.name)
    print(f"\nresults.json and scores.jsonl are in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
