"""What several test files need: a tiny tokenizer, model folder and pairs, made on the spot."""

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
CORPUS = (
    "Instruction: Option A: Option B: Which option is better? Which option is safer? Which option "
    "is more correct? The better option is A. The answer is B. Yes No Response: one two three four "
    "five six seven eight nine ten Is the response good? Choice 0: 1: Answer: Question: "
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random two-layer model and a byte-level tokenizer, in the Hub layout."""
    import tinyrm

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([CORPUS] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    raw = dict(model_type="modernbert", vocab_size=tokenizer.get_vocab_size(), hidden_size=32,
               intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
               pad_token_id=3, cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2,
               global_rope_theta=160000.0, local_rope_theta=10000.0,
               initializer_range=0.2)
    tinyrm.save(tinyrm.ModernBERT(tinyrm.Config.read(raw)).init_weights(0), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_causal(tiny, tmp_path_factory):
    """The same tokenizer with a random decoder."""
    import tinyrm

    folder = tmp_path_factory.mktemp("tiny-causal")
    raw = json.loads((tiny / "config.json").read_text()) | {"model_type": "modernbert-decoder"}
    tinyrm.save(tinyrm.ModernBERT(tinyrm.Config.read(raw)).init_weights(0), folder)
    (folder / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """48 pairs over 24 prompts: the better response is the larger number word."""
    path = tmp_path_factory.mktemp("pairs") / "numbers.jsonl"
    words = "one two three four five six seven eight nine ten".split()
    rng = random.Random(0)
    with open(path, "w") as file:
        for i in range(48):
            low, high = sorted(rng.sample(range(10), 2))
            row = dict(prompt=f"{words[i // 2 % 10]} or {i // 2}?", chosen=words[high],
                       rejected=words[low], subset="odd" if i % 2 else "even",
                       domain="reasoning")  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return path
