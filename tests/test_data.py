"""From a pair to packed rows: whatever the texts are, exactly one [MASK] stands at its place, the
row is within its limit, and spans say where each text stands. Files of pairs: test_pairs.py.

    python -m pytest tests/test_data.py
    TINYRM_TOKENIZER=DIR python -m pytest tests/test_data.py     also with ModernBERT's tokenizer

`data.RESPONSE_A` and the like are slots of a template; the texts of the tests are in small letters.
"""

import json
import os
import runpy
from collections import Counter
from unittest import mock

import pytest
from conftest import SPECIAL, byte_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import data
from data import (
    CLS,
    MASK,
    SEP,
    Domain,
    Item,
    Pair,
    PromptFormat,
    Row,
    Template,
    balanced_shares,
    load_tokenizer,
    make_micro_batches,
    pack,
)


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return load_tokenizer(tiny)


def format_of(tokenizer, kind, **fields):
    template, context = kind
    return PromptFormat(tokenizer, template, context, **fields)


def rows_of(prompt_format, prompt="Hi", chosen="yes", rejected="no", domain=""):
    """The two rows of a pair."""
    rows_of_pairs, _ = prompt_format.rows([Pair(prompt, chosen, rejected, domain=domain)])
    return rows_of_pairs[0]


def ids_of(tokenizer, *texts):
    """Each text tokenised by itself, end to end."""
    ids = []
    for text in texts:
        ids += tokenizer.library.encode(text, add_special_tokens=False).ids
    return ids


def special_ids(tokenizer):
    return [tokenizer.special_ids[slot] for slot in (CLS, SEP, MASK)]


def words_of(prompt_format):
    return [prompt_format.tokenizer.library.id_to_token(i) for i in prompt_format.label_ids]


# (template, context) of each template, with the number of [SEP] in a row
KINDS = {("option", "pair"): 1, ("option", "single"): 1, ("choice", "pair"): 2}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids="-".join)
EVERY_HEAD = pytest.mark.parametrize("head", ["cloze", "cls"])


# --- pairs and items -------------------------------------------------------------------------


def test_all_responses_of_an_item_are_compared_with_each_other():
    assert Item("p", ("a", "b", "c")).comparisons() == [(0, 1), (0, 2), (1, 2)]


def test_good_against_bad_compares_just_these():
    item = Item("p", ("a", "b", "x", "y"), good=2, good_against_bad=True)
    assert item.comparisons() == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_a_lone_surrogate_becomes_the_replacement_character_and_a_pair_of_them_a_letter():
    assert data.clean("a\ud800b") == "a\ufffdb"
    assert data.clean("\ud83d\ude00") == "\U0001f600"


# --- the tokens of a row ---------------------------------------------------------------------


def test_a_row_of_options_is_its_pieces_each_tokenised_alone(tokenizer):
    cls, sep, mask = special_ids(tokenizer)
    rows = rows_of(PromptFormat(tokenizer, domain="safety"))
    question = ids_of(tokenizer, " Which option is safer? The better option is")
    for row, first, second in ((rows[0], " yes", " no"), (rows[1], " no", " yes")):
        texts = ids_of(tokenizer, "Instruction:", " Hi", " Option A:", first, " Option B:", second)
        stop = ids_of(tokenizer, ".")
        assert row.tokens == [cls] + texts + question + [mask] + stop + [sep]


def test_a_row_of_one_response_is_its_pieces_each_tokenised_alone(tokenizer):
    cls, sep, mask = special_ids(tokenizer)
    rows = rows_of(PromptFormat(tokenizer, context="single", domain="reasoning"))
    question = ids_of(tokenizer, " Is the response correct? The answer is")
    for row, response in ((rows[0], " yes"), (rows[1], " no")):
        texts = ids_of(tokenizer, "Instruction:", " Hi", " Response:", response)
        stop = ids_of(tokenizer, ".")
        assert row.tokens == [cls] + texts + question + [mask] + stop + [sep]


def test_a_row_of_choices_has_the_tokens_of_the_authors_layout(tokenizer):
    cls, sep, mask = special_ids(tokenizer)
    row, _ = rows_of(PromptFormat(tokenizer, "choice", domain="reasoning"))
    first = ids_of(tokenizer, "Which response is more correct? Question: Hi Choice 0: yes")
    # none between the response and "Answer:", two spaces before the digit
    second = ids_of(tokenizer, " Choice 1: noAnswer:  ")
    assert row.tokens == [cls] + first + [sep] + second + [mask, sep]


@pytest.mark.parametrize("kind, words", [
    (("option", "pair"), ["ĠA", "ĠB"]),  # Ġ is a space
    (("option", "single"), ["ĠYes", "ĠNo"]),
    (("choice", "pair"), ["0", "1"]),
])
def test_the_label_words_are_one_token_each(tokenizer, kind, words):
    assert words_of(format_of(tokenizer, kind)) == words


@EVERY_KIND
def test_head_cls_reads_position_0_of_the_same_rows(tokenizer, kind):
    cloze = rows_of(format_of(tokenizer, kind, head="cloze"))
    cls = rows_of(format_of(tokenizer, kind, head="cls"))
    assert [row._replace(read_at=0) for row in cloze] == list(cls)


# --- whose question is asked -----------------------------------------------------------------


def test_a_generalist_asks_the_question_of_the_pairs_domain(tokenizer):
    for name, domain in data.DOMAINS.items():
        row, _ = rows_of(PromptFormat(tokenizer), domain=name)
        assert domain.question in tokenizer.decode(row.tokens)


def test_a_generalist_asks_the_general_question_of_a_pair_without_a_domain(tokenizer):
    row, _ = rows_of(PromptFormat(tokenizer))
    assert "Which option is better?" in tokenizer.decode(row.tokens)


def test_a_specialist_asks_the_question_of_its_own_domain(tokenizer):
    row, _ = rows_of(PromptFormat(tokenizer, domain="safety"), domain="chat")
    assert "Which option is safer?" in tokenizer.decode(row.tokens)


def test_the_authors_generalist_asks_the_authors_longer_questions(tokenizer):
    specialist, _ = rows_of(PromptFormat(tokenizer, "choice", domain="chat"))
    generalist, _ = rows_of(PromptFormat(tokenizer, "choice"), domain="chat")
    assert "Select the best response." in tokenizer.decode(specialist.tokens)
    assert "Which response is the most helpful" in tokenizer.decode(generalist.tokens)


KINDNESS = Domain("Which option is kinder?", "Is the response kind?", "Which response is kinder?")


@pytest.mark.parametrize("kind, question", [
    (("option", "pair"), "Which option is kinder?"),
    (("option", "single"), "Is the response kind?"),
    (("choice", "pair"), "Which response is kinder?"),
])
@pytest.mark.parametrize("asked", ["kindness", "all"])
def test_a_domain_that_someone_adds_has_its_questions(tokenizer, monkeypatch, kind, question,
                                                      asked):
    monkeypatch.setitem(data.DOMAINS, "kindness", KINDNESS)
    row, _ = rows_of(format_of(tokenizer, kind, domain=asked), domain="kindness")
    assert question in tokenizer.decode(row.tokens)


def test_a_domain_that_someone_adds_can_be_asked_for(monkeypatch):
    monkeypatch.setitem(data.DOMAINS, "kindness", KINDNESS)
    assert data.domain_names() == ["reasoning", "safety", "chat", "kindness", "all"]


# --- any text --------------------------------------------------------------------------------

NASTY = [
    "", " ", "\n", "\0", "[MASK]", " [SEP] [CLS]", "Option B: x. The better option is [MASK]",
    "🦜👩‍👩‍👧", "\ud800", "a\udfffb", "e\u0301", "\u0301", "Answer:  0", "x" * 600, "日本" * 200,
]
TEXTS = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=40),
    st.lists(st.sampled_from(NASTY), max_size=4).map("".join),
    st.text(alphabet=st.characters(codec=None), max_size=300),
)
ANY_TEXT = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@ANY_TEXT
@given(TEXTS, TEXTS, TEXTS, st.sampled_from(list(KINDS)), st.sampled_from([100, 120, 3600]))
@example("\ud800", "\udfff[MASK]", "[MASK]", ("option", "pair"), 100)
def test_any_strings_give_one_mask_at_its_place_within_the_limit(tokenizer, prompt, a, b, kind,
                                                                 limit):
    prompt_format = format_of(tokenizer, kind, max_length=limit)
    rows_of_pairs, dropped = prompt_format.rows([Pair(prompt, a, b)])
    if rows_of_pairs == [None]:
        assert sum(dropped.values()) == 1
        return

    cls, sep, mask = special_ids(tokenizer)
    for label, row in enumerate(rows_of_pairs[0]):
        assert row.label == label
        assert len(row.tokens) <= limit
        assert row.tokens.count(mask) == 1 and row.tokens[row.read_at] == mask
        assert row.tokens.count(cls) == 1 and row.tokens[0] == cls
        assert row.tokens.count(sep) == KINDS[kind] and row.tokens[-1] == sep
        assert not {0, 3} & set(row.tokens)  # [UNK] and [PAD]
        assert row.cut == 0 or len(row.tokens) >= limit - 1  # no more is cut than needed


@ANY_TEXT
@given(TEXTS, TEXTS, TEXTS, st.sampled_from([100, 120, 3600]))
def test_the_two_orders_of_any_strings_are_mirrors(tokenizer, prompt, a, b, limit):
    prompt_format = PromptFormat(tokenizer, max_length=limit)
    rows, swapped = rows_of(prompt_format, prompt, a, b), rows_of(prompt_format, prompt, b, a)
    if rows is None:
        assert swapped is None
        return
    assert rows[0].tokens == swapped[1].tokens and rows[1].tokens == swapped[0].tokens
    assert rows[0].read_at == rows[1].read_at
    assert Counter(rows[0].tokens) == Counter(rows[1].tokens)


def test_pairs_are_the_same_rows_together_and_one_by_one(tokenizer):
    prompt_format = PromptFormat(tokenizer, max_length=120)
    pairs = [Pair(p, a, b) for p in NASTY[::3] for a in NASTY[::2] for b in NASTY[1::2]]
    together, _ = prompt_format.rows(pairs)
    one_by_one = [prompt_format.rows([pair])[0][0] for pair in pairs]
    assert together == one_by_one


# --- a question of one's own -----------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("domain", ["all", "safety"])
def test_a_question_of_ones_own_stands_in_the_place_of_the_domains(tokenizer, kind, domain):
    usual = format_of(tokenizer, kind, domain=domain)
    ours = format_of(tokenizer, kind, domain=domain, question="Which of six is two?")
    for own in data.DOMAINS:
        pair = Pair("Hi", "yes", "no", domain=own)
        text = tokenizer.decode(rows_of(usual, domain=own)[0].tokens)
        expected = text.replace(usual.question_for(pair), "Which of six is two?")
        assert tokenizer.decode(rows_of(ours, domain=own)[0].tokens) == expected


def test_no_question_is_that_of_the_domain(tokenizer):
    assert PromptFormat(tokenizer, question="") == PromptFormat(tokenizer)


@EVERY_KIND
@EVERY_HEAD
@pytest.mark.parametrize("text", ["[MASK]", "[CLS] or [SEP]?", "six\ud800"])
def test_special_tokens_in_a_question_stay_text(tokenizer, kind, head, text):
    usual, _ = rows_of(format_of(tokenizer, kind, head=head))
    ours, _ = rows_of(format_of(tokenizer, kind, head=head, question=text))
    for token in SPECIAL:
        special = tokenizer.library.token_to_id(token)
        assert ours.tokens.count(special) == usual.tokens.count(special)
    name = "cls" if head == "cls" else "mask"
    assert ours.tokens[ours.read_at] == tokenizer.library.token_to_id(f"[{name.upper()}]")


def test_a_question_that_leaves_no_room_is_refused(tokenizer):
    with pytest.raises(ValueError, match="--max-length 64: the template alone needs 80"):
        PromptFormat(tokenizer, max_length=64, question="six " * 60)


def test_a_question_of_spaces_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the question '  ' has no words"):
        PromptFormat(tokenizer, question="  ")


def test_a_question_is_among_the_settings_where_there_is_one(tokenizer):
    ours = PromptFormat(tokenizer, question="Which?")
    assert PromptFormat(tokenizer, **ours.settings()) == ours
    # what was stored before is what is stored now
    assert "question" not in PromptFormat(tokenizer).settings()


# --- special tokens --------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("text", ["[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]"])
def test_special_tokens_in_the_texts_stay_text(tokenizer, kind, text):
    row, _ = rows_of(format_of(tokenizer, kind), text, text, "no")
    plain, _ = rows_of(format_of(tokenizer, kind), "word", "word", "no")
    for token in SPECIAL:
        special = tokenizer.library.token_to_id(token)
        assert row.tokens.count(special) == plain.tokens.count(special)
    assert tokenizer.decode(row.tokens).count(text) >= 2


# No space before the texts: a piece is nothing but what the user wrote.
BARE = Template(
    label_words=(" A", " B"),
    pieces=((CLS,), (data.PROMPT,), (data.RESPONSE_A,), (data.RESPONSE_B,), (MASK,), (SEP,)),
)


@pytest.mark.parametrize("text", ["[MASK]", "[CLS]", "[SEP]"])
def test_a_piece_that_is_nothing_but_a_response_makes_no_special_token(tokenizer, monkeypatch,
                                                                       text):
    monkeypatch.setitem(data.TEMPLATES, ("option", "pair"), BARE)
    row, _ = rows_of(PromptFormat(tokenizer), text, text, "no")
    cls, sep, mask = special_ids(tokenizer)
    texts = ids_of(tokenizer, text, text, "no")
    assert not {cls, sep, mask} & set(texts)
    assert row.tokens == [cls] + texts + [mask, sep]


@pytest.mark.parametrize("text", ["[MASK]", "[CLS]", "[SEP]"])
def test_a_literal_of_a_template_makes_no_special_token(tokenizer, monkeypatch, text):
    pieces = ((CLS,), (text,), (data.RESPONSE_A,), (data.RESPONSE_B,), (MASK,), (SEP,))
    monkeypatch.setitem(data.TEMPLATES, ("option", "pair"), Template((" A", " B"), pieces))
    row, _ = rows_of(PromptFormat(tokenizer))
    assert tokenizer.decode(row.tokens) == f"[CLS]{text}yesno[MASK][SEP]"
    assert row.spans["mask"] == (row.read_at, row.read_at + 1)


# --- the tokenizer ---------------------------------------------------------------------------


def save_tokenizer(folder, library, **files):
    """tokenizer.json, and other files of the folder by name."""
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


OTHER_SPECIAL = ["<unk>", "<bos>", "<eos>", "<pad>", "<mask>"]  # as multilingual ones have them
ROLES = {"cls_token": "<bos>", "sep_token": "<eos>", "mask_token": "<mask>"}


@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
def test_special_tokens_have_the_names_that_the_files_give_to_their_roles(tmp_path, file):
    save_tokenizer(tmp_path, byte_tokenizer(OTHER_SPECIAL), **{file: ROLES})
    tokenizer = load_tokenizer(tmp_path)
    row, _ = rows_of(PromptFormat(tokenizer), "[MASK]", "<mask>", "<eos>")
    text = tokenizer.decode(row.tokens)
    assert text.startswith("<bos>Instruction: [MASK] Option A: <mask> Option B: <eos>")
    assert text.endswith("The better option is<mask>.<eos>")
    library = tokenizer.library
    assert row.tokens.count(library.token_to_id("<mask>")) == 1
    assert row.tokens[row.read_at] == library.token_to_id("<mask>")


def test_a_token_may_be_written_with_its_properties(tmp_path):
    roles = {role: {"content": token, "lstrip": True} for role, token in ROLES.items()}
    save_tokenizer(tmp_path, byte_tokenizer(OTHER_SPECIAL), tokenizer_config=roles)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_ids[MASK] == tokenizer.library.token_to_id("<mask>")


def test_without_other_files_they_have_the_names_of_modernbert(tmp_path):
    save_tokenizer(tmp_path, byte_tokenizer(SPECIAL))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_ids[CLS] == tokenizer.library.token_to_id("[CLS]")


def test_a_role_that_the_vocabulary_lacks_is_one_line(tmp_path):
    save_tokenizer(tmp_path, byte_tokenizer(OTHER_SPECIAL))
    with pytest.raises(ValueError, match=r"tokenizer.json: no special token '\[CLS\]'"):
        load_tokenizer(tmp_path)


def test_a_mask_that_is_an_ordinary_token_is_refused(tmp_path):
    library = byte_tokenizer(SPECIAL[:-1])
    library.add_tokens(["[MASK]"])
    save_tokenizer(tmp_path, library)
    with pytest.raises(ValueError, match=r"no special token '\[MASK\]'.*use .* a ModernBERT"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer .*No such file.*give a whole model folder"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "special_tokens_map"])
def test_a_damaged_file_of_the_tokenizer_is_named(tmp_path, name):
    save_tokenizer(tmp_path, byte_tokenizer(SPECIAL))
    (tmp_path / f"{name}.json").write_text("{")
    with pytest.raises(ValueError, match=f"{name}.json: n"):  # "no tokenizer", "not valid JSON"
        load_tokenizer(tmp_path)


def test_padding_and_truncation_of_the_file_are_switched_off(tmp_path):
    library = byte_tokenizer(SPECIAL)
    library.enable_padding(length=50)
    library.enable_truncation(2)
    save_tokenizer(tmp_path, library)
    encoding = load_tokenizer(tmp_path).library.encode("zqzq", add_special_tokens=False)
    assert len(encoding.ids) == 4


def test_a_tokenizer_that_splits_a_label_is_refused(tmp_path):
    bytes_only = Tokenizer(models.BPE())  # " A" is two tokens
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet)
    bytes_only.train_from_iterator([], trainer)
    save_tokenizer(tmp_path, bytes_only)
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="splits the label ' A' into .*must be one token"):
        PromptFormat(tokenizer)
    PromptFormat(tokenizer, "choice")  # digits are bytes
    # the classes of head "cls" have no words
    assert PromptFormat(tokenizer, head="cls").label_ids == (0, 1)


@pytest.mark.parametrize("fields, message", [
    (dict(template="flan"), "no template flan for context pair: use option for pair, "),
    (dict(context="x"), "no template option for context x"),
    (dict(template="choice", context="single"), "no template choice for context single"),
    (dict(head="x"), "no head x: use cloze or cls"),
    (dict(domain=""), "no domain : use reasoning, safety, chat, all"),
])
def test_a_format_that_makes_no_sense_is_refused(tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        PromptFormat(tokenizer, **fields)


def test_a_format_is_made_again_from_its_settings(tokenizer):
    ours = PromptFormat(tokenizer, "choice", head="cls", domain="chat", max_length=77)
    assert PromptFormat(tokenizer, **json.loads(json.dumps(ours.settings()))) == ours


# --- where the texts stand -------------------------------------------------------------------


def text_at(prompt_format, row, name):
    start, stop = row.spans[name]
    return prompt_format.tokenizer.decode(row.tokens[start:stop])


@EVERY_HEAD
def test_spans_say_where_the_texts_stand(tokenizer, head):
    prompt_format = PromptFormat(tokenizer, head=head)
    row_0, row_1 = rows_of(prompt_format, "two or six?", "six", "two")
    # a space before a word belongs to its first token
    assert text_at(prompt_format, row_0, "prompt") == " two or six?"
    assert text_at(prompt_format, row_0, "a") == text_at(prompt_format, row_1, "b") == " six"
    assert text_at(prompt_format, row_0, "b") == text_at(prompt_format, row_1, "a") == " two"


def test_spans_say_where_the_authors_layout_has_the_texts(tokenizer):
    prompt_format = PromptFormat(tokenizer, "choice")
    row, _ = rows_of(prompt_format, "two or six?", "six", "two")
    assert text_at(prompt_format, row, "prompt") == " two or six?"
    assert text_at(prompt_format, row, "a") == " six"
    assert text_at(prompt_format, row, "b") == " two"


def test_a_single_response_has_no_b(tokenizer):
    prompt_format = PromptFormat(tokenizer, context="single")
    row, _ = rows_of(prompt_format, "two or six?", "six", "two")
    assert text_at(prompt_format, row, "a") == " six"
    assert "b" not in row.spans


@EVERY_KIND
@EVERY_HEAD
def test_spans_say_where_the_special_tokens_stand(tokenizer, kind, head):
    prompt_format = format_of(tokenizer, kind, head=head)
    row, _ = rows_of(prompt_format)
    assert text_at(prompt_format, row, "cls") == "[CLS]"
    assert text_at(prompt_format, row, "mask") == "[MASK]"
    assert row.spans["cls" if head == "cls" else "mask"][0] == row.read_at


@ANY_TEXT
@given(TEXTS, TEXTS, TEXTS, st.sampled_from(list(KINDS)), st.sampled_from([100, 120, 3600]))
def test_spans_follow_each_other_and_hold_what_is_not_the_templates(tokenizer, prompt, a, b, kind,
                                                                    limit):
    prompt_format = format_of(tokenizer, kind, max_length=limit)
    rows = rows_of(prompt_format, prompt, a, b)
    if rows is None:
        return
    for row in rows:
        names = ["cls", "prompt", "a", "b", "mask"]
        spans = [row.spans[name] for name in names if name in row.spans]
        stops = [0] + [stop for _, stop in spans]
        for (start, stop), stop_before in zip(spans, stops, strict=False):
            assert stop_before <= start <= stop <= len(row.tokens)


def test_a_token_over_the_border_of_two_segments_belongs_to_the_one_it_ends_in(tokenizer,
                                                                               monkeypatch):
    # " two" is one token, whose space is the template's and whose letters are the prompt's; the
    # full stop after it is the template's own
    pieces = ((CLS,), ("x ", data.PROMPT, "."),
              (" ", data.RESPONSE_A), (" ", data.RESPONSE_B), (MASK,), (SEP,))
    monkeypatch.setitem(data.TEMPLATES, ("option", "pair"), Template((" A", " B"), pieces))
    prompt_format = PromptFormat(tokenizer)
    row, _ = rows_of(prompt_format, "two")
    assert row.spans["prompt"] == (2, 3)  # [CLS], x,| two|, .
    assert text_at(prompt_format, row, "prompt") == " two"


# --- truncation ------------------------------------------------------------------------------


def room_for(tokenizer, template, room):
    """A format whose rows have `room` tokens for the texts of the user."""
    row, _ = rows_of(PromptFormat(tokenizer, template, domain="chat"), "", "x", "y")
    limit = len(row.tokens) - 2 + room
    return PromptFormat(tokenizer, template, domain="chat", max_length=limit)


@pytest.mark.parametrize("template", ["option", "choice"])
@pytest.mark.parametrize("lengths, room, kept", [
    ((10, 10, 20), 40, (10, 10, 20)),  # fits to the token
    ((10, 10, 25), 40, (10, 10, 20)),  # the longer response gives way
    ((10, 25, 10), 40, (10, 20, 10)),
    ((10, 10, 5000), 40, (10, 10, 20)),
    ((10, 40, 50), 40, (10, 15, 15)),  # below the shorter one, both
    ((30, 40, 50), 40, (20, 10, 10)),  # a quarter of the room each, then the prompt
    ((30, 4, 50), 40, (26, 4, 10)),  # the shorter one needs less than its quarter
    ((9999, 10, 10), 40, (20, 10, 10)),  # a prompt beyond the limit by the same rule
    ((9999, 1, 1), 40, (38, 1, 1)),
    ((9999, 500, 500), 40, (20, 10, 10)),
])
def test_the_longer_response_gives_way_first_then_both_then_the_prompt(tokenizer, template, lengths,
                                                                       room, kept):
    prompt_format = room_for(tokenizer, template, room)
    prompt, a, b = lengths
    rows = rows_of(prompt_format, "q" * prompt, "z" * a, "V" * b)
    # q, z and V are one token each, which never merge, and which no template has
    ids = [tokenizer.library.token_to_id(letter) for letter in "qzV"]
    for row in rows:
        assert tuple(row.tokens.count(i) for i in ids) == kept
        assert len(row.tokens) == prompt_format.max_length
        assert row.cut == prompt + a + b - room


@pytest.mark.parametrize("template", ["option", "choice"])
def test_one_token_of_room_more_or_less_changes_the_row_by_one_token(tokenizer, template):
    # from a prompt that does not fit at all to one that just fits there is no jump
    kept = []
    for room in range(20, 60):
        prompt_format = room_for(tokenizer, template, room)
        row, _ = rows_of(prompt_format, "q" * 30, "z" * 12, "V" * 10)
        kept.append(row.tokens.count(tokenizer.library.token_to_id("q")))
    steps = [after - before for before, after in zip(kept, kept[1:], strict=False)]
    assert set(steps) <= {-1, 0, 1}
    assert kept[-1] == 30


@EVERY_KIND
def test_a_prompt_that_is_too_long_keeps_its_end(tokenizer, kind):
    # the last turn of a conversation is what is answered
    prompt_format = format_of(tokenizer, kind, max_length=120)
    row, _ = rows_of(prompt_format, "first turn " * 300 + "last turn", "six", "two")
    assert text_at(prompt_format, row, "prompt").endswith("last turn")
    assert text_at(prompt_format, row, "a") == " six"
    assert len(row.tokens) == 120 and row.cut > 1000


@EVERY_KIND
def test_a_response_that_is_too_long_keeps_its_beginning(tokenizer, kind):
    prompt_format = format_of(tokenizer, kind, max_length=120)
    row, _ = rows_of(prompt_format, "two or six?", "one two" + " three" * 300, "two")
    assert text_at(prompt_format, row, "prompt") == " two or six?"
    assert text_at(prompt_format, row, "a").startswith(" one two three")
    assert len(row.tokens) == 120 and row.cut > 100


@EVERY_KIND
@EVERY_HEAD
def test_spans_are_right_after_truncation_too(tokenizer, kind, head):
    prompt_format = format_of(tokenizer, kind, head=head, max_length=120)
    row, _ = rows_of(prompt_format, "q" * 300, "z" * 300, "V" * 300)
    assert set(text_at(prompt_format, row, "prompt").strip()) == {"q"}
    assert set(text_at(prompt_format, row, "a").strip()) == {"z"}
    if "b" in row.spans:
        assert set(text_at(prompt_format, row, "b").strip()) == {"V"}
    assert text_at(prompt_format, row, "cls") == "[CLS]"
    assert text_at(prompt_format, row, "mask") == "[MASK]"
    # all that is left of the prompt stands in its span
    start, stop = row.spans["prompt"]
    q = tokenizer.library.token_to_id("q")
    assert row.tokens.count(q) == row.tokens[start:stop].count(q)


def least_limit(tokenizer, kind, domain):
    """The limit that the message about one that is too small names."""
    with pytest.raises(ValueError) as error:
        format_of(tokenizer, kind, domain=domain, max_length=5)
    message = str(error.value)
    assert message.startswith("--max-length 5: the template alone needs ")
    assert message.endswith(" tokens") and "\n" not in message
    return int(message.split()[-2])


@EVERY_KIND
@pytest.mark.parametrize("domain", data.DOMAINS)
def test_a_limit_below_the_template_is_one_line_that_names_the_least(tokenizer, kind, domain):
    least = least_limit(tokenizer, kind, domain)
    with pytest.raises(ValueError, match="the template alone needs"):
        format_of(tokenizer, kind, domain=domain, max_length=least - 1)
    format_of(tokenizer, kind, domain=domain, max_length=least)


@pytest.mark.parametrize("context", ["pair", "single"])
def test_a_generalist_needs_room_for_the_longest_question(tokenizer, context):
    kind = ("option", context)
    longest = max(least_limit(tokenizer, kind, domain) for domain in data.DOMAINS)
    with pytest.raises(ValueError, match="the template alone needs"):
        format_of(tokenizer, kind, max_length=longest - 1)
    format_of(tokenizer, kind, max_length=longest)


@EVERY_KIND
def test_nothing_is_too_long_for_the_least_limit(tokenizer, kind):
    least = least_limit(tokenizer, kind, "chat")
    prompt_format = format_of(tokenizer, kind, domain="chat", max_length=least)
    rows = rows_of(prompt_format, "q" * 99, "z" * 99, "V" * 99)
    if rows is not None:
        assert len(rows[0].tokens) <= least


def test_a_megabyte_of_text_is_cut_in_seconds(tokenizer):
    prompt_format = PromptFormat(tokenizer, max_length=5000)
    row, _ = rows_of(prompt_format, "a b " * 1000, "x" * 10**6, "\ud83d\ude00\ud800 [MASK] " * 9999)
    assert len(row.tokens) >= 4999 and row.cut > 10**4


# --- very long texts -------------------------------------------------------------------------

HOSTILE = [*NASTY, "  ", "\n ", " \n", "\u00a0 ", "\u3000 ", "\x1c ", "=" * 300, " " * 700,
           "x" * 2000, "the end. ", "it's 'so' ", " \u0301", "\u0301 ", "\u1100\u1161\u11a8"]
LONG_TEXTS = st.tuples(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=8),
                       st.integers(1, 12), TEXTS)
LONG = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check_that_the_ends_make_the_rows_of_the_whole(prompt_format, prompt, a, b):
    whole_format = PromptFormat(prompt_format.tokenizer, **prompt_format.settings())
    object.__setattr__(whole_format, "without_middle", lambda text: text)  # it is frozen
    whole, counts = whole_format.rows([Pair(prompt, a, b)])
    with mock.patch.object(data, "VERY_LONG", 0):  # by the other rule: 48 max_length characters
        ends, counts_of_ends = prompt_format.rows([Pair(prompt, a, b)])
    assert counts == counts_of_ends
    for row, row_of_ends in zip(whole[0] or [], ends[0] or [], strict=True):
        assert row_of_ends._replace(cut=0) == row._replace(cut=0)
        assert (row_of_ends.cut > 0) == (row.cut > 0)


def long_text(made):
    pieces, times, last = made
    return "".join(pieces) * times + last


@LONG
@given(LONG_TEXTS, LONG_TEXTS, LONG_TEXTS, st.sampled_from(list(KINDS)))
@example(([""], 1, ""), ([""], 1, ""), ([" ", "x" * 3000], 4, ""), ("choice", "pair"))
def test_the_ends_of_a_long_text_make_the_row_of_the_whole_text(tokenizer, prompt, a, b, kind):
    prompt_format = format_of(tokenizer, kind, max_length=100)
    check_that_the_ends_make_the_rows_of_the_whole(
        prompt_format, long_text(prompt), long_text(a), long_text(b))


@EVERY_KIND
@pytest.mark.parametrize("text", [
    "word " * 9000,
    "日 = 3;\n" * 9000,
    "\ud83d\ude00\ud800 [MASK] " * 5000,
])
def test_of_a_long_text_the_ends_are_tokenised(tokenizer, kind, text):
    prompt_format = format_of(tokenizer, kind, max_length=100)
    text = data.clean(text)
    ends = prompt_format.without_middle(text)
    assert 3000 < len(ends) < len(text) / 2
    assert text.startswith(ends[:1500]) and text.endswith(ends[-1500:])
    check_that_the_ends_make_the_rows_of_the_whole(prompt_format, text, text + "a", "b" + text)


def test_up_to_a_hundred_thousand_characters_everything_that_is_cut_is_counted(tokenizer):
    prompt_format = PromptFormat(tokenizer, max_length=100)
    text = "word " * 19_999
    whole = len(tokenizer.library.encode(text, add_special_tokens=False).ids)
    rows_of_pairs, _ = prompt_format.rows([Pair("p", text, "a")])
    left = rows_of_pairs[0][0].spans["a"]
    assert rows_of_pairs[0][0].cut == whole - (left[1] - left[0])


def test_a_text_without_a_cut_point_stays_whole_up_to_a_million_characters(tokenizer):
    prompt_format = PromptFormat(tokenizer, max_length=100)
    for text in ("x" * 10**6, " " * 10**6, "日本語。" * 9999):
        assert prompt_format.without_middle(text) == text
    assert len(prompt_format.without_middle("x" * 10**7)) == 10**6


def test_ends_of_few_tokens_are_made_longer(tmp_path):
    library = byte_tokenizer(SPECIAL)
    library.add_tokens(["=" * 150])
    save_tokenizer(tmp_path, library)
    prompt_format = PromptFormat(load_tokenizer(tmp_path), max_length=100)
    text = ("=" * 150 + " ") * 800  # two tokens in 151 characters
    assert 25_000 < len(prompt_format.without_middle(text)) < 30_000
    check_that_the_ends_make_the_rows_of_the_whole(prompt_format, text, text, "a " + text)


def test_a_tokenizer_whose_tokens_reach_over_a_cut_point_is_not_cut_there(tokenizer, tmp_path):
    library = byte_tokenizer(SPECIAL)
    library.add_tokens(["of the"])
    save_tokenizer(tmp_path, library)
    reaching = load_tokenizer(tmp_path)
    assert tokenizer.splits_at_cut_points and not reaching.splits_at_cut_points
    assert PromptFormat(reaching, max_length=100).without_middle("word " * 9000) == "word " * 9000


# --- pairs that are dropped ------------------------------------------------------------------


@EVERY_KIND
def test_pairs_whose_rows_are_identical_are_dropped_and_counted(tokenizer, kind):
    prompt_format = format_of(tokenizer, kind, max_length=150)
    pairs = [
        Pair("p", "x" * 9, "x" * 9),
        Pair("p", "x", "y"),
        Pair("p", "x" * 500 + "a", "x" * 500 + "b"),
    ]
    rows_of_pairs, dropped = prompt_format.rows(pairs)
    assert [rows is None for rows in rows_of_pairs] == [True, False, True]
    assert dropped == {"identical responses": 1, "identical after truncation": 1}


def test_responses_that_the_tokenizer_normalises_to_one_are_identical(tmp_path):
    library = byte_tokenizer(SPECIAL)
    library.normalizer = normalizers.NFC()  # as ModernBERT's
    save_tokenizer(tmp_path, library)
    prompt_format = PromptFormat(load_tokenizer(tmp_path))
    assert prompt_format.rows([Pair("p", "\u00e9", "e\u0301")])[1] == {"identical responses": 1}


# --- batches ---------------------------------------------------------------------------------


def test_rows_are_packed_end_to_end():
    rows = [Row([5, 6, 7], 1, 0, 0, {}), Row([8], 0, 1, 0, {}), Row([9, 10], 1, 1, 3, {})]
    batch = pack(rows)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.starts.tolist() == [0, 3, 4, 6]
    assert batch.read_at.tolist() == [1, 3, 5]  # 0 + 1, 3 + 0, 4 + 1
    assert batch.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("lengths, budget, expected", [
    ([4, 3, 2, 1], 100, [[3, 2, 1, 0]]),  # all in one, the shortest first
    ([4, 3, 2, 1], 5, [[2, 1], [3, 0]]),  # 2 + 3, 1 + 4
    ([3, 3, 3], 5, [[2], [1], [0]]),  # not in two: 6 + 3
    ([9, 1], 5, [[0], [1]]),  # one that is longer stands alone
    ([], 5, []),
])
def test_micro_batches_by_hand(lengths, budget, expected):
    assert make_micro_batches(lengths, budget) == expected


@pytest.mark.parametrize("sizes, parts, expected", [
    ([4, 3, 2, 1], 2, [[1, 2], [0, 3]]),  # 4 | 3, 3 + 2, 4 + 1
    ([7], 3, [[0], [], []]),
    ([5, 5], 1, [[0, 1]]),
])
def test_balanced_shares_by_hand(sizes, parts, expected):
    assert balanced_shares(sizes, parts) == expected


LENGTHS = st.lists(st.integers(1, 900), max_size=150)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 3000))
def test_micro_batches_have_each_index_once_and_keep_to_the_budget(lengths, budget):
    micro_batches = make_micro_batches(lengths, budget)
    dealt = [i for members in micro_batches for i in members]
    assert sorted(dealt) == list(range(len(lengths)))
    for members in micro_batches:
        assert members
        assert len(members) == 1 or sum(lengths[i] for i in members) <= budget


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 8))
def test_shares_have_each_index_once_and_are_about_equal(sizes, parts):
    shares = balanced_shares(sizes, parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    sums = [sum(sizes[i] for i in share) for share in shares]
    assert max(sums) - min(sums) <= max(sizes, default=0)


# --- the script ------------------------------------------------------------------------------


def test_the_script_shows_a_pair_and_its_two_rows(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data.py", "chat"])
    runpy.run_path(data.__file__, run_name="__main__")
    out = capsys.readouterr().out
    assert "label 0 = 'ĠA'" in out and "label 1 = 'ĠB'" in out
    assert out.count("Which option is better? The better option is[MASK].") == 2
    choice = out.partition("--template choice")[2]
    assert "label 0 = '0'" in choice and choice.count("Answer:  [MASK]") == 2


def test_the_script_names_the_domains_it_has(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data.py", "cooking"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(data.__file__, run_name="__main__")
    assert stop.value.code == 2
    expected = "error: no domain cooking: give one of reasoning, safety, chat\n"
    assert capsys.readouterr().err == expected


# --- the real tokenizer ----------------------------------------------------------------------

REAL = pytest.mark.skipif("TINYRM_TOKENIZER" not in os.environ,
                          reason="TINYRM_TOKENIZER=DIR is not set (ModernBERT's tokenizer)")


@pytest.fixture(scope="session")
def real_tokenizer():
    return load_tokenizer(os.environ["TINYRM_TOKENIZER"])


@REAL
def test_golden_ids_of_the_options(real_tokenizer):
    prompt_format = PromptFormat(real_tokenizer)
    assert prompt_format.label_ids == (329, 378)
    row, _ = rows_of(prompt_format, "What is 2+2?", "4", "5 [MASK]", domain="reasoning")
    assert row.tokens == [
        50281, 10548, 2705, 27, 1737, 310, 374, 12, 19, 32, 27357, 329, 27, 577, 27357, 378, 27,
        608, 544, 18690, 62, 6758, 4500, 310, 625, 3451, 32, 380, 1805, 4500, 310, 50284, 15, 50282]


GOLDEN_CHOICE = [
    50281, 7371, 2380, 310, 625, 3451, 32, 19782, 27, 1737, 310, 374, 12, 19, 32, 31303, 470,
    27, 577, 50282, 31303, 337, 27, 608, 544, 18690, 62, 32869, 27, 50276, 50284, 50282]


@REAL
def test_golden_ids_of_the_choices(real_tokenizer):
    prompt_format = PromptFormat(real_tokenizer, "choice", domain="reasoning")
    assert prompt_format.label_ids == (17, 18)
    row, _ = rows_of(prompt_format, "What is 2+2?", "4", "5 [MASK]")
    assert row.tokens == GOLDEN_CHOICE


@REAL
def test_the_choices_are_what_the_authors_code_makes(real_tokenizer):
    # the tokenizer's own pair of texts, with the last digit then masked
    whole = real_tokenizer.library.encode(
        "Which response is more correct? Question: What is 2+2? Choice 0: 4",
        " Choice 1: 5 [MASK]Answer:  0").ids
    assert whole[:-2] + [50284, 50282] == GOLDEN_CHOICE


@REAL
@LONG
@given(LONG_TEXTS, LONG_TEXTS, LONG_TEXTS, st.sampled_from(list(KINDS)))
def test_with_the_real_tokenizer_too_the_ends_make_the_row_of_the_whole_text(
        real_tokenizer, prompt, a, b, kind):
    assert real_tokenizer.splits_at_cut_points
    check_that_the_ends_make_the_rows_of_the_whole(
        format_of(real_tokenizer, kind, max_length=100),
        long_text(prompt), long_text(a), long_text(b))
