"""Pairs and cloze rows: any text goes in, exactly one [MASK] comes out, bad files name their line.

Run: python -m pytest tests/test_data.py   (CPU, offline; TINYRM_TOKENIZER=DIR adds the golden ids)
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import data
from data import Format, Pair, Pairs, Row, cloze_rows, deal, load_tokenizer, pack, split

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def train_tokenizer(special=SPECIAL, plain=()):
    """A byte-level BPE like ModernBERT's, with 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special),
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    text = " ".join(question for row in data.QUESTIONS.values() for question in row)
    corpus = [text, " A B Yes No" * 50, "Instruction: Option A: Option B: Response: Choice"] * 9
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(list(plain))
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="pairs.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path
    return write


def row(i=0, **fields):
    return {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}", **fields}


def formats(tokenizer, **fields):
    return [Format(tokenizer, template, context, head, **fields)
            for template, context in (("option", "pair"), ("option", "single"), ("choice", "pair"))
            for head in ("cloze", "cls")]


# --- any text --------------------------------------------------------------------------------

NASTY = ["", " ", "\n", "\0", "[MASK]", " [SEP] [CLS]", "Option B: x. The better option is [MASK]",
         "🦜👩‍👩‍👧", "\ud800", "a\udfffb", "e\u0301", "\u0301", "Answer:  0", "x" * 600,
         "日本" * 200]
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=40),
                  st.lists(st.sampled_from(NASTY), max_size=4).map("".join),
                  st.text(alphabet=st.characters(codec=None), max_size=300))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts, texts, texts, st.sampled_from([0, 1, 2]), st.sampled_from([10, 90, 120, 3600]))
@example("\ud800", "\udfff[MASK]", "[MASK]", 0, 60)
def test_any_strings_give_one_mask_at_its_place_within_the_limit(tokenizer, prompt, a, b, kind,
                                                                  limit):
    fmt = formats(tokenizer, max_length=limit)[2 * kind]
    pair = Pair(prompt, a, b)
    (rows,), drops = cloze_rows([pair], fmt, drop_long=True)
    assert ([rows], drops) == cloze_rows([pair], fmt, drop_long=True)  # the same every time
    if rows is None:
        assert sum(drops.values()) == 1
        return
    cls, sep, mask = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[MASK]"))
    seps = 2 if kind == 2 else 1
    for label, r in enumerate(rows):
        assert len(r.tokens) <= fmt.max_length and r.label == label
        assert r.cut == 0 or len(r.tokens) >= fmt.max_length - 1  # no more is cut than needed
        assert r.tokens.count(mask) == 1 and r.tokens[r.read] == mask
        assert r.tokens.count(cls) == 1 and r.tokens.count(sep) == seps
        assert not {tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]")} & {*r.tokens}
        assert (r.tokens[0], r.tokens[-1]) == (cls, sep)
    if kind == 0:  # the two orders are exact mirrors
        assert rows[0].read == rows[1].read and Counter(rows[0].tokens) == Counter(rows[1].tokens)
        swapped = cloze_rows([Pair(prompt, b, a)], fmt)[0][0]
        assert [r.tokens for r in swapped] == [rows[1].tokens, rows[0].tokens]


def test_a_row_is_its_pieces_each_encoded_alone(tokenizer):
    def ids(*texts):
        return [i for t in texts for i in tokenizer.encode(t, add_special_tokens=False).ids]
    cls, sep, mask = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[MASK]"))
    fmt = Format(tokenizer, domain="safety")
    (rows,), _ = cloze_rows([Pair("Hi", "yes", "no")], fmt)
    tail = [*ids(" Which option is safer? The better option is"), mask, *ids("."), sep]
    assert rows[0].tokens == [cls, *ids("Instruction:", " Hi", " Option A:", " yes", " Option B:",
                                        " no"), *tail]
    assert rows[1].tokens == [cls, *ids("Instruction:", " Hi", " Option A:", " no", " Option B:",
                                        " yes"), *tail]
    assert [tokenizer.id_to_token(i) for i in fmt.words] == ["ĠA", "ĠB"]
    single = Format(tokenizer, context="single", domain="reasoning")
    (rows,), _ = cloze_rows([Pair("Hi", "yes", "no")], single)
    tail = [*ids(" Is the response correct? The answer is"), mask, *ids("."), sep]
    assert [r.tokens for r in rows] == [
        [cls, *ids("Instruction:", " Hi", " Response:", f" {word}"), *tail]
        for word in ("yes", "no")]
    assert [tokenizer.id_to_token(i) for i in single.words] == ["ĠYes", "ĠNo"]
    choice = Format(tokenizer, "choice", domain="reasoning")
    (rows,), _ = cloze_rows([Pair("Hi", "yes", "no")], choice)
    text = "Which response is more correct? Question: Hi Choice 0: yes"
    assert rows[0].tokens == [cls, *ids(text), sep, *ids(" Choice 1: noAnswer:  "), mask, sep]
    assert [tokenizer.id_to_token(i) for i in choice.words] == ["0", "1"]


def test_head_cls_reads_position_0_of_the_same_rows(tokenizer):
    pair = Pair("p", "a", "b")
    for cloze, cls in zip(formats(tokenizer)[::2], formats(tokenizer)[1::2], strict=True):
        (ours,), (theirs,) = cloze_rows([pair], cloze)[0], cloze_rows([pair], cls)[0]
        assert [r._replace(read=0) for r in ours] == theirs


def test_domain_all_asks_the_question_of_the_pair(tokenizer):
    def text(pair, **fields):
        return tokenizer.decode(cloze_rows([pair], Format(tokenizer, **fields))[0][0][0].tokens)
    for domain, question in zip(data.DOMAINS, data.QUESTIONS["option", "pair"], strict=True):
        assert question in text(Pair("p", "a", "b", domain=domain))
    assert "Which option is better?" in text(Pair("p", "a", "b"))
    assert "Which option is safer?" in text(Pair("p", "a", "b", domain="chat"), domain="safety")


# --- truncation ------------------------------------------------------------------------------


def fixed(tokenizer, template="option"):
    """The tokens of a row that belong to the template."""
    (rows,), _ = cloze_rows([Pair("", "x", "y")], Format(tokenizer, template))
    return len(rows[0].tokens) - 2


@pytest.mark.parametrize("template", ["option", "choice"])
def test_the_longer_response_gives_way_first_then_both_then_the_prompt(tokenizer, template):
    ids = [tokenizer.token_to_id(t) for t in ("q", "z", "V")]  # one token each, never merged
    def lengths(p, a, b, room):
        fmt = Format(tokenizer, template, max_length=fixed(tokenizer, template) + room)
        (rows,), _ = cloze_rows([Pair("q" * p, "z" * a, "V" * b)], fmt)
        counts = [tuple(r.tokens.count(i) for i in ids) for r in rows]
        assert counts[0] == counts[1] and all(len(r.tokens) <= fmt.max_length for r in rows)
        assert rows[0].cut == rows[1].cut == max(p + a + b - room, 0)
        return counts[0]
    assert lengths(10, 10, 20, 40) == (10, 10, 20)  # fits to the token
    assert lengths(10, 10, 25, 40) == (10, 10, 20)  # the longer gives way
    assert lengths(10, 25, 10, 40) == (10, 20, 10)
    assert lengths(10, 10, 5000, 40) == (10, 10, 20)
    assert lengths(10, 40, 50, 40) == (10, 15, 15)  # below the shorter, both
    assert lengths(30, 40, 50, 40) == (20, 10, 10)  # a quarter of the room each, then the prompt


def test_the_prompt_loses_its_beginning_and_the_responses_their_end(tokenizer):
    pair = Pair("q" * 20 + "7" * 5, "8" * 12 + "z" * 40, "9" * 12 + "V" * 40)
    fmt = Format(tokenizer, max_length=fixed(tokenizer) + 40)
    (rows,), _ = cloze_rows([pair], fmt)
    text = tokenizer.decode(rows[0].tokens)
    assert "77777" in text and "888888" in text and "999999" in text
    assert text.count("q") < 20 and text.count("z") < 40


def test_pairs_that_are_or_become_identical_are_dropped_and_counted(tokenizer):
    same, later = Pair("p", "x" * 50, "x" * 50), Pair("p", "x" * 500 + "a", "x" * 500 + "b")
    nfc = Pair("p", "\u00e9", "e\u0301")  # one and the same after normalisation
    for fmt in formats(tokenizer, max_length=150):
        rows, drops = cloze_rows([same, Pair("p", "x", "y"), later, nfc], fmt)
        assert [r is None for r in rows] == [True, False, True, True]
        assert drops == {"identical responses": 2, "identical after truncation": 1}


def test_a_prompt_that_cannot_fit_is_an_error_that_names_the_line(tokenizer, write):
    pairs = Pairs(write(row(), row(1, prompt="very long " * 500)))
    for fmt in formats(tokenizer, max_length=200):
        with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: the prompt alone .*max-length"):
            cloze_rows(list(pairs), fmt)
        rows, drops = cloze_rows(list(pairs), fmt, drop_long=True)
        assert rows[0] and rows[1] is None and drops == {"prompt too long": 1}


def test_a_megabyte_of_text_is_read_and_cut_in_seconds(tokenizer, write):
    pairs = Pairs(write(row(prompt="a b " * 1000, chosen="x" * 10**6,
                                 rejected="\ud83d\ude00\ud800 [MASK] " * 9999)))
    assert pairs[0].rejected.startswith("😀\ufffd [MASK]")
    for fmt in formats(tokenizer, max_length=5000)[::4]:
        (rows,), _ = cloze_rows(list(pairs), fmt)
        assert all(len(r.tokens) >= 4999 and r.cut > 10**4 for r in rows)


# --- files -----------------------------------------------------------------------------------


def test_the_formats_of_trl_read_as_the_same_pair(write):
    user, good, bad = ({"role": r, "content": c} for r, c in
                       (("user", "The sky is"), ("assistant", " blue."), ("assistant", " green.")))
    expected = ("The sky is", " blue.", " green.")
    for fields in (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "The sky is", "chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": " blue.", "rejected": " green.", "subset": None, "more": 1},
    ):
        assert Pairs(write(fields))[0][:3] == expected


def test_a_conversation_is_joined_with_roles_and_blank_lines(write):
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    turns = [{"role": r, "content": c} for r, c in turns]
    answers = [[*turns, {"role": "assistant", "content": c}] for c in ("Because.", "No.")]
    expected = "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Why?"
    pair = Pairs(write({"chosen": answers[0], "rejected": answers[1]}))[0]
    assert pair[:3] == (expected, "Because.", "No.")
    same = Pairs(write({"chosen": answers[0], "rejected": answers[0]}))[0]
    assert same[:3] == (expected, "Because.", "Because.")  # the last turn is never the prompt's


def test_pairs_are_read_by_index_across_files_and_domains(write):
    first = write(row(0, domain="chat"), b"", row(1), row(2, domain="safety"), name="1.jsonl")
    second = write(row(3, domain="chat", subset="s"), name="2.jsonl")
    pairs = Pairs([first, second])
    assert [p.prompt for p in pairs] == ["p0", "p1", "p2", "p3"] and pairs[-1].subset == "s"
    assert [p.domain for p in pairs] == ["chat", "", "safety", "chat"]
    assert pairs[1].where == f"{first}, line 3"
    chat = Pairs([first, second], "chat")
    assert [(p.prompt, p.domain) for p in chat] == [(f"p{i}", "chat") for i in (0, 1, 3)]
    assert len(Pairs([first, second], "all")) == 4
    assert pairs.fingerprint == Pairs([first, second]).fingerprint != chat.fingerprint
    second.write_text(json.dumps(row(4)))
    assert pairs.fingerprint != Pairs([first, second]).fingerprint


@pytest.mark.parametrize("line, message", [
    (b'{"prompt": "p", "chosen": ', "not valid JSON"),
    (b'{"prompt": "\xff"}', "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'["p"]', "no object"),
    ({"prompt": "p", "chosen": "c"}, 'no "rejected"'),
    ({"chosen": "c", "rejected": "r"}, '"prompt" is missing'),
    (row(chosen=None), '"chosen" is .*null'),
    (row(prompt=None), '"prompt" is .*null'),
    (row(rejected=3), '"rejected" is 3'),
    (row(chosen=["a", "b"]), "list of messages"),
    (row(chosen=[]), r'"chosen" is \[\]'),
    (row(prompt=[{"role": "user", "content": None}]), '"prompt" is .*list of messages'),
    (row(subset=3), '"subset" is 3'),
    (row(domain="cooking"), 'unknown domain "cooking"'),
])
def test_a_bad_line_17_is_named(write, line, message):
    path = write(*(row(i) for i in range(16)), line, row(17))
    with pytest.raises(ValueError, match=message) as error:
        Pairs(path)
    assert str(error.value).startswith(f"{path}, line 17: ") and "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250


def test_a_forgotten_prompt_is_not_taken_for_the_format_without_prompts(write):
    implicit = {"chosen": "It is so.", "rejected": "It is not."}
    for rows in ((row(), implicit), (implicit, row())):
        with pytest.raises(ValueError, match='line 2: give "prompt" in all lines or in none'):
            Pairs(write(*rows))
    assert Pairs(write(implicit))[0][:3] == ("It is", " so.", " not.")


def test_a_bad_file_is_named(tmp_path, write):
    with pytest.raises(ValueError, match="nowhere.jsonl: No such file.*give a file"):
        Pairs(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="Is a directory"):
        Pairs(tmp_path)
    for lines in ((), (b"", b"  ")):
        with pytest.raises(ValueError, match="pairs.jsonl: no pairs in it"):
            Pairs(write(*lines))
    with pytest.raises(ValueError, match="no pairs in it for domain chat"):
        Pairs(write(row(domain="safety")), "chat")


def test_split_keeps_every_prompt_on_one_side_whatever_the_order_of_rows(write):
    rows = [row(i % 40, chosen=f"c{i}") for i in range(200)]
    rows[7]["prompt"] = " P7\n"  # the same prompt but for case and space
    pairs = Pairs(write(*rows))
    train, held = split(pairs, 0.2, seed=1)
    assert sorted(train + held) == list(range(200)) and len(held) == 40  # 8 prompts of 5 pairs
    def prompts(pairs, indices):
        return {pairs[i].prompt.strip().lower() for i in indices}
    assert not prompts(pairs, train) & prompts(pairs, held)
    assert split(pairs, 40, seed=1) == (train, held) != split(pairs, 40, seed=2)
    random.Random(0).shuffle(rows)
    again = Pairs(write(*rows, name="again.jsonl"))
    assert prompts(again, split(again, 40, seed=1)[1]) == prompts(pairs, held)
    assert split(pairs, 0, seed=1) == (list(range(200)), [])
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        split(pairs, 196, seed=1)


# --- batches ---------------------------------------------------------------------------------


def test_pack_lays_rows_end_to_end():
    batch = pack([Row([5, 6, 7], 1, 0, 0), Row([8], 0, 1, 0), Row([9, 10], 1, 1, 3)])
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.starts.tolist() == [0, 3, 4, 6]
    assert batch.read.tolist() == [1, 3, 5]  # 0+1, 3+0, 4+1
    assert batch.labels.tolist() == [0, 1, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 900), max_size=150), st.integers(1, 3000), st.integers(1, 8))
def test_deal_gives_each_pair_once_within_the_budget_and_evenly(lengths, budget, parts):
    dealt = deal(lengths, budget, parts)
    assert len(dealt) == parts and deal(lengths, budget, parts) == dealt
    assert sorted(i for part in dealt for bin in part for i in bin) == list(range(len(lengths)))
    for part in dealt:
        for bin in part:
            assert bin and (sum(lengths[i] for i in bin) <= budget or len(bin) == 1)
    loads = [sum(lengths[i] for bin in part for i in bin) for part in dealt]
    assert max(loads) - min(loads) <= budget + max(lengths, default=0)


def test_deal_by_hand():
    assert deal([4, 3, 2, 1], 5) == [[[1, 2], [0, 3]]]  # 3+2, 4+1
    assert deal([4, 3, 2, 1], 100, parts=2) == [[[1, 2]], [[0, 3]]]
    assert deal([3, 3, 3], 5) == [[[2], [1], [0]]]  # not in two: 6 + 3
    assert deal([9, 1], 5) == [[[0], [1]]]
    assert deal([7], 5, parts=3) == [[[0]], [], []]


# --- tokenizer and format --------------------------------------------------------------------


def test_a_tokenizer_that_cannot_serve_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="no tokenizer .*No such file.*model folder"):
        load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    train_tokenizer(SPECIAL[:-1]).save(str(path))
    with pytest.raises(ValueError, match=r"no special token \[MASK\].*ModernBERT"):
        load_tokenizer(tmp_path)
    train_tokenizer(SPECIAL[:-1], plain=["[MASK]"]).save(str(path))
    with pytest.raises(ValueError, match=r"no special token \[MASK\]"):
        load_tokenizer(tmp_path)
    padded = train_tokenizer()
    padded.enable_padding(length=50)
    padded.enable_truncation(2)
    padded.save(str(path))
    assert len(load_tokenizer(tmp_path).encode("abcd", add_special_tokens=False).ids) == 4


def test_a_format_that_makes_no_sense_is_refused(tokenizer, tmp_path):
    for fields, message in (({"template": "flan"}, "no template flan"),
                            ({"context": "x"}, "context x: use option for pair"),
                            ({"head": "x"}, "no head x"), ({"domain": ""}, "reasoning, safety"),
                            ({"template": "choice", "context": "single"}, "choice for pair")):
        with pytest.raises(ValueError, match=message):
            Format(tokenizer, **fields)
    bare = Tokenizer(models.BPE())  # bytes only: " A" is two tokens
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.train_from_iterator([], trainers.BpeTrainer(
        special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="splits one of the labels .* A.*must be one token"):
        Format(load_tokenizer(tmp_path))
    Format(load_tokenizer(tmp_path), "choice")  # digits are bytes


def test_the_script_shows_a_pair_and_says_what_is_wrong_in_one_line(tmp_path, write, tokenizer):
    (tmp_path / "nano").mkdir()
    tokenizer.save(str(tmp_path / "nano/tokenizer.json"))
    script = [sys.executable, shutil.copy(data.__file__, tmp_path)]
    run = subprocess.run([*script, "chat", write(row(domain="chat"))],
                         capture_output=True, text=True)
    assert run.returncode == 0 and "label 0 = 'ĠA'" in run.stdout and "[MASK]." in run.stdout
    run = subprocess.run([*script, "chat", tmp_path / "none"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ") and not run.stdout


# --- the real tokenizer ----------------------------------------------------------------------


@pytest.mark.skipif("TINYRM_TOKENIZER" not in os.environ,
                    reason="TINYRM_TOKENIZER=DIR is not set (a folder with ModernBERT's tokenizer)")
def test_golden_ids_of_both_templates_with_the_real_tokenizer():
    tokenizer = load_tokenizer(os.environ["TINYRM_TOKENIZER"])
    pair = Pair("What is 2+2?", "4", "5 [MASK]", domain="reasoning")
    option = Format(tokenizer)
    assert option.words == (329, 378)
    (rows,), _ = cloze_rows([pair], option)
    assert rows[0].tokens == [
        50281, 10548, 2705, 27, 1737, 310, 374, 12, 19, 32, 27357, 329, 27, 577, 27357, 378, 27,
        608, 544, 18690, 62, 6758, 4500, 310, 625, 3451, 32, 380, 1805, 4500, 310, 50284, 15, 50282]
    choice = Format(tokenizer, "choice", domain="reasoning")
    assert choice.words == (17, 18)
    (rows,), _ = cloze_rows([pair], choice)
    assert rows[0].tokens == [
        50281, 7371, 2380, 310, 625, 3451, 32, 19782, 27, 1737, 310, 374, 12, 19, 32, 31303, 470,
        27, 577, 50282, 31303, 337, 27, 608, 544, 18690, 62, 32869, 27, 50276, 50284, 50282]
    # the author's way: the tokenizer's own pair of texts, then the last digit masked
    whole = tokenizer.encode("Which response is more correct? Question: What is 2+2? Choice 0: 4",
                             " Choice 1: 5 [MASK]Answer:  0").ids
    assert whole[-5:-1] == [32869, 27, 50276, 17] and whole[-2] == choice.words[0]
    assert rows[0].tokens == [*whole[:-2], 50284, 50282]
