"""What several test files share: one tiny tokenizer, a model folder, a file of pairs, and the flags
of a short run, all made on the spot."""

import json
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import tinyrm

torch.set_num_threads(1)  # two cores serve several tests at once, and results do not depend on them

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
CORPUS = (
    "Instruction: Option A: Option B: Which option is better? Which option is safer? Which option "
    "is more correct? The better option is A. The answer is B. Yes No Response: one two three four "
    "five six seven eight nine ten Is the response good? Choice 0: 1: Answer: Question: "
)
NUMBERS = "one two three four five six seven eight nine ten".split()


def byte_tokenizer(special: list[str]) -> Tokenizer:
    """A byte-level tokenizer like ModernBERT's, with these tokens for [UNK], [CLS], [SEP], [PAD]
    and [MASK]."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([CORPUS] * 20, trainer)
    return tokenizer


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers each time, also those that a library draws by itself (peft
    starts its adapters from torch's generator)."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random three-layer model and its tokenizer, in the Hub's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_tokenizer(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    raw = dict(model_type="modernbert", vocab_size=tokenizer.get_vocab_size(), hidden_size=32,
               intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
               pad_token_id=3, cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2,
               global_rope_theta=160000.0, local_rope_theta=10000.0,
               initializer_range=0.2)
    model = tinyrm.ModernBERT(tinyrm.Config.from_json(raw)).init_weights(0)
    tinyrm.save(model, folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """48 pairs over 24 prompts: the better response is the larger number."""
    path = tmp_path_factory.mktemp("pairs") / "numbers.jsonl"
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(48):
            low, high = sorted(rng.sample(range(10), 2))
            row = {"prompt": f"{NUMBERS[i // 2 % 10]} or {i // 2}?", "chosen": NUMBERS[high],
                   "rejected": NUMBERS[low], "subset": "odd" if i % 2 else "even",
                   "domain": "reasoning"}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def flags(tiny, pairs_file, tmp_path):
    """flags(**changes) -> the command line of a short run of train.py on the tiny model, into
    tmp_path/run. A flag that is None is left out, one that is True has no value, a list has
    several."""

    def command_line(**changes):
        settings = {"domain": "reasoning", "model": tiny, "data": pairs_file, "batch_size": 8,
                    "max_steps": 6, "held_out": 8, "rank": 2, "freeze": 1, "lr": 1e-2,
                    "device": "cpu", "out": tmp_path / "run"}
        settings.update(changes)
        words = []
        for name, value in settings.items():
            if value is None:
                continue
            words.append("--" + name.replace("_", "-"))
            if isinstance(value, list):
                words.extend(str(part) for part in value)
            elif value is not True:
                words.append(str(value))
        return words

    return command_line
