"""The encoders of nano: the tokenizer, pre-training, instructions, and the files of the pairs.

    python nano/make.py --out runs/nano                                   # pairs, tokenizer, nano
    python nano/make.py --instruct runs/nano --out runs/nano-instruct     # nano, instructed
    python nano/make.py --out runs/nano --show       # look at text, tasks and pairs, train nothing

nano reads text about the micro-world (microworld.py) as a plain masked language model. The
instructed encoder is nano after some more text of that sort, mixed with tasks in cloze form whose
answer word alone is masked (32 documents and 64 tasks a step). nano has a causal twin (--causal), a
decoder of the same size. Killed at any moment, the same command goes on where it stopped and ends
in the same weights.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))
import microworld as micro  # noqa: E402  (the modules lie in this folder and in the one above)

import tinyrm  # noqa: E402
from experiments.causal import CausalModernBERT  # noqa: E402

PAIRS_OF = {"train": 1000, "choose": 200, "test": 1000}  # pairs of each domain and part


# ---------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------


def class_of(raw: dict) -> type[tinyrm.ModernBERT]:
    """The encoder, or its causal twin: the model class of a config.json."""
    return CausalModernBERT if raw["model_type"] == "modernbert-decoder" else tinyrm.ModernBERT


def new_model(raw: dict, seed: int) -> tinyrm.ModernBERT:
    model_class = class_of(raw)
    return model_class(model_class.config_class.from_json(raw)).init_weights(seed)


def load_model(folder: Path) -> tinyrm.ModernBERT:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return tinyrm.load(folder, model_class=class_of(raw))


def is_causal(model: tinyrm.ModernBERT) -> bool:
    return isinstance(model, CausalModernBERT)


# ---------------------------------------------------------------------------------------------
# The tokenizer
# ---------------------------------------------------------------------------------------------

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
# words of data.py's templates that the text happens not to hold
TEMPLATE_WORDS = "The better option is The answer is Which response Select the best response."


def texts_of_the_world(world: dict, seed: int) -> list[str]:
    """A sample of everything that nano may meet, large enough to hold every word of it."""
    rng = random.Random(f"{seed} tokenizer")
    texts = [TEMPLATE_WORDS, "A B 0 1 Yes No", *micro.ALL_IDLE]
    for _ in range(5000):
        texts.append("".join(micro.document(rng, world)).replace("[SEP]", ""))
        texts.append("".join(micro.task_row(rng, world).before))
    for domain in micro.DOMAINS:
        for pair in micro.make_pairs(world, domain, "train", 500):
            texts += [micro.as_text(pair["prompt"]), pair["chosen"], pair["rejected"]]
    return texts


def make_tokenizer(world: dict, seed: int = micro.WORLD_SEED) -> Tokenizer:
    """A byte-level BPE, special tokens and spaces as in ModernBERT's: any string has an encoding,
    and each word of the world is one token, both with and without the space before it."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = set(world)
    for text in texts_of_the_world(world, seed):
        words.update(piece.lstrip("ĠĊ") for piece, _ in splitter.pre_tokenize_str(text))
    words = sorted(words - {""})

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    # every word equally often and no limit that bites: merging ends when each word is one token
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        min_frequency=1,
        special_tokens=[AddedToken(s, special=True, lstrip=s == "[MASK]") for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words), "a  "], trainer)
    cls, sep = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path):
    """The three tokenizer files of the Hub layout."""
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    write_json(folder / "special_tokens_map.json", names)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
    }
    write_json(folder / "tokenizer_config.json", settings | names)


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# The model's shape
# ---------------------------------------------------------------------------------------------


def config_of(tokenizer: Tokenizer, causal: bool = False, width: int = 128) -> dict:
    """ModernBERT in small: 4 layers (0 and 3 global, 1 and 2 local as the Hub's every-third), heads
    of 32."""
    cls, sep, pad = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]"))
    architecture, model_type = "ModernBertForMaskedLM", "modernbert"
    if causal:
        architecture, model_type = "ModernBertDecoderForCausalLM", "modernbert-decoder"
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "intermediate_size": width * 3 // 2,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 32,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "initializer_range": 0.06,  # 0.02 is small at this width: see README, what did not work
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "decoder_bias": True,
        "classifier_pooling": "cls",
        "hidden_activation": "gelu",
        "bos_token_id": cls,
        "eos_token_id": sep,
        "cls_token_id": cls,
        "sep_token_id": sep,
        "pad_token_id": pad,
    }


# ---------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------

BLOCK = 8  # batches that are drawn at once, so that rows alike in length share a batch


class Targets(NamedTuple):
    tokens: torch.Tensor  # (T,) rows end to end
    lengths: list[int]  # (B,) tokens of each row
    where: torch.Tensor  # (N,) places in T that are predicted
    what: torch.Tensor  # (N,) the tokens that belong there


class TaskTokens(NamedTuple):
    """The token ids of a task's row around the one that is hidden."""

    before: list[int]
    answer: int
    after: list[int]


class Reader:
    """Turns documents and tasks into batches, the same ones for the same seed and step."""

    def __init__(self, world: dict, tokenizer: Tokenizer, seed: int, rows: int):
        self.world, self.tokenizer, self.seed, self.rows = world, tokenizer, seed, rows
        self.known = {}  # piece -> ids: sentences recur, so encoding is a look-up
        self.blocks = {}  # what is drawn -> (number of the block, its batches)
        self.cls, self.sep, self.mask = (
            tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]")
        )

    def ids(self, piece: str) -> list[int]:
        if piece == "[SEP]":
            return [self.sep]
        if piece not in self.known:
            if len(self.known) > 50_000:  # conversations hardly recur: do not keep them for ever
                self.known.clear()
            self.known[piece] = self.tokenizer.encode(piece, add_special_tokens=False).ids
        return self.known[piece]

    def encode(self, pieces: list[str]) -> list[int]:
        return [token for piece in pieces for token in self.ids(piece)]

    def document(self, rng: random.Random) -> list[int]:
        return [self.cls, *self.encode(micro.document(rng, self.world)), self.sep]

    def task(self, rng: random.Random, plain: bool) -> "TaskTokens":
        row = micro.task_row(rng, self.world, plain)
        before = [self.cls, *self.encode(row.before)]
        (answer,) = self.ids(row.answer)
        return TaskTokens(before, answer, [*self.encode(row.after), self.sep])

    def drawn(self, kind: str, step: int) -> list:
        """The rows of a step: of "text", or the TaskTokens of "tasks" or "plain tasks"."""
        number, at = divmod(step, BLOCK)
        if self.blocks.get(kind, (None, None))[0] != number:
            rng = random.Random(f"{self.seed} {kind} {number}")
            size = self.rows if kind == "text" else 2 * self.rows
            if kind == "text":
                rows = [self.document(rng) for _ in range(BLOCK * size)]
                rows.sort(key=len)
            else:
                plain = kind == "plain tasks"
                rows = [self.task(rng, plain) for _ in range(BLOCK * size)]
                rows.sort(key=lambda row: len(row.before))
            batches = [rows[i : i + size] for i in range(0, len(rows), size)]
            rng.shuffle(batches)
            self.blocks[kind] = number, batches
        return self.blocks[kind][1][at]

    def masked(self, step: int, share: float = 0.3) -> Targets:
        """Text with `share` of its ordinary tokens masked."""
        rows = self.drawn("text", step)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        tokens = torch.tensor([token for row in rows for token in row])  # (T,)
        ordinary = (tokens != self.cls) & (tokens != self.sep)
        hidden = (torch.rand(len(tokens), generator=rng) < share) & ordinary
        where = hidden.nonzero().squeeze(1)
        lengths = [len(row) for row in rows]
        return Targets(tokens.masked_fill(hidden, self.mask), lengths, where, tokens[where])

    def next_tokens(self, step: int) -> Targets:
        """Text for a decoder: each token but a row's first has to come after the one before."""
        rows = self.drawn("text", step)
        tokens = torch.tensor([token for row in rows for token in row])  # (T,)
        where = (tokens != self.cls).nonzero().squeeze(1) - 1
        return Targets(tokens, [len(row) for row in rows], where, tokens[where + 1])

    def answers(self, step: int, causal: bool, plain: bool = False) -> Targets:
        """Tasks of which the answer alone is hidden; a decoder's row ends where it would come."""
        tokens, lengths, where, what = [], [], [], []
        for row in self.drawn("plain tasks" if plain else "tasks", step):
            where.append(len(tokens) + len(row.before) - (1 if causal else 0))
            what.append(row.answer)
            whole = row.before if causal else [*row.before, self.mask, *row.after]
            tokens.extend(whole)
            lengths.append(len(whole))
        return Targets(torch.tensor(tokens), lengths, torch.tensor(where), torch.tensor(what))


def starts_of(lengths: list[int]) -> torch.Tensor:
    """(B+1,) where each row begins, and where the last one ends."""
    return torch.tensor([0, *lengths]).cumsum(0)


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    steps: int
    rows: int  # documents a step, and twice as many tasks
    peak: float  # learning rate
    warm: int  # steps of warm-up
    tail: float  # share of the steps in which the rate goes down
    tasks: bool  # with instructions beside the text
    # A label is learnt to stand for an option in some 500 steps of plain tasks with little weight
    # on the text, and was not in 1,200 of all tasks or where the text had the same weight: Adam
    # divides by the size of the whole gradient, which was the text's.
    plain: int = 0  # so many steps at the beginning have plain tasks alone,
    plain_text_weight: float = 0.1  # and in them the text's loss has this weight; else 1


PRETRAINING = Plan(steps=4400, rows=64, peak=2e-3, warm=200, tail=0.2, tasks=False)
# a step of the instructions has 5,273 tokens on average, 1,667 of them of 32 documents
ROWS_WITHOUT_TASKS = 101
INSTRUCTION = Plan(steps=3600, rows=32, peak=2e-3, warm=100, tail=0.35, tasks=True, plain=800)


def rate(step: int, plan: Plan) -> float:
    """Learning rate: up over the warm-up, flat, down to 2 % over the tail. The flat part does not
    depend on the number of steps, so a longer run may take up a shorter one's state."""
    left = (plan.steps - step) / (plan.tail * plan.steps)
    return plan.peak * min(1.0, (step + 1) / plan.warm, max(left, 0.02))


def add_classifier(model: tinyrm.ModernBERT, seed: int) -> None:
    """Give the model `at_cls`: a second one over the same encoder and `head`, whose verdict is one
    of two classes at [CLS]. The word head stays for the text and for answers in words."""
    at_cls = tinyrm.ModernBERT(model.config, "cls")
    at_cls.model, at_cls.head = model.model, model.head
    at_cls.init_classifier(seed)
    model.at_cls = at_cls


def has_classifier(model: tinyrm.ModernBERT) -> bool:
    return hasattr(model, "at_cls")


class Losses(NamedTuple):
    text: torch.Tensor  # cross-entropy at the hidden tokens of the text
    tasks: torch.Tensor  # and at the answers (0 without tasks)
    right: float  # share of the answers that were right (nan without tasks)
    tokens: int


def losses_at(model, reader: Reader, step: int, tasks: bool, plain: bool = False) -> Losses:
    """Masked-language modelling of the text (of a decoder: plain language modelling), and of the
    tasks the cross-entropy of the answer word, over the whole vocabulary. Each is a mean."""
    causal = is_causal(model)
    text = reader.next_tokens(step) if causal else reader.masked(step)
    if not tasks:
        logits = model.logits(model(text.tokens, starts_of(text.lengths))[text.where])  # (N, V)
        loss = F.cross_entropy(logits, text.what)
        return Losses(loss, torch.zeros(()), float("nan"), len(text.tokens))

    # one forward over both: the rows of the text, then those of the tasks
    task = reader.answers(step, causal, plain)
    tokens = torch.cat([text.tokens, task.tokens])
    hidden = model(tokens, starts_of(text.lengths + task.lengths))  # (T, D)
    text_loss = F.cross_entropy(model.logits(hidden[text.where]), text.what)
    hidden_of_tasks = hidden[len(text.tokens):]
    if has_classifier(model):
        answered = answers_with_classes(model, reader, task, hidden_of_tasks)
    else:
        logits = model.logits(hidden_of_tasks[task.where])  # (rows, V)
        right = (logits.argmax(1) == task.what).float().mean().item()
        answered = Answered(F.cross_entropy(logits, task.what), right)
    return Losses(text_loss, answered.loss, answered.right, len(tokens))


class Answered(NamedTuple):
    loss: torch.Tensor  # mean over the tasks
    right: float  # share of them


def answers_with_classes(model, reader: Reader, task: Targets, hidden: torch.Tensor) -> Answered:
    """Labels are classes that are read at [CLS], other words are read at [MASK] as ever."""
    labels = torch.tensor([reader.ids(f" {label}")[0] for label in "AB"])
    is_label = torch.isin(task.what, labels)
    words = model.logits(hidden[task.where[~is_label]])  # (N, V)
    word_targets = task.what[~is_label]

    starts = starts_of(task.lengths)[:-1]  # (B,) where [CLS] stands
    classes = model.at_cls.logits(hidden[starts[is_label]])  # (M, 2)
    class_targets = (task.what[is_label] == labels[1]).long()  # 0: A, 1: B

    loss = F.cross_entropy(words, word_targets, reduction="sum")
    loss = loss + F.cross_entropy(classes, class_targets, reduction="sum")
    right = (words.argmax(1) == word_targets).sum() + (classes.argmax(1) == class_targets).sum()
    return Answered(loss / len(task.what), right.item() / len(task.what))


class Spent(NamedTuple):
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_state(path: Path, model, optimizer, spent: Spent):
    """All that a later process needs to go on, in one safetensors file that appears at once."""
    tensors = {}
    for name, weight in model.named_parameters():
        tensors[f"weight {name}"] = weight.detach()
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key} {name}"] = optimizer.state[weight][key]
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".tmp")
    save_file(tensors, half, metadata={"spent": json.dumps(spent)})
    os.replace(half, path)


def load_state(path: Path, model, optimizer) -> Spent:
    """Put the state in place, where there is one."""
    if not path.exists():
        return Spent()
    with safe_open(path, "pt") as file:
        spent = Spent(*json.loads(file.metadata()["spent"]))
    tensors = load_file(path)
    for name, weight in model.named_parameters():
        weight.data.copy_(tensors[f"weight {name}"])
        optimizer.state[weight] = {
            "step": torch.tensor(float(spent.step)),
            "exp_avg": tensors[f"exp_avg {name}"],
            "exp_avg_sq": tensors[f"exp_avg_sq {name}"],
        }
    return spent


def make_optimizer(model, peak: float) -> torch.optim.Optimizer:
    vectors = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-6)


def train(model, reader: Reader, plan: Plan, state: Path, stop=None, every=200):
    """All steps of the plan that are left, or those up to `stop`; a state every so many steps."""
    optimizer = make_optimizer(model, plan.peak)
    spent = load_state(state, model, optimizer)
    if spent.step:
        print(f"goes on at step {spent.step} of {plan.steps}", flush=True)
    step, tokens = spent.step, spent.tokens
    stop = min(stop or plan.steps, plan.steps)
    started = time.perf_counter() - spent.seconds
    recent = []  # losses since the last line

    model.train()
    while step < stop:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, plan)
        plain = step < plan.plain
        losses = losses_at(model, reader, step, plan.tasks, plain)
        text_weight = plan.plain_text_weight if plain else 1.0
        optimizer.zero_grad()
        (text_weight * losses.text + losses.tasks).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        step += 1
        tokens += losses.tokens
        recent.append((losses.text.item(), losses.tasks.item(), losses.right))
        if step % every == 0 or step == stop:
            spent = Spent(step, tokens, time.perf_counter() - started)
            save_state(state, model, optimizer, spent)
            report(model, reader, plan, spent, recent)
            recent = []
    return model.eval()


def report(model, reader: Reader, plan: Plan, spent: Spent, recent: list):
    """One line: losses since the last one, recall, and what it cost so far."""
    text, tasks, right = [sum(column) / len(recent) for column in zip(*recent, strict=True)]
    line = f"step {spent.step}/{plan.steps}  loss {text:.3f}"
    if plan.tasks:
        line += f"  tasks: loss {tasks:.3f}, right {right:.3f}"
    for name, share in recall(model, reader).items():
        line += f"  {name} {share:.2f}"
    minutes, speed = spent.seconds / 60, spent.tokens / spent.seconds
    line += f"  {spent.tokens / 1e6:.2f} M tokens  {minutes:.1f} min  {speed:.0f} tokens/s"
    print(line, flush=True)


QUESTIONS_OF_RECALL = [  # attribute, text before and after the hidden word
    ("weight", " A {} weighs", " stone."),
    ("danger", " A {} is", "."),
    ("kind", " A {} is a", "."),
]


def values_of(attribute: str) -> dict:
    """Each value of an attribute, and the words that stand for it."""
    if attribute == "weight":
        return {i + 1: [word] for i, word in enumerate(micro.NUMBERS)}
    if attribute == "danger":
        return {danger: words["is"] for danger, words in micro.DANGER.items()}
    return {kind: [kind] for kind in micro.KINDS}


@torch.inference_mode()
def recall(model, reader: Reader) -> dict[str, float]:
    """Recall of each attribute over all words, read at one mask (by a decoder: next): the share of
    words for which the right value is the likeliest of the attribute's values (chance 0.10, 0.50
    and 0.125)."""
    results = {}
    causal = is_causal(model)
    for attribute, before, after in QUESTIONS_OF_RECALL:
        values = values_of(attribute)
        tokens, lengths, read_at, right = [], [], [], []
        for word, thing in reader.world.items():
            row = [reader.cls, *reader.ids(before.format(word))]
            read_at.append(len(tokens) + len(row) - (1 if causal else 0))
            if not causal:
                row += [reader.mask, *reader.ids(after), reader.sep]
            tokens += row
            lengths.append(len(row))
            right.append(list(values).index(getattr(thing, attribute)))

        hidden = model(torch.tensor(tokens), starts_of(lengths))[torch.tensor(read_at)]
        odds = model.logits(hidden).softmax(-1)  # (words, V)
        scores = []
        for words in values.values():
            ids = [reader.ids(f" {word}")[0] for word in words]
            scores.append(odds[:, ids].sum(-1))
        hits = torch.stack(scores, 1).argmax(1) == torch.tensor(right)
        results[attribute] = hits.float().mean().item()
    return results


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


def show(world: dict):
    rng = random.Random(0)
    for _ in range(12):
        print("TEXT   ", "".join(micro.document(rng, world)).strip())
    for _ in range(8):
        row = micro.task_row(rng, world)
        print("TASK   ", "".join(row.before), "[MASK]", "".join(row.after), "->", row.answer)
    for domain in micro.DOMAINS:
        for pair in micro.make_pairs(world, domain, "train", 6):
            print(f"\n{domain}: {pair['subset']}")
            print(f"PROMPT   {micro.as_text(pair['prompt'])}")
            print(f"CHOSEN   {pair['chosen']}\nREJECTED {pair['rejected']}")


def write_pairs(world: dict, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    for domain in micro.DOMAINS:
        for part, n in PAIRS_OF.items():
            pairs = micro.make_pairs(world, domain, part, n)
            lines = [json.dumps(pair) + "\n" for pair in pairs]
            (folder / f"{domain}.{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_flags(argv: list[str] | None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="folder to write")
    parser.add_argument("--instruct", type=Path, metavar="DIR",
                        help="instruct the model in DIR instead of pre-training a new one")
    parser.add_argument("--no-tasks", action="store_true",
                        help="with --instruct: as many steps and tokens of text alone, a control")
    parser.add_argument("--head", choices=["cloze", "cls"], default="cloze",
                        help="with --instruct: cls reads labels by a layer at [CLS], a control")
    parser.add_argument("--causal", action="store_true", help="pre-train the decoder twin")
    parser.add_argument("--width", type=int, default=128, choices=range(32, 257, 32), metavar="D",
                        help="hidden size, a multiple of 32: for accuracy against size")
    parser.add_argument("--steps", type=int,
                        help=f"{PRETRAINING.steps} to pre-train, {INSTRUCTION.steps} to instruct")
    parser.add_argument("--stop", type=int, help="stop at this step, for another run to go on")
    parser.add_argument("--rows", type=int,
                        help=f"documents a step ({PRETRAINING.rows} or {INSTRUCTION.rows}), and "
                             "twice as many tasks")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=17, help="of weights, order of text and masks")
    parser.add_argument("--threads", type=int, default=1, help="bit-equal only at the same number")
    parser.add_argument("--pairs", action="store_true", help="write the pairs and stop")
    parser.add_argument("--show", action="store_true", help="print text and pairs, write nothing")
    flags = parser.parse_args(argv)
    if flags.head == "cls" and not flags.instruct:
        parser.error("--head cls: goes with --instruct")
    return flags


def main(argv: list[str] | None = None):
    flags = read_flags(argv)
    world = micro.make_world()
    if flags.show:
        show(world)
        return
    torch.set_num_threads(flags.threads)
    flags.out.mkdir(parents=True, exist_ok=True)
    if not flags.instruct:
        write_pairs(world, flags.out / "pairs")
    if flags.pairs:
        return

    if flags.instruct:
        plan = INSTRUCTION
        if flags.no_tasks:
            plan = plan._replace(tasks=False, plain=0, rows=ROWS_WITHOUT_TASKS)
        model = load_model(flags.instruct)
        tokenizer = Tokenizer.from_file(str(flags.instruct / "tokenizer.json"))
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(flags.instruct / name, flags.out / name)
        if flags.head == "cls":
            if is_causal(model):
                sys.exit(f"--head cls: {flags.instruct} is a decoder: its first token sees nothing")
            add_classifier(model, flags.seed)
        # other text than that of pre-training
        text_seed = flags.seed + 1
    else:
        plan = PRETRAINING
        tokenizer = make_tokenizer(world)
        save_tokenizer(tokenizer, flags.out)
        model = new_model(config_of(tokenizer, flags.causal, flags.width), flags.seed)
        text_seed = flags.seed
    plan = plan._replace(steps=flags.steps or plan.steps, rows=flags.rows or plan.rows)
    plan = plan._replace(peak=flags.lr)

    size = sum(p.numel() for p in model.parameters())
    print(f"{len(world)} words, {tokenizer.get_vocab_size()} tokens, {size / 1e6:.2f} M parameters")
    reader = Reader(world, tokenizer, text_seed, plan.rows)
    train(model, reader, plan, flags.out / "state" / "state.safetensors", flags.stop)
    if has_classifier(model):
        tinyrm.save(model.at_cls, flags.out, labels=("A", "B"))
    else:
        tinyrm.save(model, flags.out)
    print(f"wrote {flags.out}")


if __name__ == "__main__":
    main()
