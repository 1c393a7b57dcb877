"""The judge: compare and rank responses, and say how good a reward model is.

    python evaluate.py runs/NAME rewardbench              a benchmark (infra/benchmarks.py has them)
    python evaluate.py runs/NAME my.jsonl                 own pairs, best-of-N rows, 3 x 3 styles
    python evaluate.py runs/A runs/B a.jsonl b.jsonl      several of each, side by side
    python evaluate.py runs/A a.jsonl --against SCORES    next to another judge's scores of it
    python evaluate.py runs/NAME --ask PROMPT RESPONSE RESPONSE
    python evaluate.py runs/NAME --ask PROMPT RESPONSE RESPONSE --json     for a program to read
    python evaluate.py runs/NAME --rank IN.jsonl OUT.jsonl    any number of responses to each prompt
    python evaluate.py runs/NAME --rank - -               the same, line by line, in a pipe

Two protocols, on the log-odds x of the two label words in a row:

    pair    a row shows two responses, as in the paper (section 2). Both orders are asked and
            averaged (ours): with x_ij where i stands first,
            P(i is better than j) = (sigmoid(x_ij) + 1 - sigmoid(x_ji)) / 2
    single  a row shows one response, as RewardBench's own protocol has it (the paper names the
            difference as a limitation). Its x is a score s of it (Bradley-Terry):
            P(i is better than j) = sigmoid(s_i - s_j)

Both give one table x (k, k) for the k responses of an item, and all else is computed from it by the
first formula: with x_ij = s_i - s_j it is the second one, since 1 - sigmoid(-x) = sigmoid(x).
P > 1/2 exactly where x_ij > x_ji: the sign of x - x.T is the verdict of both orders, and equal
responses tie exactly.

The file goes in this order: a judged item; the judge; tournaments; how items become batches of
rows, and rows judged items; stored models; the command line. Benchmarks and their reports are in
infra/.
"""

import argparse
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
import dora
import tinyrm
from data import Batch, Item, Pair, PromptFormat, Row, RowTokenizer
from infra import generalist
from infra.against import OtherJudge, compare_with, read_other_judges, show_comparison
from infra.benchmarks import BENCHMARKS, EvalSet, load_eval_set
from infra.checks import check_model, read_format
from infra.compiled import compiled_functions
from infra.flags import OURS
from infra.generalist import Router
from infra.hub import fetch_model, version_of
from infra.machine import Machine, cpu_tokens, pick_device
from infra.pairs import to_text
from infra.prefetch import one_ahead
from infra.printed import LEGEND, plural, show
from infra.progress import with_progress
from infra.ranked_rows import (
    ROWS_AT_A_TIME,
    STREAM,
    check_rank_files,
    open_out,
    read_rows_to_rank,
    with_ranking,
)
from infra.report import report, without_texts
from infra.results import JudgedSet, check_out, check_writable, results_folder, write_results
from infra.stopping import exit_code_of
from infra.tables import is_table
from tinyrm import Config, ModernBERT, read_json

COMPARISONS_AT_A_TIME = 256  # so many are tokenised together, while the encoder is at those before
ALL_PAIRS = 8  # `rank` compares up to so many responses each with each
GPU_TOKENS = 65_536  # in a batch; on a processor see infra.machine.cpu_tokens

# --------------------------------------------------------------------------------- a judged item


class Judged(NamedTuple):
    """An item with k responses, the better ones first, and what the model says about them."""

    item: Item
    log_odds: np.ndarray  # (k, k), at [i, j]: i, shown first, wins over j; 0 on the diagonal
    scores: np.ndarray | None = None  # (k,) of each response alone; None in context "pair"
    met: np.ndarray | None = None  # (k, k) which were compared; None: each with each

    def win_probabilities(self) -> np.ndarray:
        """P(i is better than j) = (sigmoid(x_ij) + 1 - sigmoid(x_ji)) / 2: (k, k), with 1/2 on the
        diagonal."""
        # Written with sigmoid(x) = (1 + tanh(x / 2)) / 2, which does not overflow and gives exactly
        # 1/2 where x_ij = x_ji.
        tanh = np.tanh(self.log_odds / 2)
        return 0.5 + (tanh - tanh.T) / 4

    def mean_win_probability(self) -> np.ndarray:
        """The mean over a response's opponents and both orders: (k,). As fsum rounds only once, at
        the end, equal responses tie exactly, in whatever order they came. A half for a response
        without opponents."""
        if len(self.log_odds) == 1:
            return np.array([0.5])
        means = []
        for row in self.win_probabilities():
            # 1/2 is what it has against itself
            means.append((math.fsum(row) - 0.5) / (len(row) - 1))
        return np.array(means)

    def standing(self) -> np.ndarray:
        """How many responses each one is better than: (k,). By the mean win probability; where that
        is the same, by the mean log-odds, which differ also where probabilities round to 1."""
        wins, log_odds = self.mean_win_probability(), self.mean_log_odds()  # (k,)
        better = wins[:, None] > wins  # (k, k)
        better |= (wins[:, None] == wins) & (log_odds[:, None] > log_odds)
        return better.sum(axis=1)

    def mean_log_odds(self) -> np.ndarray:
        """The mean log-odds of winning, in both orders and over all responses, itself counted as
        0: (k,), rounded as above. In context "single" they differ from each other as scores do."""
        both_orders = (self.log_odds - self.log_odds.T) / 2  # (k, k)
        return np.array([math.fsum(row) / len(row) for row in both_orders])

    def agreement(self) -> np.ndarray:
        """The share of a response's comparisons in which both orders name the same winner: (k,); 1
        for a response without comparisons, and in context "single"."""
        x = self.log_odds
        counted = (x != 0) | (x.T != 0)  # equal responses are not asked about
        if self.met is not None:
            counted &= self.met
        agrees = counted & (np.sign(x) == -np.sign(x.T))  # (k, k)
        count = counted.sum(axis=1)
        return np.where(count > 0, agrees.sum(axis=1) / np.maximum(count, 1), 1.0)


class Ranked(NamedTuple):
    """A response with its place among others. Its numbers speak of this list only."""

    rank: int  # from 1; equals share a rank
    index: int  # where it stood in the list that was given
    response: str
    win: float  # mean_win_probability
    score: float  # mean_log_odds; in context "single" the score of the response alone
    asked: int  # of the whole list: comparisons, each in both orders; in context "single" scores
    agree: float  # share of its comparisons in which both orders name the same winner


# ------------------------------------------------------------------------------------- the judge


class RewardModel:
    """A model that judges. `load` opens a stored one; the constructor takes a live one."""

    def __init__(
        self,
        model: ModernBERT,
        prompt_format: PromptFormat,
        device: str | torch.device = "cpu",
        about: dict | None = None,
        compiled: bool = False,
    ):
        self.model = model
        self.prompt_format = prompt_format
        self.device = torch.device(device)
        self.about = about  # what `load` knows: name, parameters, weights, format, device
        self.compiled = compiled  # small functions under torch.compile: infra/compiled.py
        self.budget = GPU_TOKENS  # tokens in a batch
        if self.device.type == "cpu":
            self.budget = cpu_tokens(model.config.hidden_size)
        self.single = prompt_format.context == "single"
        self.label_ids = torch.tensor(prompt_format.label_ids, device=self.device)
        self.seen = Counter()  # rows, truncated rows, and pairs that were dropped, by reason

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
        template: str | None = None,
        context: str | None = None,
        domain: str | None = None,
        max_length: int | None = None,
        question: str | None = None,
        micro_tokens: int = 0,
        model_class: type[ModernBERT] = ModernBERT,
        format_class: type[PromptFormat] = PromptFormat,
    ) -> "RewardModel":
        """Open a run folder, a model folder in the Hub's layout, a PEFT adapter, a generalist's
        folder (infra/generalist.py), or a Hub name.

        The format that a model was trained with is in tinyrm.json, next to its weights; what is
        given here overrides it. `micro_tokens` go through the encoder at once (0: as many as serve
        the device). ValueError says what is missing or does not fit."""
        given = {
            "template": template,
            "context": context,
            "domain": domain,
            "max_length": max_length,
            "question": question,
        }
        given = {key: value for key, value in given.items() if value is not None}
        folder, base = stored_folders(name)
        if generalist.is_generalist(folder):
            machine = pick_device(device, dtype, compile)
            judge = open_generalist(name, folder, given, machine, model_class, format_class)
            if micro_tokens:
                judge.set_budget(micro_tokens)
            return judge

        # the weights
        settings = stored_settings(str(name), folder, base)
        model = load_merged(folder, base, settings.get("head"), model_class)

        # how a pair is shown: what is given beats what is stored
        settings.setdefault("head", model.head_kind)
        has_tokenizer = (folder / "tokenizer.json").is_file()  # an adapter's need not have one
        tokenizer = data.load_tokenizer(folder if has_tokenizer else base)
        prompt_format = make_format(name, folder, tokenizer, settings | given, model.config,
                                    format_class)

        # the machine
        machine = pick_device(device, dtype, compile)
        model.set_compute_dtype(machine.dtype).to(machine.device).eval()

        weights = weights_version(folder, base)
        about = about_judge(name, [model], weights, prompt_format, machine)
        judge = cls(model, prompt_format, machine.device, about, machine.compiled)
        if micro_tokens:
            judge.set_budget(micro_tokens)
        return judge

    def set_budget(self, micro_tokens: int):
        """So many tokens go through the encoder at once."""
        self.budget = micro_tokens

    def compare(
        self,
        prompt: str | list,
        a: str | list,
        b: str | list,
        domains: str | list[str] = "",
    ) -> float | list[float]:
        """P(a is better than b), the mean of both orders. A prompt and a response are a string or a
        list of messages. For lists of prompts, of a and of b a list, judged in full batches.

        `domains`: whose question a model for all domains is asked; one for all prompts, or a list.
        """
        # one pair is a list of one
        if is_one_prompt(prompt):
            return self.compare([prompt], [a], [b], domains)[0]

        check_side(a, "a", len(prompt))
        check_side(b, "b", len(prompt))
        items = make_items(prompt, list(zip(a, b, strict=True)), domains)
        return [float(judged.win_probabilities()[0, 1]) for judged in self.judge(items)]

    def rank(
        self,
        prompt: str | list,
        responses: list,
        domains: str | list[str] = "",
    ) -> list[Ranked] | list[list[Ranked]]:
        """The responses, best first. For lists of prompts and of lists of responses a list.

        Up to ALL_PAIRS different responses are compared each with each, k (k - 1) / 2 pairs; more
        of them play a tournament. In context "single" k are scored. The order in which they are
        given does not matter."""
        # one prompt is a list of one
        if is_one_prompt(prompt):
            return self.rank([prompt], [responses], domains)[0]
        return self.rank_items(make_items(prompt, responses, domains))

    def rank_items(self, items: list[Item]) -> list[list[Ranked]]:
        """The responses of each item, best first."""
        ranked = [[] for _ in items]
        few, many = [], []  # indices of items
        for index, item in enumerate(items):
            if self.single or len(set(item.responses)) <= ALL_PAIRS:
                few.append(index)
            else:
                many.append(index)

        # each with each
        for index, judged in zip(few, self.judge(items[i] for i in few), strict=True):
            # equal responses are asked about once, and never against each other
            distinct = items[index]._replace(responses=tuple(set(items[index].responses)))
            asked = len(asked_about(distinct, self.single))
            ranked[index] = ranking(judged, asked)

        # tournaments, whose rounds are played side by side
        tournaments = [Tournament.of(items[i]) for i in many]
        play(tournaments, self.judge)
        for index, tournament in zip(many, tournaments, strict=True):
            asked = int(tournament.played.sum()) // 2
            ranked[index] = ranking(tournament.judged(items[index]), asked)
        return ranked

    def judge(self, items: Iterable[Item]) -> Iterator[Judged]:
        """The items, judged, in their order. Responses that make the same row tie unasked."""

        def make_rows(some_items):
            return make_chunk(some_items, self.prompt_format)

        # while the encoder works on a chunk of items, a thread makes the rows of the next one
        chunks = cut_into_chunks(items, self.single, COMPARISONS_AT_A_TIME)
        for chunk in one_ahead(make_rows, chunks):
            self.seen.update(chunk.seen)
            log_odds = self.score_rows(chunk.all_rows())
            for item_rows in chunk.items:
                yield judged_item(item_rows, log_odds, self.single)

    def score_rows(self, rows: list[Row]) -> dict[tuple, float]:
        """{the tokens of a row: its log-odds}.

        Equal rows are asked once, and all in an order of their own, by length. Items in another
        order stand in other chunks with other neighbours, which moves a score by rounding (how much
        is at the top of tinyrm.py)."""
        distinct = {tuple(row.tokens): row for row in rows}
        shortest_first = sorted(distinct, key=lambda tokens: (len(tokens), tokens))

        # a batch at a time
        log_odds = {}
        for tokens_of_rows in cut_into_batches(shortest_first, self.budget):
            rows_of_batch = [distinct[tokens] for tokens in tokens_of_rows]
            scores = self.score_batch(data.pack(rows_of_batch, self.device))
            log_odds.update(zip(tokens_of_rows, scores, strict=True))
        return log_odds

    @torch.inference_mode()
    def score_batch(self, batch: Batch) -> list[float]:
        """The log-odds of label 0 over label 1 in each row of a batch: B numbers. ValueError if one
        is not finite, or if the GPU has not the memory for the batch."""
        try:
            with compiled_functions(self.compiled):
                h = self.model(batch.tokens, batch.starts, batch.read_at)  # (B, D)
                logits = self.model.logits(h, self.label_ids)  # (B, 2), also of head "cls"
            logits = logits.double().cpu()
        except torch.OutOfMemoryError:
            raise ValueError(f"out of GPU memory in a batch of {len(batch.tokens):,} tokens: give "
                             "--micro-tokens below that, or RewardModel.load(micro_tokens=...)"
                             ) from None
        log_odds = logits[:, 0] - logits[:, 1]  # (B,)
        if not log_odds.isfinite().all():
            name = "the model" if self.about is None else self.about["model"]
            raise ValueError(f"{name} gives no finite number: its weights are damaged, or its "
                             "precision overflows (--dtype fp32 has the widest)")
        return log_odds.tolist()


class Generalist(RewardModel):
    """Specialists on a trunk that they share (infra/generalist.py): an item is judged by that of
    its domain; if it names none, by the one whose training prompts its own is most like."""

    def __init__(self, specialists: dict[str, RewardModel], prompt_format: PromptFormat,
                 router: Router, about: dict):
        first = next(iter(specialists.values()))
        super().__init__(first.model, prompt_format, first.device, about)
        self.specialists = specialists  # by domain
        self.router = router
        for specialist in specialists.values():
            specialist.seen = self.seen  # one count for all

    def set_budget(self, micro_tokens: int):
        super().set_budget(micro_tokens)
        for specialist in self.specialists.values():
            specialist.set_budget(micro_tokens)

    def domains_of(self, items: list[Item]) -> list[str]:
        """Whose each item is."""
        return generalist.domains_of(items, self.router, self.model, self.prompt_format.tokenizer)

    def rank_items(self, items: list[Item]) -> list[list[Ranked]]:
        """The responses of each item, best first. In a tournament an item stays with one
        specialist."""
        domains = self.domains_of(items)
        given = zip(items, domains, strict=True)
        return super().rank_items([item._replace(domain=domain) for item, domain in given])

    def judge(self, items: Iterable[Item]) -> Iterator[Judged]:
        """The items, judged, in their order."""
        for some in cut_into_chunks(items, self.single, COMPARISONS_AT_A_TIME):
            domains = self.domains_of(some)
            strangers = [item for item in some if item.domain not in self.specialists]
            self.seen["items sent by their prompt"] += len(strangers)
            judged = {}  # by the item's place
            for name, specialist in self.specialists.items():
                places = [i for i, domain in enumerate(domains) if domain == name]
                answers = specialist.judge([some[i] for i in places])
                judged.update(zip(places, answers, strict=True))
            for i in range(len(some)):
                yield judged[i]


def make_items(prompts: list, responses: list, domains: str | list[str]) -> list[Item]:
    """Items of lists of prompts, of lists of responses, and of domains (or one for all)."""
    if domains is None:
        domains = ""
    if isinstance(domains, str):
        domains = [domains] * len(prompts)

    # as many of each, and texts everywhere
    fits = len(prompts) == len(responses) == len(domains)
    if not fits or not all(isinstance(side, (list, tuple)) and side for side in responses):
        raise ValueError("give as many responses (strings or lists of messages), or lists of them, "
                         f"none empty, and domains as prompts, of which there are {len(prompts)}")

    items = []
    for prompt, side, domain in zip(prompts, responses, domains, strict=True):
        texts = tuple(to_text(response, "a response") for response in side)
        if domain not in ("", *data.DOMAINS):
            raise ValueError(f"unknown domain {domain!r}: use {', '.join(data.DOMAINS)}, or none")
        items.append(Item(to_text(prompt, "the prompt"), texts, domain=domain))
    return items


def check_side(responses: str | list, name: str, prompts: int):
    """Whether `compare` was given a list of as many responses as there are prompts."""
    if is_one_prompt(responses):
        raise ValueError(f"{name} is one response, but prompts are a list, of {prompts}: give a "
                         "list of responses")
    if len(responses) != prompts:
        raise ValueError(f"{name} has {len(responses)} responses to {prompts} prompts: give as "
                         "many")


def is_one_prompt(prompt: str | list) -> bool:
    """A string or a list of messages; else it is a list of prompts. ValueError for a message that
    stands alone."""
    if isinstance(prompt, dict):
        raise ValueError("the prompt is one message: give a list of messages")
    if isinstance(prompt, (list, tuple)):
        return len(prompt) > 0 and isinstance(prompt[0], dict)
    return True


def ranking(judged: Judged, asked: int) -> list[Ranked]:
    """The responses of a judged item, best first; equals in the order of their texts."""
    wins = judged.mean_win_probability()  # (k,)
    standing = judged.standing()  # (k,)
    agreement = judged.agreement()  # (k,)
    scores = judged.scores  # of context "single"
    if scores is None:
        scores = judged.mean_log_odds()

    # the rank is one more than how many are better
    ranked = []
    for index, response in enumerate(judged.item.responses):
        rank = 1 + int((standing > standing[index]).sum())
        win, score, agree = float(wins[index]), float(scores[index]), float(agreement[index])
        ranked.append(Ranked(rank, index, response, win, score, asked, agree))
    return sorted(ranked, key=lambda one: (one.rank, one.response))


# -------------------------------------------------------------------------- tournaments of many


@dataclass(frozen=True)
class Tournament:
    """A Swiss tournament of the k distinct responses of an item. In each round a response is
    compared with a neighbour by the score so far, one that it has not met. log2(k) rounds of k / 2
    comparisons go mostly to responses that are close, and cost k log2(k) / 2 in place of
    k (k - 1) / 2.

    The score is the best fit to what was played: s with s_i - s_j close to the log-odds of i over
    j, by least squares. Were all played, it would be `Judged.mean_log_odds`. Two that did not meet
    are taken to differ as their scores do."""

    item: Item  # its responses in the order of their texts, so that the order given does not matter
    log_odds: np.ndarray  # (k, k), as in Judged; 0 where not played. `add` fills it in
    played: np.ndarray  # (k, k) 1 or 0, symmetric; likewise

    @classmethod
    def of(cls, item: Item) -> "Tournament":
        texts = tuple(sorted(set(item.responses)))
        shape = (len(texts), len(texts))
        return cls(item._replace(responses=texts), np.zeros(shape), np.zeros(shape))

    def rounds(self) -> int:
        return math.ceil(math.log2(max(2, len(self.played))))

    def scores(self) -> np.ndarray:
        """(k,) with mean 0. The sum of squares of s_i - s_j - x_ij is least where for each i the
        s_i - s_j of those that it met add up to its x_ij: a system of k equations, whose matrix is
        the Laplacian of the graph of games."""
        both_orders = (self.log_odds - self.log_odds.T) / 2  # (k, k)
        met = np.diag(self.played.sum(axis=1))
        return np.linalg.lstsq(met - self.played, both_orders.sum(axis=1))[0]

    def next_games(self) -> list[tuple[int, int]]:
        """From the best so far down, each meets the next one below that it has not met. Who finds
        nobody sits the round out."""
        waiting = np.argsort(-self.scores(), kind="stable").tolist()
        games = []
        while waiting:
            first = waiting.pop(0)
            for second in waiting:
                if not self.played[first, second]:
                    waiting.remove(second)
                    games.append((first, second))
                    break
        return games

    def add(self, game: tuple[int, int], judged: Judged):
        """What the two responses of a game are to each other."""
        i, j = game
        self.log_odds[i, j], self.log_odds[j, i] = judged.log_odds[0, 1], judged.log_odds[1, 0]
        self.played[i, j] = self.played[j, i] = 1

    def judged(self, item: Item) -> Judged:
        """The item with the whole table: equal responses have the same row of it."""
        scores = self.scores()
        table = np.where(self.played, self.log_odds, scores[:, None] - scores[None, :])
        place = {text: index for index, text in enumerate(self.item.responses)}
        places = [place[response] for response in item.responses]
        met = self.played[np.ix_(places, places)] > 0
        return Judged(item, table[np.ix_(places, places)], met=met)


def play(tournaments: list[Tournament], judge: Callable):
    """Play all rounds. The games of a round, of all tournaments, fill whole batches together."""
    most = max((tournament.rounds() for tournament in tournaments), default=0)
    for number in range(most):
        games, items = [], []
        for tournament in tournaments:
            if number >= tournament.rounds():
                continue
            for i, j in tournament.next_games():
                texts = tournament.item.responses
                games.append((tournament, (i, j)))
                items.append(tournament.item._replace(responses=(texts[i], texts[j])))

        for (tournament, game), judged in zip(games, judge(items), strict=True):
            tournament.add(game, judged)


# -------------------------------------------------------- items to rows, rows to judged items


class ItemRows(NamedTuple):
    """An item, and the rows that ask about it."""

    item: Item
    rows: dict[tuple[int, int], Row]  # (i, j): i stands first; (i, i): i stands alone


class Chunk(NamedTuple):
    """Items that are tokenised and judged together, in as many batches as their rows need."""

    items: list[ItemRows]
    seen: Counter  # rows, truncated rows, dropped pairs

    def all_rows(self) -> list[Row]:
        rows = []
        for item_rows in self.items:
            rows.extend(item_rows.rows.values())
        return rows


def cut_into_chunks(items: Iterable[Item], single: bool,
                    comparisons: int) -> Iterator[list[Item]]:
    """The items in lists that have so many comparisons, or just above."""
    some, count = [], 0
    for item in items:
        some.append(item)
        count += len(asked_about(item, single))
        if count >= comparisons:
            yield some
            some, count = [], 0
    if some:  # the last ones
        yield some


def make_chunk(items: list[Item], prompt_format: PromptFormat) -> Chunk:
    """The rows that ask about some items."""
    single = prompt_format.context == "single"

    # all pairs in one call, in which each text is tokenised once
    pairs = []
    for item in items:
        for i, j in asked_about(item, single):
            pairs.append(pair_to_show(item, i, j))
    rows_of_pairs, dropped = prompt_format.rows(pairs)

    # then every item gets its own rows back
    chunk = Chunk([], Counter())
    remaining = iter(rows_of_pairs)
    for item in items:
        rows = {}
        for i, j in asked_about(item, single):
            both_orders = next(remaining)
            if both_orders is None:  # equal rows: a tie
                continue
            rows[i, j] = both_orders[0]
            if not single:
                rows[j, i] = both_orders[1]
        chunk.items.append(ItemRows(item, rows))

    # what the report says about them
    rows_of_chunk = chunk.all_rows()
    chunk.seen["rows"] = len(rows_of_chunk)
    chunk.seen["truncated rows"] = sum(row.cut > 0 for row in rows_of_chunk)
    chunk.seen.update(dropped)
    return chunk


def asked_about(item: Item, single: bool) -> list[tuple[int, int]]:
    """What is asked about an item: (i, j) for two responses, (i, i) for one alone."""
    if single:
        return [(i, i) for i in range(len(item.responses))]
    return item.comparisons()


def pair_to_show(item: Item, i: int, j: int) -> Pair:
    """Responses i and j as a pair."""
    first, second = item.responses[i], item.responses[j]
    # one alone: any other text makes it a pair, whose second row is not used
    if i == j:
        second = "-" if first == "" else ""
    return Pair(item.prompt, first, second, domain=item.domain, where=item.where)


def cut_into_batches(shortest_first: list[tuple], budget: int) -> list[list[tuple]]:
    """The rows in batches of about `budget` tokens: rows that end within the same stretch of
    `budget` tokens, when all are laid end to end. They come sorted by length, since on the CPU
    equally long neighbours share a call of attention."""
    batches = {}  # number of the stretch: its rows
    end = 0
    for tokens in shortest_first:
        end += len(tokens)
        batches.setdefault(end // budget, []).append(tokens)
    return list(batches.values())


def judged_item(item_rows: ItemRows, log_odds: dict[tuple, float], single: bool) -> Judged:
    """The item with the log-odds of its rows. What was not asked is 0: a tie."""
    k = len(item_rows.item.responses)
    table = np.zeros((k, k))  # x_ij, where i stands first
    for (i, j), row in item_rows.rows.items():
        table[i, j] = log_odds[tuple(row.tokens)]
    if not single:
        return Judged(item_rows.item, table)

    # responses alone stand on the diagonal
    scores = table.diagonal().copy()  # (k,)
    return Judged(item_rows.item, scores[:, None] - scores[None, :], scores)


# ---------------------------------------------------------------------------------- stored models


class StoredFolders(NamedTuple):
    """Where a model is stored; both are the same, unless the weights are an adapter's."""

    folder: Path
    base: Path


def stored_folders(name: str | Path) -> StoredFolders:
    """The folders of a model, looked over (infra/checks.py)."""
    folder = weights_folder(fetch_model(name))
    base = base_folder(folder)
    if folder == base:
        check_model(base)
    else:
        check_model(base, folder)
    return StoredFolders(folder, base)


def weights_folder(folder: Path) -> Path:
    """Where the weights are: in a run folder under model, or adapter; else the folder itself."""
    for name in ("model", "adapter"):
        if (folder / name).is_dir():
            return folder / name
    if (folder / "run.json").is_file():
        raise ValueError(f"{folder}: this run is not finished: go on with python train.py --resume "
                         f"{folder}")
    return folder


def base_folder(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to; of a model the folder itself."""
    file = folder / dora.ADAPTER_CONFIG
    if not file.is_file():
        return folder
    config = read_json(file, dora.ADAPTER_FIELDS)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file}: no base_model_name_or_path: name the model it belongs to")
    revision = config.get("revision")
    if os.path.isdir(folder / base):  # relative to the adapter, or from the root
        base = folder / base
    if revision and os.path.isdir(base):
        raise ValueError(f"{file}: revision {revision}, but {base} is a folder, which has none")
    try:
        return fetch_model(base, revision)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load_merged(
    folder: Path, base: Path, head: str | None, model_class: type[ModernBERT]
) -> ModernBERT:
    """The model in `base`; if `folder` is another one, with the adapter there merged into it."""
    model = tinyrm.load(base, head, model_class=model_class)
    if folder == base and model.head_kind != model.config.saved_head:  # drawn at random
        raise ValueError(f"{folder}/tinyrm.json: head cls, but the weights are those of a cloze "
                         "head, without a classifier")
    if folder != base:
        dora.load_adapter(model, folder)
        dora.merge(model)
    return model


def weights_version(folder: Path, base: Path) -> str:
    """What identifies the weights: those of the base, and those of an adapter."""
    if folder == base:
        return version_of(base)
    return f"{version_of(base)} + {version_of(folder)}"


def stored_settings(name: str, folder: Path, base: Path) -> dict:
    """What is known about the format a model was trained with: tinyrm.json next to its weights, or
    next to its base's."""
    settings = {}
    # The paper's author published checkpoints without such a file. Their names say their domain.
    # Their layout is not known for sure: the code of June 2025 (dd45e5e) has that of `choice`; that
    # of March had no "Question:", and the prompt in front of each of the two responses.
    if name.startswith("sarahpann/"):
        print(f"{name}: asked in the layout of the author's code of June 2025; a checkpoint of "
              "March 2025 was trained with another, which is not built here", file=sys.stderr)
        settings["template"] = "choice"
        settings["domain"] = "all"
        for domain in data.DOMAINS:
            if domain in name:
                settings["domain"] = domain
                break

    # where there is such a file, it counts
    for file in (folder / "tinyrm.json", base / "tinyrm.json"):
        if file.is_file():
            return settings | read_format(file)
    return settings


def open_generalist(name: str | Path, folder: Path, given: dict, machine: Machine,
                    model_class: type[ModernBERT],
                    format_class: type[PromptFormat]) -> RewardModel:
    """The specialists of a generalist's folder as one judge; with a domain given, its specialist
    alone."""
    stored = generalist.load(folder, model_class)
    tokenizer, weights = data.load_tokenizer(folder), version_of(folder)
    only = given.pop("domain", "all")
    if only != "all" and only not in stored.models:
        known = ", ".join(stored.models)
        raise ValueError(f"--domain {only}: {name} has specialists for {known}: give one, or all")

    specialists, formats = {}, {}
    for domain, model in stored.models.items():
        model.set_compute_dtype(machine.dtype).to(machine.device)
        settings = stored.settings[domain] | given
        prompt_format = make_format(name, folder, tokenizer, settings, model.config, format_class)
        about = about_judge(name, [model], weights, prompt_format, machine)
        specialists[domain] = RewardModel(model, prompt_format, machine.device, about,
                                          machine.compiled)
        formats[domain] = prompt_format.settings()
    if only != "all":
        return specialists[only]

    # what they have in common
    first = next(iter(specialists.values())).prompt_format
    prompt_format = replace(first, domain="all", question=given.get("question", ""))
    about = about_judge(name, stored.models.values(), weights, prompt_format, machine)
    about["format"]["specialists"] = formats
    return Generalist(specialists, prompt_format, stored.router, about)


def about_judge(name: str | Path, models: Iterable[ModernBERT], weights: str,
                prompt_format: PromptFormat, machine: Machine) -> dict:
    """What is judged with, for the report. Parameters that several models share count once."""
    parameters = torch.nn.ModuleList(models).parameters()
    return {
        "model": str(name),
        "parameters": sum(p.numel() for p in parameters),
        "weights": weights,
        "format": prompt_format.settings(),
        "device": machine.reason,
    }


def make_format(name: str | Path, folder: Path, tokenizer: RowTokenizer, settings: dict,
                config: Config, format_class: type[PromptFormat]) -> PromptFormat:
    """The format of these settings; where they say nothing, that of PromptFormat's defaults, with
    rows as long as the model can read."""
    positions = config.max_position_embeddings
    longest = settings.setdefault("max_length", min(format_class.max_length, positions))
    if longest > positions:
        raise ValueError(f"--max-length {longest}: {name} ends at {positions} tokens")
    try:
        return format_class(tokenizer, **settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


# ------------------------------------------------------------------------------- the command line


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program.removeprefix("python "), description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = ", ".join(BENCHMARKS)
    parser.add_argument(
        "names", nargs="+", metavar="NAME",
        help=f"models (folders or Hub names), and what to judge: {benchmarks}, FILE.jsonl")

    add = parser.add_argument_group("the paper: how a pair is shown").add_argument
    add("--context", choices=["pair", "single"],
        help="both responses in one row, or each alone (default: as the model was trained)")
    add("--template", choices=["option", "choice"],
        help="the paper's text, or the author's layout (default: as the model was trained)")
    add("--domain", choices=data.domain_names(),
        help="whose question is asked (default: the model's; of all, each pair's own)")
    add("--max-length", type=int, metavar="N",
        help="tokens of a row; longer ones are cut and counted (default: as the model was trained)")
    add("--question", metavar="TEXT",
        help="asked in place of the domain's own question (default: as the model was trained)")

    add = parser.add_argument_group("the machine").add_argument
    add("--device", default="auto", help="auto, cpu or cuda (default: auto, cuda where there is)")
    add("--dtype", default="auto",
        help="auto, fp32 or bf16 (default: auto, bf16 on CUDA, else fp32)")
    add("--micro-tokens", type=int, default=0, metavar="N",
        help="tokens at once on the device: lower it where memory runs out (default: 0, as many as "
             "serve the device)")
    add("--compile", action="store_true",
        help="small functions under torch.compile; no GPU has measured it yet")

    add = parser.add_argument_group("the files").add_argument
    add("--against", type=Path, metavar="SCORES",
        help="put another judge's scores of the same rows next to ours: a scores.jsonl, or JSON "
             "lines as infra/against.py has them")
    add("--limit", type=int, default=0, metavar="N",
        help="judge so many items, evenly spread (default: 0, all)")
    add("--out", type=Path, metavar="DIR", help="for results.json and scores.jsonl (default: "
        "eval/DATA in a run folder, else runs/eval-MODEL/DATA)")
    add("--ask", nargs="+", metavar="TEXT",
        help="rank what is typed: PROMPT RESPONSE RESPONSE ... (a text that begins with - goes "
             "through --rank)")
    add("--rank", nargs=2, metavar=("IN", "OUT"),
        help='rank rows {"prompt", "responses"} of JSON; goes on after the last whole line of OUT; '
             "- is standard input or output, answered line by line")
    add("--json", action="store_true", help="with --ask: print a line of JSON as --rank does")
    return parser


def parse(argv: list[str] | None, program: str = OURS.evaluate) -> argparse.Namespace:
    """The flags, checked. The names are sorted into `models` and `data`; what is known of a model
    is printed to `info_stream`."""
    # names may stand before and after flags
    args = make_parser(program).parse_intermixed_args(argv)
    args.models, args.data = [], []
    for name in dict.fromkeys(args.names):  # each name once
        is_data = name in BENCHMARKS or is_table(name)
        if is_data:
            args.data.append(name)
        else:
            args.models.append(name)

    # one of data, --ask, which needs two responses at least, and --rank
    tasks = [task for task in (args.data, args.ask, args.rank) if task]
    enough = not args.ask or len(args.ask) >= 3
    if not args.models or len(tasks) != 1 or not enough:
        raise ValueError("give a model and what it shall judge: a benchmark, FILE.jsonl, --ask "
                         "PROMPT RESPONSE RESPONSE, or --rank IN OUT; see --help")
    if args.limit < 0:
        raise ValueError(f"--limit {args.limit}: give a positive number, or 0 for all")
    if args.micro_tokens < 0:
        raise ValueError(f"--micro-tokens {args.micro_tokens}: give a positive number, or 0")
    if args.max_length is not None and args.max_length < 16:
        raise ValueError(f"--max-length {args.max_length}: give 16 or more")
    if args.question is not None and not args.question.strip():
        raise ValueError("--question is empty: give a text, or leave it out for the model's own")
    if not args.data and (args.limit or args.out):
        raise ValueError("--limit and --out go with a benchmark or a file that is judged, not with "
                         "--ask and --rank")
    if args.json and not args.ask:
        raise ValueError("--json: goes with --ask; what else is judged is JSON in files")

    # JSON has standard output for itself
    args.info_stream = sys.stdout
    if args.json or args.rank:
        args.info_stream = sys.stderr

    if args.against and len(args.data) != 1:
        raise ValueError("--against: give the one file or benchmark that these scores are of")

    # found out now, and not when a model is loaded or all is judged
    pick_device(args.device, args.dtype)
    if args.data:
        check_writable(folder_for_results(args))
    if args.rank:
        if len(args.models) > 1:
            raise ValueError(f"--rank: give one model, not {' '.join(args.models)}")
        check_rank_files(*args.rank)
    return args


def folder_for_results(args: argparse.Namespace) -> Path:
    """--out, or one that is free or has results of this very question. ValueError if --out has
    something else."""
    asked = what_was_asked(args)
    if args.out is None:
        return results_folder(args.models, args.data, asked)
    read = list(args.data)
    if args.against:
        read.append(args.against)
    check_out(args.out, asked, read)
    return args.out


def load_judge(name: str, args: argparse.Namespace, model_class: type[ModernBERT],
               format_class: type[PromptFormat]) -> RewardModel:
    return RewardModel.load(
        name,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        template=args.template,
        context=args.context,
        domain=args.domain,
        max_length=args.max_length,
        question=args.question,
        micro_tokens=args.micro_tokens,
        model_class=model_class,
        format_class=format_class,
    )


def judge_name(reward_model: RewardModel) -> str:
    """What identifies a judge: its weights, and how a pair is shown to it."""
    settings = reward_model.about["format"].values()
    return ", ".join([reward_model.about["weights"], *map(str, settings)])


def answer(reward_model: RewardModel, args: argparse.Namespace):
    """What --ask and --rank give."""
    if args.rank:
        rank_rows(reward_model, *args.rank)
        return
    prompt, responses = args.ask[0], args.ask[1:]
    if args.json:
        print_ranking_as_json(reward_model, prompt, responses)
    else:
        print_ranking(reward_model, prompt, responses)
    tell_of_cuts(reward_model)


def print_ranking(reward_model: RewardModel, prompt: str, responses: list[str]):
    ranked = reward_model.rank(prompt, responses)
    asked = ranked[0].asked
    if reward_model.single:
        print(plural(asked, "score"))
    else:
        print(f"{plural(asked, 'comparison')}, in both orders")
    for one in ranked:
        print(f"{one.rank:3}.  wins {one.win:.3f}  score {one.score:+.3f}  {one.response}")


def print_ranking_as_json(reward_model: RewardModel, prompt: str, responses: list[str]):
    row = {"prompt": prompt, "responses": responses}
    line = with_ranking(row, reward_model.rank(prompt, responses), judge_name(reward_model))
    print(line, end="")


def rank_rows(reward_model: RewardModel, source: str, out: str):
    """What --rank does: a line is in OUT as soon as it is ranked, with the few around it."""
    judge = judge_name(reward_model)
    rows = read_rows_to_rank(source)
    at_a_time = ROWS_AT_A_TIME
    if source == STREAM:
        at_a_time = 1

    with open_out(out, rows, judge) as output, tqdm(disable=None, leave=False) as bar:
        while True:
            some = list(islice(output.rows, at_a_time))
            if not some:
                break
            rankings = reward_model.rank_items([row.item for row in some])
            for row, ranked in zip(some, rankings, strict=True):
                output.file.write(with_ranking(row.row, ranked, judge).encode())
            output.file.flush()
            bar.update(len(some))
    tell_of_cuts(reward_model)


def tell_of_cuts(reward_model: RewardModel):
    """A line on standard error where rows did not fit."""
    cut = reward_model.seen["truncated rows"]
    if cut:
        print(f"{cut:,} of {reward_model.seen['rows']:,} rows were cut to "
              f"{reward_model.prompt_format.max_length} tokens (--max-length)", file=sys.stderr)


def what_was_asked(args: argparse.Namespace) -> dict:
    """All that the results depend on. Local names are whole paths: two files may have one name."""

    def full(name: str | Path | None) -> str | None:
        if name is None:
            return None
        if Path(name).exists():
            return str(Path(name).resolve())
        return str(name)

    asked = {
        "models": [full(name) for name in args.models],
        "data": [full(name) for name in args.data],
        "against": full(args.against),
    }
    for key in ("context", "template", "domain", "max_length", "limit", "device", "dtype"):
        asked[key] = getattr(args, key)
    if args.question is not None:  # results of before there was this flag are of none
        asked["question"] = args.question
    if args.compile:
        asked["compile"] = True
    return asked


def judge_all(reward_model: RewardModel, eval_set: EvalSet) -> list[Judged]:
    """All items, judged, with their progress. Their texts are not kept: only memory for numbers
    grows with a file."""
    reward_model.seen.clear()
    total = len(eval_set.items)
    judged = reward_model.judge(eval_set.items)
    return [without_texts(one) for one in with_progress(judged, total, "judged")]


def check_unchanged(path: Path, version: str):
    """ValueError if a file is no longer the one that was read at first."""
    if not path.is_file() or version_of(path) != version:
        raise ValueError(f"{path}: it was changed while it was judged: judge it again")


def judge_set(
    reward_model: RewardModel,
    name: str,
    eval_set: EvalSet,
    first_draws: np.ndarray | None,
    others: list[OtherJudge],
) -> JudgedSet:
    """A set of items, judged, and the numbers printed, next to those of other judges. `first_draws`
    are the first model's numbers over samples of the prompts (infra/report.py), None for itself:
    from them the report takes how far this model differs from it."""
    count = len(eval_set.items)
    print(f"\njudging {count:,} items of {name} ({eval_set.source})", flush=True)
    judged = judge_all(reward_model, eval_set)
    if name not in BENCHMARKS:
        check_unchanged(Path(name), eval_set.source)
    summary, draws = report(eval_set.measure, judged, first_draws)

    # an entry of results.json
    origin = {"data": name, "source": eval_set.source}
    seen = {"seen": dict(reward_model.seen)}
    entry = reward_model.about | origin | summary | seen
    print(show([entry]))

    judged_set = JudgedSet(entry, judged, eval_set.keys, draws)
    next_to_others = [compare_with(eval_set.measure, judged_set, other) for other in others]
    for both in next_to_others:
        print(show_comparison(both))
    if next_to_others:
        entry["against"] = next_to_others
    return judged_set


def main(
    argv: list[str] | None = None,
    model_class: type[ModernBERT] = ModernBERT,
    format_class: type[PromptFormat] = PromptFormat,
    program: str = OURS.evaluate,
):
    """The command line. experiments/causal.py hands in classes and a name of its own."""
    args = parse(argv, program)
    # before the work begins, every file is read, every model looked over, and all but the first,
    # which comes next, opened once
    eval_sets = {name: load_eval_set(name, args.limit) for name in args.data}
    for model_name in args.models:
        stored_folders(model_name)
    others = []
    if args.against:
        name = args.data[0]
        others = read_other_judges(str(args.against), name, eval_sets[name].keys)
    for model_name in args.models[1:]:
        load_judge(model_name, args, model_class, format_class)

    typed = sys.argv[1:] if argv is None else argv
    command = f"{program} {shlex.join(typed)}"
    judged_sets, first_draws, out = [], {}, None
    for model_name in args.models:
        reward_model = load_judge(model_name, args, model_class, format_class)
        # a line for each thing that is known of it
        about = [f"{key} {value}" for key, value in reward_model.about.items()]
        print("\n  ".join(about), file=args.info_stream, flush=True)
        if not args.data:
            answer(reward_model, args)

        for name, eval_set in eval_sets.items():
            # the first model is the one that all others are compared with
            judged_set = judge_set(reward_model, name, eval_set, first_draws.get(name), others)
            first_draws.setdefault(name, judged_set.draws)
            # what is judged is on the disk, whatever comes
            judged_sets.append(judged_set)
            if out is None:  # only now: another process may have written while this one judged
                out = folder_for_results(args)
            asked = {"command": command, "asked": what_was_asked(args)}
            write_results(out, asked, judged_sets)

    # what was asked is only printed, what was judged is written
    if not args.data:
        return
    if len(args.models) > 1:
        print(show([each.report for each in judged_sets]))  # all side by side
    print(LEGEND)
    print(f"\nresults.json and scores.jsonl are in {out}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
