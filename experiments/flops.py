"""What judging costs: measured, counted for the rows that were judged, and by the paper's formula.

    python experiments/flops.py                   a table: what a verdict costs, counted
    python experiments/flops.py MODEL DATA        DATA as for evaluate.py: a benchmark, FILE.jsonl;
                                                  also milliseconds: median and 95th percentile

FLOPs are two for a multiply-add. Shapes: B rows, T tokens of all rows, D hidden, F feed-forward.
"""

import argparse
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import Item  # noqa: E402
from evaluate import RewardModel  # noqa: E402
from infra.benchmarks import load_eval_set  # noqa: E402
from infra.machine import peak_bytes  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import BLOCK, Config  # noqa: E402

# --------------------------------------------------------------------------------------- counting


def flops(config: Config, sizes: list[int], device: torch.device) -> int:
    """FLOPs of the products and of attention in tinyrm.py, for a batch of rows of these sizes.

    The last layer computes queries, output and MLP for one position of each row only (where it is
    local, only the MLP), and the decoder two words of the vocabulary."""
    width, inner = config.hidden_size, config.intermediate_size
    rows, tokens = len(sizes), sum(sizes)
    whole_rows = sum(size * size for size in sizes)  # scores where all attend to all
    in_window = window_scores(config, sizes, device)

    multiply_adds = rows * width * width + rows * 2 * width  # head.dense, and the two words
    for index, layer_type in enumerate(config.layer_types):
        is_global = layer_type == "full_attention"
        is_last = index == config.num_hidden_layers - 1

        # Wqkv: a query, a key and a value, (D, D) each; then attn.Wo, (D, D)
        queries = rows if is_last and is_global else tokens
        multiply_adds += (queries + 2 * tokens) * width * width
        multiply_adds += queries * width * width

        # mlp.Wi, (2 F, D), and mlp.Wo, (D, F)
        outputs = rows if is_last else tokens
        multiply_adds += outputs * 3 * width * inner

        # q k^T and the product with v: each D for every score
        scores = in_window
        if is_global:
            scores = tokens if is_last else whole_rows  # one query sees its row
        multiply_adds += 2 * width * scores
    return 2 * multiply_adds


def window_scores(config: Config, sizes: list[int], device: torch.device) -> int:
    """The scores that a local layer computes, also those that are masked afterwards."""
    window = config.window
    if device.type == "cuda":
        # only those in the window: 2 w + 1 of each token, but for the ends of a row, where
        # 1 + 2 + ... + w fall away on both sides
        scores = 0
        for size in sizes:
            if size <= window:
                scores += size * size
            else:
                scores += size * (2 * window + 1) - window * (window + 1)
        return scores

    # rows that fit into the window attend as in a global layer
    if max(sizes) <= window + 1:
        return sum(size * size for size in sizes)

    # blocks of queries, each with its keys and the window to both sides, or to the left
    sides = 2
    if config.model_type == "modernbert-decoder":  # experiments/causal.py
        sides = 1
    blocks = (sum(sizes) + BLOCK - 1) // BLOCK  # rounded up
    return blocks * BLOCK * (BLOCK + sides * window)


def paper_flops(width: int, layers: int, heads: int, inner: int) -> int:
    """FLOPs of a token by the formula behind the paper's chart, 2 N + 2 L context K with a context
    of 8,192 and N = 2 D L (2 K + F). K, the size of one head, stands in it for the width of all
    heads, so that most of attention is missing."""
    head_size = width // heads
    parameters = 2 * width * layers * (2 * head_size + inner)
    return 2 * parameters + 2 * layers * 8192 * head_size


# ------------------------------------------------------------------------ what a verdict costs

# A prompt of 128 tokens and two responses of 192: 512 in a row together, 320 in a row alone. The
# template's few words are left out.
TOGETHER, ALONE = 512, 320


class Shape(NamedTuple):
    layers: int
    width: int
    inner: int


BASE, LARGE = Shape(22, 768, 1152), Shape(28, 1024, 2624)
SHAPES = {  # of models that are counted without their files
    "base": BASE, "large": LARGE, "large-instruct": LARGE, "random-large": LARGE,
    "ettin-17m": Shape(7, 256, 384), "ettin-32m": Shape(10, 384, 576),
    "ettin-68m": Shape(19, 512, 768), "ettin-150m": BASE, "ettin-400m": LARGE,
    "ettin-1b": Shape(28, 1792, 3840),
}
SCALAR_MODELS = {"scalar model, 8 billion": 8e9, "scalar model, 70 billion": 70e9}


class Verdict(NamedTuple):
    """Which of two responses is better."""

    judge: str
    how: str  # which rows it reads
    tokens: int
    flops: float

    @property
    def flops_of_token(self) -> float:
        return self.flops / self.tokens


def verdicts() -> list[Verdict]:
    """What a verdict costs. Base and large are counted as the products and the windows of the
    variable-length kernel; a scalar model, which reads each response alone, by the formula of two
    FLOPs for each parameter and token, without its attention."""
    rows = {
        "pair, one order": [TOGETHER],
        "pair, two orders": [TOGETHER, TOGETHER],
        "single": [ALONE, ALONE],
    }
    found = []
    for judge in ("base", "large"):
        shape = SHAPES[judge]
        config = Config.from_json({
            "model_type": "modernbert", "vocab_size": 50_368, "num_hidden_layers": shape.layers,
            "hidden_size": shape.width, "intermediate_size": shape.inner,
            "num_attention_heads": shape.width // 64})
        for how, sizes in rows.items():
            counted = flops(config, sizes, torch.device("cuda"))
            found.append(Verdict(judge, how, sum(sizes), counted))
    for judge, parameters in SCALAR_MODELS.items():
        tokens = 2 * ALONE
        found.append(Verdict(judge, "single, by formula", tokens, 2 * parameters * tokens))
    return found


def show_verdicts():
    found = verdicts()
    cheapest = min(one.flops for one in found)
    print(f"a prompt and two responses: {TOGETHER} tokens in one row, {ALONE} in a row for each\n")
    print("| judge | how it reads | tokens | GFLOP a token | GFLOP a verdict | times |")
    print("|---|---|---:|---:|---:|---:|")
    for one in found:
        print(f"| {one.judge} | {one.how} | {one.tokens:,} | {one.flops_of_token / 1e9:.3f} | "
              f"{one.flops / 1e9:,.0f} | {one.flops / cheapest:,.1f} |")
    print("\nby formula: 2 FLOPs for each parameter and token; the others are counted")


# -------------------------------------------------------------------------------------- measuring


class MeteredRewardModel(RewardModel):
    """A judge that counts what its encoder does."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.spent = Counter()  # rows, tokens, seconds, flops

    def score_batch(self, batch):
        began = time.perf_counter()
        log_odds = super().score_batch(batch)
        seconds = time.perf_counter() - began

        sizes = batch.starts.diff().tolist()
        self.spent["rows"] += len(sizes)
        self.spent["tokens"] += sum(sizes)
        self.spent["seconds"] += seconds
        self.spent["flops"] += flops(self.model.config, sizes, self.device)
        return log_odds


def cost(reward_model: MeteredRewardModel, seconds: float) -> dict[str, float]:
    """What judging cost, of which all took `seconds`: {what: number}."""
    config, spent = reward_model.model.config, reward_model.spent
    parameters = sum(p.numel() for p in reward_model.model.parameters())
    unit, units = "pair", spent["rows"] / 2  # a row for each order
    if reward_model.single:
        unit, units = "response", spent["rows"]
    if units == 0:
        raise ValueError("nothing to measure: in every pair both responses are the same")

    of_token = paper_flops(config.hidden_size, config.num_hidden_layers,
                           config.num_attention_heads, config.intermediate_size)
    tokens_each = spent["tokens"] / units
    return {
        f"{unit}s a second": units / seconds,
        "tokens a second": spent["tokens"] / seconds,
        f"tokens a {unit}": tokens_each,
        "seconds": seconds,
        "share of them in the encoder": spent["seconds"] / seconds,
        "peak GiB": peak_bytes(reward_model.device) / 2**30,
        f"GFLOPs a {unit}, counted": spent["flops"] / units / 1e9,
        f"GFLOPs a {unit}, the paper's formula": tokens_each * of_token / 1e9,
        "parameters": parameters,
        "times smaller than 70 billion": 70e9 / parameters,
    }


ALONE_AT_MOST = 200  # items that are timed one by one


class Latency(NamedTuple):
    """Milliseconds of a verdict that nothing else is judged with."""

    median: float
    p95: float
    n: int


def latency(reward_model: RewardModel, items: list[Item]) -> Latency:
    """Each item is judged alone: its rows are made, read and compared."""
    milliseconds = []
    for item in items:
        began = time.perf_counter()
        for _ in reward_model.judge([item]):
            pass
        milliseconds.append(1000 * (time.perf_counter() - began))
    median, p95 = np.percentile(milliseconds, [50, 95])
    return Latency(float(median), float(p95), len(items))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder or a Hub name")
    parser.add_argument("data", nargs="?", metavar="DATA", help="a benchmark, or FILE.jsonl")
    parser.add_argument("--context", choices=["pair", "single"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--limit", type=int, default=0, help="items; 0: all")
    flags = parser.parse_args(argv)
    if flags.model is None:
        show_verdicts()
        return
    if flags.data is None:
        raise ValueError(f"give what {flags.model} shall judge: a benchmark, or FILE.jsonl")

    items = load_eval_set(flags.data, flags.limit).items
    reward_model = MeteredRewardModel.load(flags.model, context=flags.context,
                                           device=flags.device, dtype=flags.dtype)
    print(f"judging {len(items):,} items on {reward_model.about['device']}", flush=True)

    began = time.perf_counter()
    for _ in reward_model.judge(items):
        pass
    for what, number in cost(reward_model, time.perf_counter() - began).items():
        print(f"  {what:38} {number:>14,.4g}")
    found = latency(reward_model, list(islice(items, ALONE_AT_MOST)))
    print(f"  milliseconds of one item alone: median {found.median:.1f}, 95th percentile "
          f"{found.p95:.1f}, of {found.n} items in turn")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
