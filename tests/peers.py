"""Seconds and errors of tinyrm and of what else would be taken on a processor, in turn in one
process, on the same rows and weights (random ones).

    python tests/peers.py                               inference in float32, all row sets
    python tests/peers.py infer bf16 --rows eight       a part of it
    python tests/peers.py train fp32 --rows eight       training steps, against transformers + peft
    python tests/peers.py --sides ours onnxruntime      only these
    python tests/peers.py --sides ours buckets --repeats 1 --no-errors      in little time

Rows: `eight` pair rows of 64 to 505 tokens; `many`, 64 of 60 to 700; `long`, 24 of 700 to 1,500.

Sides of inference. `functions` are we with small functions compiled, as --compile has them.
transformers runs `padded` (eight rows a batch, as they come), in `buckets` (rows of like length, up
to 2,048 tokens with the padding) and `one` row at a time; `compiled` is one row at a time under
torch.compile with frozen weights; `onnxruntime` (which has no bf16) and `openvino` (pip install
'.[bench]') run one row at a time. All but `padded` compute logits for the two words at the one
place that is read, as we do. Sides of training: `functions`; `padded`, as people run it; `buckets`,
with the loss at one place a row; `compiled`, the same under torch.compile. torch's products are
computed by all sides in the same way: as torch is set, or through oneDNN (`--products`; auto: what
infra/machine.py finds).

The error is against float64, with the same weights: of the log-odds the root mean square difference
as a share of their spread, of the adapters' gradients in the first step the relative difference in
their norm. The share is that of the best rate of a product that torch has here, packed or not.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import benchmark  # noqa: E402
from benchmark import LENGTHS, SHAPES, WORDS, config_of, least_flops, random_rows  # noqa: E402

import tinyrm  # noqa: E402
from infra import machine  # noqa: E402
from infra.compiled import compiled_functions  # noqa: E402
from infra.machine import DTYPES  # noqa: E402

BUDGET = 2048  # tokens of a batch, ours and a bucket
EIGHT = 8  # rows of a padded batch
INFER = ("ours", "functions", "padded", "buckets", "one", "compiled", "onnxruntime", "openvino")
TRAIN = ("ours", "functions", "padded", "buckets", "compiled")


class Side(NamedTuple):
    step: Callable  # a pass over all rows: in inference their log-odds
    adapters: dict[str, torch.nn.Parameter] | None = None  # in training, by the same names in all


def lengths_of(name: str) -> list[int]:
    draw = random.Random(0)
    if name == "many":
        return [draw.randint(60, 700) for _ in range(64)]
    if name == "long":
        return [draw.randint(700, 1500) for _ in range(24)]
    return LENGTHS


def batches_of(lengths: list[int], padded: bool) -> list[list[int]]:
    """The rows by length, in batches of at most BUDGET tokens (with the padding to the longest, if
    it is counted)."""
    batches, members = [], []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        tokens = sum(lengths[j] for j in members) + lengths[i]
        if padded:
            tokens = lengths[i] * (len(members) + 1)  # this one is the longest so far
        if members and tokens > BUDGET:
            batches.append(members)
            members = []
        members.append(i)
    return [*batches, members]


# ------------------------------------------------------------------------------------------- ours


def our_batches(rows) -> list[tuple]:
    """(members, (tokens, starts, read_at)) of each batch."""
    batches = []
    for members in batches_of([len(row) for row in rows.tokens], padded=False):
        tokens = torch.cat([rows.tokens[i] for i in members])
        starts = torch.tensor([0, *(len(rows.tokens[i]) for i in members)]).cumsum(0)
        inputs = (tokens, starts, starts[:-1] + rows.mask_at[members])
        batches.append((members, inputs))
    return batches


def our_inference(folder: str, rows, dtype: torch.dtype) -> Side:
    model = tinyrm.load(folder).requires_grad_(False).set_compute_dtype(dtype)
    if dtype == torch.float64:
        model.double()
    words, batches = torch.tensor(WORDS), our_batches(rows)

    @torch.inference_mode()
    def infer():
        out = torch.empty(len(rows.tokens), 2, dtype=torch.float64)
        for members, inputs in batches:
            out[members] = model.logits(model(*inputs), words).double()
        return out[:, 0] - out[:, 1]

    return Side(infer)


def our_training(args, rows, dtype: torch.dtype) -> Side:
    model = benchmark.adapted_model(args).set_compute_dtype(dtype)
    if dtype == torch.float64:
        model.double()

    def loss_of(members, inputs):
        logits = model.logits(model(*inputs))  # (B, V)
        return F.cross_entropy(logits, rows.labels[members], reduction="sum")

    step = step_over(our_batches(rows), rows, benchmark.make_optimizer(model), loss_of)
    return Side(step, benchmark.low_rank_parameters(model))


def with_functions_compiled(side: Side) -> Side:
    def step():
        with compiled_functions(True):
            return side.step()

    return side._replace(step=step)


def step_over(batches: list[tuple], rows, optimizer, loss_of: Callable) -> Callable:
    """A training step over batches of (members, inputs); loss_of(members, inputs) is the sum over
    the rows."""

    def learn():
        optimizer.zero_grad()
        for members, inputs in batches:
            (loss_of(members, inputs) / len(rows.tokens)).backward()
        optimizer.step()

    return learn


# ------------------------------------------------------------------------------------ transformers


class AtMask(torch.nn.Module):
    """transformers' model, read at one place of each row: logits of all words, or of `words`."""

    def __init__(self, model, words=None):
        super().__init__()
        self.model = model
        self.words = words

    def forward(self, ids, mask, at):
        """ids and mask (B, longest), at (B,)"""
        h = self.model.model(input_ids=ids, attention_mask=mask)[0]  # (B, longest, D)
        h = self.model.head(h[torch.arange(len(at)), at])  # (B, D)
        if self.words is None:
            return self.model.decoder(h)
        weight, bias = self.model.decoder.weight, self.model.decoder.bias
        return F.linear(h, weight[self.words], bias[self.words])


def padded_batch(rows, members: list[int], padding: int):
    """ids, mask, at: the rows padded to the longest of them."""
    longest = max(len(rows.tokens[i]) for i in members)
    ids = torch.full((len(members), longest), padding)
    mask = torch.zeros(len(members), longest, dtype=torch.long)
    for place, i in enumerate(members):
        ids[place, :len(rows.tokens[i])] = rows.tokens[i]
        mask[place, :len(rows.tokens[i])] = 1
    return ids, mask, rows.mask_at[members]


def eights(rows) -> list[list[int]]:
    """Eight rows a batch, in the order in which they come."""
    numbers = list(range(len(rows.tokens)))
    return [numbers[i:i + EIGHT] for i in range(0, len(numbers), EIGHT)]


def over_batches(rows, groups: list[list[int]], padding: int, call: Callable) -> Side:
    """A pass of call(ids, mask, at) -> (B, 2) over the groups of rows."""
    batches = [(members, padded_batch(rows, members, padding)) for members in groups]

    @torch.no_grad()
    def infer():
        out = torch.empty(len(rows.tokens), 2, dtype=torch.float64)
        for members, batch in batches:
            out[members] = torch.as_tensor(call(*batch)).double()
        return out[:, 0] - out[:, 1]

    return Side(infer)


def peer_inference(side: str, args, rows) -> Side:
    from transformers import ModernBertForMaskedLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = ModernBertForMaskedLM.from_pretrained(args.base, attn_implementation="sdpa").eval()
    padding = SHAPES[args.size].vocabulary - 85
    if side == "padded":  # logits at every place
        model.to(args.type)

        def all_logits(ids, mask, at):
            return model(input_ids=ids, attention_mask=mask).logits[torch.arange(len(at)), at][
                :, WORDS]

        return over_batches(rows, eights(rows), padding, all_logits)

    at_mask = AtMask(model, torch.tensor(WORDS)).eval()
    one_each = [[i] for i in range(len(rows.tokens))]
    if side == "onnxruntime":
        if args.type == torch.bfloat16:
            raise ValueError("it has no bf16 on a processor")
        return over_batches(rows, one_each, padding, onnx_call(at_mask))
    if side == "openvino":
        return over_batches(rows, one_each, padding, openvino_call(at_mask, args.type))
    at_mask.to(args.type)
    if side == "compiled":
        from torch._inductor import config

        config.freezing = True  # read when it compiles, which is at the first call
        return over_batches(rows, one_each, padding, torch.compile(at_mask, dynamic=True))
    groups = one_each
    if side == "buckets":
        groups = batches_of([len(row) for row in rows.tokens], padded=True)
    return over_batches(rows, groups, padding, at_mask)


EXAMPLE = (torch.zeros(1, 200, dtype=torch.long), torch.ones(1, 200, dtype=torch.long),
           torch.tensor([7]))


def onnx_call(model: AtMask) -> Callable:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "model.onnx"))
        length = torch.export.Dim("length", min=16, max=8192)
        torch.onnx.export(model, EXAMPLE, file, dynamo=True, input_names=["ids", "mask", "at"],
                          dynamic_shapes=({1: length}, {1: length}, None), verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options)
    names = [each.name for each in session.get_inputs()]

    def call(ids, mask, at):
        given = {"ids": ids.numpy(), "mask": mask.numpy(), "at": at.numpy()}
        return session.run(None, {name: given[name] for name in names})[0]

    return call


def openvino_call(model: AtMask, dtype: torch.dtype) -> Callable:
    import openvino

    converted = openvino.convert_model(model, example_input=EXAMPLE)
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    compiled = openvino.compile_model(converted, "CPU", {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    })
    return lambda *batch: compiled([each.numpy() for each in batch])[0]


def peer_training(side: str, args, rows) -> Side:
    model, adapters = benchmark.adapted_peer(args)
    at_mask = AtMask(model.base_model.model)
    if side == "compiled":
        at_mask = torch.compile(at_mask, dynamic=True)
    groups = eights(rows)
    if side != "padded":
        groups = batches_of([len(row) for row in rows.tokens], padded=True)
    padding = SHAPES[args.size].vocabulary - 85
    batches = [(members, padded_batch(rows, members, padding)) for members in groups]

    def loss_of(members, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=args.type == torch.bfloat16):
            if side == "padded":  # logits and targets at every place
                return loss_at_all_places(model, rows.labels[members], *batch)
            logits = at_mask(*batch)  # (B, V)
        return F.cross_entropy(logits.float(), rows.labels[members], reduction="sum")

    step = step_over(batches, rows, benchmark.make_optimizer(model), loss_of)
    return Side(step, adapters)


def loss_at_all_places(model, labels, ids, mask, at):
    """transformers' own loss, as a sum over the rows."""
    target = torch.full_like(ids, -100)  # no loss there
    target[torch.arange(len(at)), at] = labels
    return model(input_ids=ids, attention_mask=mask, labels=target).loss * len(at)


# ---------------------------------------------------------------------------------------- the table


def best_rate(args) -> float:
    """FLOPs a second of a large product, by the best way that torch has here."""
    n = 256 if args.size == "tiny" else 2048
    x = torch.randn(n, n)
    layer = tinyrm.Linear(n, n).requires_grad_(False)
    layer.compute_dtype = args.type
    seconds = []
    with torch.inference_mode():
        for way in ("default", "onednn"):
            with machine.float32_matmul(way):
                for call in (layer, lambda x: layer.outputs(x, slice(None))):
                    seconds += [took(lambda call=call: call(x))[0] for _ in range(4)]
    return 2 * n**3 / min(seconds)


def took(call: Callable) -> tuple:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def our_side(args, rows, dtype: torch.dtype) -> Side:
    if args.what == "train":
        return our_training(args, rows, dtype)
    return our_inference(args.base, rows, dtype)


def make_side(side: str, args, rows) -> Side:
    if side == "functions":
        return with_functions_compiled(our_side(args, rows, args.type))
    if side == "ours":
        return our_side(args, rows, args.type)
    if args.what == "train":
        return peer_training(side, args, rows)
    return peer_inference(side, args, rows)


def first_answer(side: Side) -> torch.Tensor:
    """What is compared with float64, of the first pass, which warms up and compiles: log-odds; in
    training all gradients of the adapters."""
    answer = side.step()
    if side.adapters is None:
        return answer
    return torch.cat([p.grad.double().ravel() for _, p in sorted(side.adapters.items())])


def make_sides(args, rows) -> tuple[dict[str, Side], dict[str, torch.Tensor]]:
    """{name: side} and {name: its first answer}. What is not installed or does not run here is left
    out, with one line that says why."""
    sides, answers = {}, {}
    for name in args.sides:
        try:
            side = make_side(name, args, rows)
            answers[name] = first_answer(side)
        except Exception as error:  # of a peer, of whatever kind
            if name == "ours":
                raise
            print(f"{name} is left out: {type(error).__name__}: {str(error).strip()[:150]}",
                  flush=True)
            continue
        sides[name] = side
    return sides, answers


def error_of(answer: torch.Tensor, exact: torch.Tensor, what: str) -> float:
    if what == "train":
        return ((answer - exact).norm() / exact.norm()).item()
    return ((answer - exact).square().mean().sqrt() / exact.std()).item()


def show(args, row_set: str):
    """The table of one row set."""
    args.rows = lengths_of(row_set)
    rows = random_rows(args.rows)
    flops = getattr(least_flops(args), args.what)
    sides, answers = make_sides(args, rows)

    best = {name: float("inf") for name in sides}
    for _ in range(args.repeats):  # in turn, since a machine's clock moves
        for name, side in sides.items():
            best[name] = min(best[name], took(side.step)[0])
    exact, rate = None, best_rate(args)
    if not args.no_errors:
        exact = first_answer(our_side(args, rows, torch.float64))

    tokens = sum(args.rows)
    print(f"\n{args.what}, {args.dtype}, {row_set}: {len(args.rows)} rows, {tokens:,} tokens; "
          f"products at best {rate / 1e9:,.0f} GF/s\n")
    print("| side | seconds | to ours | share of products | error |\n|---|---|---|---|---|")
    for name, seconds in best.items():
        error = ""
        if exact is not None:
            error = f"{error_of(answers[name], exact, args.what):.1e}"
        print(f"| {name} | {seconds:.2f} | {seconds / best['ours']:.2f}x | "
              f"{flops / seconds / rate:.0%} | {error} |", flush=True)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="?", default="infer", choices=["infer", "train"])
    add("dtype", nargs="?", default="fp32", choices=list(DTYPES))
    add("--rows", nargs="+", default=["eight", "many", "long"], choices=["eight", "many", "long"])
    add("--sides", nargs="+", choices=INFER, help="ours and these (default: all)")
    add("--no-errors", action="store_true", help="without a pass in float64, which takes longest")
    add("--size", default="base", choices=SHAPES)
    add("--products", default="auto", choices=["auto", "default", "onednn"])
    add("--repeats", type=int, default=3, help="the best of so many passes counts")
    args = parser.parse_args(argv)
    args.type, args.device, args.side, args.adapter = DTYPES[args.dtype], "cpu", "ours", "dora"
    known = INFER if args.what == "infer" else TRAIN
    args.sides = ["ours"] + [side for side in args.sides or known if side in known[1:]]

    chosen = machine.with_matmul_backend(machine.pick_device("cpu", args.dtype),
                                         SHAPES[args.size].width)
    way = chosen.matmul_backend if args.products == "auto" else args.products
    print(f"{benchmark.machine_name(args)}; torch {torch.__version__}; {args.size}; "
          f"{chosen.reason}; used here: {way}", flush=True)
    with tempfile.TemporaryDirectory() as args.base, machine.float32_matmul(way):
        model = tinyrm.ModernBERT(tinyrm.Config.from_json(config_of(args.size))).init_weights(0)
        tinyrm.save(model, args.base)
        for name in args.rows:
            show(args, name)


if __name__ == "__main__":
    main()
