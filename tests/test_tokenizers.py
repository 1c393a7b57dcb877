"""Tokenizers of the sentencepiece kind, as multilingual and Japanese ModernBERTs have them.

    python -m pytest tests/test_tokenizers.py

Two are made here: a Unigram, whose special tokens are among its pieces, and a BPE that falls back
on bytes, as Gemma 2 has it. Both write a space as ▁ and call their tokens <bos>, <eos>, <mask>.
"""

import json
import shutil

import pytest
from conftest import CORPUS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import evaluate
import tinyrm
from data import CLS, MASK, SEP, Pair, PromptFormat, load_tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXT = [CORPUS * 5, "日本語の文。 two six mask bos eos 0 1 A B Yes No"]


def unigram(scheme) -> Tokenizer:
    """Pieces with scores, the special ones and bytes first, as a conversion from sentencepiece
    writes them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    raw = json.loads(tokenizer.to_str())
    pieces = [[token, 0.0] for token in SPECIAL] + [[byte, 0.0] for byte in BYTES]
    known = {token for token, _ in pieces}
    for token, score in raw["model"]["vocab"]:
        if token not in known:
            pieces.append([token, score])
            known.add(token)
    for word in ("▁A", "▁B", "▁Yes", "▁No", "▁0", "▁1", "0", "1"):
        if word not in known:
            pieces.append([word, -6.0])
    # what would tempt it to find a special token in a text
    pieces += [[sign, -9.0] for sign in "<>maskbo" if sign not in known]

    made = Tokenizer(models.Unigram([tuple(piece) for piece in pieces], 3, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.add_special_tokens(SPECIAL)
    return made


def gemma() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL + BYTES)
    words = [" A", " B", " Yes", " No", " 0", " 1"] * 500
    tokenizer.train_from_iterator(TEXT + words, trainer)
    # the bytes were given as special ones to be in the vocabulary
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(raw))


MADE = {
    "unigram": lambda: unigram("always"),
    "unigram without a first space": lambda: unigram("never"),
    "gemma": gemma,
}


@pytest.fixture(scope="module", params=MADE)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    MADE[request.param]().save(str(folder / "tokenizer.json"))
    # as mmBERT's: no cls and no sep
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def prompt_format(folder):
    return PromptFormat(load_tokenizer(folder))


HOSTILE = ["<mask> <bos><eos>", "<pad>▁<mask>", " <mask>", "<0x41> ▁A",
           "日本語 \u0301é 🙂\n\n  x  "]


def test_bos_and_eos_stand_for_cls_and_sep_where_these_are_not_named(prompt_format):
    ids = prompt_format.tokenizer.special_ids
    assert (ids[CLS], ids[SEP], ids[MASK]) == (2, 1, 4)


def test_cls_and_sep_come_before_bos_and_eos(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = {"bos_token": "<unk>", "eos_token": "<unk>", "mask_token": "<mask>",
              "cls_token": "<bos>", "sep_token": {"content": "<eos>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(config))
    ids = load_tokenizer(tmp_path).special_ids
    assert (ids[CLS], ids[SEP], ids[MASK]) == (2, 1, 4)


@pytest.mark.parametrize("text", HOSTILE)
def test_special_tokens_in_a_text_stay_text(prompt_format, text):
    (rows,), _ = prompt_format.rows([Pair(text, text + "a", text)])
    for row in rows:
        for index in (0, 1, 2, 3, 4):
            expected = {2: 1, 1: 1, 4: 1}.get(index, 0)  # <bos>, <eos>, <mask> of the template
            assert row.tokens.count(index) == expected
        assert row.tokens[row.read_at] == 4


def test_both_orders_have_the_same_tokens_and_spans_hold_their_texts(prompt_format):
    (rows,), _ = prompt_format.rows([Pair("one two?", "three four", "日本 <mask>")])
    first, second = rows
    assert sorted(first.tokens) == sorted(second.tokens)

    def span(row, name):
        start, stop = row.spans[name]
        return row.tokens[start:stop]

    assert span(first, "a") == span(second, "b") and span(first, "b") == span(second, "a")
    text = prompt_format.tokenizer.decode(span(first, "a")).strip()
    assert text == "three four"


def test_texts_without_special_tokens_are_tokenised_as_by_the_file(folder, prompt_format):
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("one two", " Is it 日本語?", "  A  ", "é🙂"):
        ours = prompt_format.tokenizer.library.encode(text, add_special_tokens=False).ids
        assert ours == file.encode(text, add_special_tokens=False).ids


def test_a_label_that_is_split_is_named(folder, tmp_path):
    raw = json.loads((folder / "tokenizer.json").read_text())
    model = raw["model"]
    if model["type"] == "Unigram":
        for piece in model["vocab"]:
            if piece[0] == "▁B":
                piece[0] = "▁Bxyz"
    else:
        model["merges"] = [pair for pair in model["merges"] if pair != ["▁", "B"]]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="splits the label ' B' into"):
        PromptFormat(load_tokenizer(tmp_path))


def test_a_model_with_it_judges(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw = dict(model_type="modernbert", vocab_size=library.get_vocab_size(), hidden_size=32,
               intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
               initializer_range=0.2)
    model = tinyrm.ModernBERT(tinyrm.Config.from_json(raw)).init_weights(0)
    tinyrm.save(model, tmp_path)
    judge = evaluate.RewardModel.load(tmp_path, device="cpu")
    assert 0 < judge.compare("one <mask>", "日本", "two") < 1
    assert judge.compare("one", "<mask>", "<mask>") == 0.5
