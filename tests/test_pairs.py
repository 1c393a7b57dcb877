"""Files of pairs and items: every form reads as what it means, a bad line is named, a split is by
prompt, and what is written appears whole or not at all.

Run: python -m pytest tests/test_pairs.py
"""

import hashlib
import json
import random
from collections import Counter

import pytest
from hub_server import parquet

import data
from data import Domain, Pair
from infra.files import replacing, sha256_of, write_json
from infra.pairs import (
    fingerprint,
    load_pairs,
    parse_item,
    parse_pair,
    prompt_hash,
    split,
    to_text,
)
from tinyrm import read_json


@pytest.fixture
def write(tmp_path):
    """Writes rows (bytes: as they are) as the lines of a file."""

    def write(*rows, name="pairs.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


def row(i=0, **fields):
    return {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}", **fields}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


# --- texts ---------------------------------------------------------------------------------------


def test_a_conversation_is_joined_with_roles_and_blank_lines():
    turns = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello")]
    assert to_text(turns, "") == "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello"


def test_a_single_message_reads_as_the_plain_string():
    assert to_text([user("Hi")], "") == to_text("Hi", "") == "Hi"


def test_lone_surrogates_are_replaced_and_pairs_of_them_are_joined():
    assert to_text("a\ud800 \ud83d\ude00", "") == "a\ufffd 😀"
    assert to_text([user("\udfff")], "") == "\ufffd"


def test_prompts_are_the_same_but_for_case_and_white_space():
    assert prompt_hash(" Is  THIS\nthe Straße?") == prompt_hash("is this the strasse?")
    assert prompt_hash("is this") != prompt_hash("isthis")
    # as files that were converted and runs that were begun before have it
    assert prompt_hash("is this the strasse?") == 0x1BD2D88BDB71D303


# --- one pair ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {
            "prompt": [user("The sky is")],
            "chosen": [assistant(" blue.")],
            "rejected": [assistant(" green.")],
        },
        {
            "chosen": [user("The sky is"), assistant(" blue.")],
            "rejected": [user("The sky is"), assistant(" green.")],
        },
        {
            "prompt": "The sky is",
            "chosen": [user("The sky is"), assistant(" blue.")],
            "rejected": [user("The sky is"), assistant(" green.")],
        },
        {"prompt": [user("The sky is")], "chosen": " blue.", "rejected": " green."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "subset": None},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "more": 1},
    ],
)
def test_the_formats_of_trl_read_as_the_same_pair(fields):
    expected = Pair("The sky is", " blue.", " green.", where="here")
    assert parse_pair(fields, "here") == expected


def test_a_prompt_that_is_not_given_ends_at_a_whole_word():
    pair = parse_pair({"chosen": "one two three", "rejected": "one two thirty"}, "")
    assert pair[:3] == ("one two", " three", " thirty")
    pair = parse_pair({"chosen": "one\ntwo", "rejected": "one\nten"}, "")
    assert pair[:3] == ("one", "\ntwo", "\nten")


def test_turns_that_are_not_given_as_prompt_are_those_that_both_share():
    turns = [user("Hi"), assistant("Hello"), user("Why?")]
    chosen, rejected = [*turns, assistant("Because.")], [*turns, assistant("No.")]
    pair = parse_pair({"chosen": chosen, "rejected": rejected}, "")
    assert pair[:3] == ("User: Hi\n\nAssistant: Hello\n\nUser: Why?", "Because.", "No.")


def test_the_last_turn_is_the_response_also_where_both_are_equal():
    turns = [user("Hi"), assistant("Hello")]
    pair = parse_pair({"chosen": turns, "rejected": turns}, "")
    assert pair[:3] == ("Hi", "Hello", "Hello")


def test_turns_are_equal_in_whatever_order_their_keys_stand():
    other = {"content": "Hi", "role": "user"}
    fields = {"chosen": [user("Hi"), assistant("a")], "rejected": [other, assistant("b")]}
    assert parse_pair(fields, "")[:3] == ("Hi", "a", "b")


def test_shared_turns_that_are_not_the_prompt_stay():
    both = [assistant("Well."), assistant("So.")]
    fields = {"prompt": "Hi", "chosen": both, "rejected": [both[0], assistant("No.")]}
    pair = parse_pair(fields, "")
    assert pair.prompt == "Hi"
    assert pair.chosen == "Assistant: Well.\n\nAssistant: So."


# --- messages as TRL has them --------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"type": "function", "function": {"name": "light", "arguments": {"room": "hall"}}}
CALL_TEXT = 'Tool call: {"name": "light", "arguments": {"room": "hall"}}'


@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
def test_tool_calls_and_results_are_text_also_next_to_no_content(content):
    turns = [
        user("Light!"),
        {"role": "assistant", **content, "tool_calls": [CALL, CALL]},
        {"role": "tool", "name": "light", "content": "It is on."},
        assistant("Done."),
    ]
    assert to_text(turns, "") == (
        f"User: Light!\n\nAssistant: {CALL_TEXT}\n{CALL_TEXT}\n\n"
        "Tool: It is on.\n\nAssistant: Done."
    )


def test_a_tool_call_stands_behind_the_content_and_may_be_of_another_form():
    message = {**assistant("Wait."), "tool_calls": [{"name": "light", "function": None}]}
    assert to_text([message], "") == 'Wait.\nTool call: {"name": "light", "function": null}'


def test_content_may_be_parts_of_text_and_other_parts_are_refused():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "image": None}]
    assert to_text([assistant(parts)], "") == "one\ntwo"
    with pytest.raises(ValueError, match="here has a part of type 'image': only text"):
        to_text([user([{"type": "image", "image": "x"}, *parts])], "here")


@pytest.mark.parametrize(
    "message",
    [
        user(None),
        user(3),
        user(["Hi"]),
        user([]),
        {"content": "Hi"},
        {"role": "assistant", "tool_calls": []},
        {"role": "assistant", "content": "Hi", "tool_calls": "light"},
        {"role": "assistant", "content": "Hi", "tool_calls": ["light"]},
        {"from": "human", "value": "Hi"},
    ],
)
def test_what_is_no_message_is_refused(message):
    with pytest.raises(ValueError, match="list of messages"):
        to_text([message], "here")


def test_messages_of_parquet_whose_missing_keys_are_null_read_as_those_of_json(write, tmp_path):
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [
        row(0, prompt=[SYSTEM, user("Hi")], chosen=[called, assistant("a")], rejected=[called]),
        row(1, prompt=[user("Ho")], chosen=[assistant("b")], rejected=[assistant("c")]),
    ]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    of_parquet, of_lines = load_pairs([tmp_path / "a.parquet"]), load_pairs([write(*rows)])
    assert fingerprint(of_parquet) == fingerprint(of_lines)


def test_reasoning_is_left_out_and_counted(write):
    thought = {**assistant("5."), "reasoning_content": "2 and 3 ..."}
    rows = [
        row(0, chosen=[thought], rejected=[{**assistant("6."), "thinking": "hm"}]),
        row(1, chosen=[{**thought, "reasoning_content": None}]),
    ]
    left_out = Counter()
    pairs = load_pairs([write(*rows)], left_out=left_out)
    assert (pairs[0].chosen, pairs[0].rejected) == ("5.", "6.")
    assert left_out == {"reasonings of messages": 2}


# --- a prompt next to whole conversations --------------------------------------------------------

TURNS = [SYSTEM, user("Hi"), assistant("Hello"), user("Why?")]


def beside(prompt, shared, **fields):
    """A row whose conversations begin with the turns `shared`."""
    sides = {"chosen": [*shared, assistant("Because.")], "rejected": [*shared, assistant("No.")]}
    return {"prompt": prompt, **sides, **fields}


@pytest.mark.parametrize(
    "prompt",
    ["Why?", [user("Why?")], TURNS, to_text(TURNS, ""), [dict(turn, name=None) for turn in TURNS]],
)
def test_a_prompt_that_conversations_begin_with_is_shown_once_and_nothing_is_lost(prompt):
    pair = parse_pair(beside(prompt, TURNS), "")
    assert pair[:3] == (to_text(TURNS, ""), "Because.", "No.")


def test_turns_that_two_responses_share_are_no_part_of_a_prompt_in_messages():
    answer = [assistant("Well."), user("So?")]
    pair = parse_pair(beside(TURNS, [*TURNS, *answer]), "")
    assert pair.prompt == to_text(TURNS, "")
    assert pair.chosen == "Assistant: Well.\n\nUser: So?\n\nAssistant: Because."


@pytest.mark.parametrize(
    "fields",
    [
        beside("Hi", TURNS),  # not the last turn of the user
        beside("Other", TURNS),
        beside([user("Hi")], TURNS),
        beside("Hi", [user("Hi")], rejected=[user("Ho"), assistant("No.")]),
        beside("Hi", [user("Hi")], rejected="No."),
    ],
)
def test_a_prompt_that_is_another_is_refused_with_its_line(fields):
    with pytest.raises(ValueError, match='^f, line 3: "prompt" is not the last user turn'):
        parse_pair(fields, "f, line 3")


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompt", "question", "instruction"])
def test_the_prompt_has_one_of_three_names(column):
    fields = {column: "The sky is", "chosen": " blue.", "rejected": " green.", "system": ""}
    assert parse_pair(fields, "")[:3] == ("The sky is", " blue.", " green.")
    form, item = parse_item(fields, "")
    assert form == "pairs" and item.prompt == "The sky is"
    lists = {column: "The sky is", "chosen": ["blue"], "rejected": ["green", "red"]}
    assert parse_item(lists, "")[1].prompt == "The sky is"


def test_a_column_prompt_comes_before_others():
    assert parse_pair(row(question="q", instruction="i", user="x"), "").prompt == "p0"


@pytest.mark.parametrize("more", ["input", "system", "query", "context"])
@pytest.mark.parametrize("column", ["instruction", "prompt"])
def test_a_part_of_the_prompt_in_another_column_is_not_lost(column, more):
    fields = {column: "Translate.", more: "Hola.", "chosen": "Hello.", "rejected": "Bye."}
    with pytest.raises(ValueError, match=f'line 1: "{more}" next to "{column}": join them'):
        parse_pair(fields, "f, line 1")


@pytest.mark.parametrize("name", ["input", "query", "context", "user"])
def test_a_prompt_by_another_name_is_refused(name):
    fields = {name: "What is 2 + 3?", "chosen": "It is 5.", "rejected": "It is 6."}
    with pytest.raises(ValueError, match=f'line 1: "{name}", but no "prompt"'):
        parse_pair(fields, "f, line 1")


def test_other_columns_are_named_with_a_way_out():
    fields = {"task": "t", "a1": "x", "a2": "y", "preference": 1}
    with pytest.raises(ValueError, match='no "chosen" among its columns task, a1, a2, preference'):
        parse_pair(fields, "")


def test_rows_whose_scores_do_not_prefer_the_chosen_are_left_out_and_counted(write):
    scores = [(8.5, 3), (5, 5), (2, 7), ("9", "8"), (None, 7), ("", "")]
    rows = [row(i, score_chosen=a, score_rejected=b) for i, (a, b) in enumerate(scores)]
    left_out = Counter()
    pairs = load_pairs([write(*rows)], left_out=left_out)
    assert [pair.prompt for pair in pairs] == ["p0", "p3", "p4", "p5"]
    assert left_out["rows whose score_chosen is not above score_rejected"] == 2


@pytest.mark.parametrize("score", ["good", float("nan"), "nan", 10**400])
def test_a_score_that_is_no_number_is_one_line(write, score):
    with pytest.raises(ValueError, match="line 1: score_chosen and score_rejected: give numbers"):
        load_pairs([write(row(score_chosen=score, score_rejected=1))])


def test_responses_to_choose_from_may_be_messages():
    lists = {"chosen": [[assistant("a")], "b"], "rejected": [[assistant("c"), assistant("d")]]}
    form, item = parse_item({"prompt": "p", **lists}, "")
    assert form == "best of n"
    assert item.responses == ("a", "b", "Assistant: c\n\nAssistant: d")
    lists["rejected"] = [[user("p"), assistant("c")]]
    with pytest.raises(ValueError, match="line 2: .*without the prompt"):
        parse_item({"prompt": "p", **lists}, "f, line 2")


# --- files of pairs ------------------------------------------------------------------------------


def test_a_pair_knows_its_file_and_line(write):
    path = write(row(0), b"", row(1))
    first, second = load_pairs([path])
    assert first.where == f"{path}, line 1"
    assert second.where == f"{path}, line 3"


def test_files_follow_each_other(write):
    first = write(row(0, domain="chat"), row(1), row(2, domain="safety"), name="1.jsonl")
    second = write(row(3, domain="chat", subset="s"), name="2.jsonl")
    pairs = load_pairs([first, second])
    assert [pair.prompt for pair in pairs] == ["p0", "p1", "p2", "p3"]
    assert [pair.domain for pair in pairs] == ["chat", "", "safety", "chat"]
    assert pairs[-1].subset == "s"


def test_a_domain_takes_its_own_rows_and_those_that_name_none(write):
    path = write(row(0, domain="chat"), row(1), row(2, domain="safety"), row(3, domain=""))
    pairs = load_pairs([path], "chat")
    assert [(pair.prompt, pair.domain) for pair in pairs] == [
        ("p0", "chat"),
        ("p1", "chat"),
        ("p3", "chat"),
    ]


def test_a_domain_that_someone_adds_can_be_named_in_a_file(write, monkeypatch):
    path = write(row(domain="cooking"))
    with pytest.raises(ValueError, match='unknown domain "cooking": use reasoning, safety, chat'):
        load_pairs([path])
    monkeypatch.setitem(data.DOMAINS, "cooking", Domain("Tastier?", "Tasty?", "Tastier?"))
    assert load_pairs([path], "cooking")[0].domain == "cooking"


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"prompt": "p", "chosen": ', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["p"]', "no object, but"),
        ({"prompt": "p", "chosen": "c"}, 'no "rejected"'),
        ({"chosen": "c", "rejected": "r"}, '"prompt" is missing'),
        (row(chosen=None), '"chosen" is .*null'),
        (row(prompt=None), '"prompt" is .*null'),
        (row(rejected=3), '"rejected" is 3'),
        (row(chosen=["a", "b"]), "list of messages"),
        (row(chosen=[]), r'"chosen" is \[\]'),
        (row(prompt=[user(None)]), '"prompt" is .*list of messages'),
        (row(subset=3), '"subset" is 3'),
        (row(domain="cooking"), 'unknown domain "cooking"'),
        (row(domain=["chat"]), "unknown domain"),
    ],
)
def test_a_bad_line_17_is_named(write, line, message):
    path = write(*(row(i) for i in range(16)), line, row(17))
    with pytest.raises(ValueError, match=message) as error:
        load_pairs([path])
    text = str(error.value)
    assert text.startswith(f"{path}, line 17: ")
    assert "\n" not in text and len(text) < len(str(path)) + 250


def test_a_bad_line_of_another_domain_is_named_too(write):
    path = write(row(domain="chat"), row(domain="safety", chosen=None))
    with pytest.raises(ValueError, match='line 2: "chosen"'):
        load_pairs([path], "chat")


@pytest.mark.parametrize("forgotten_line", [1, 2])
def test_a_forgotten_prompt_is_not_taken_for_the_format_without_prompts(write, forgotten_line):
    rows = [row()]
    rows.insert(forgotten_line - 1, {"chosen": "It is so.", "rejected": "It is not."})
    with pytest.raises(ValueError, match='line 2: give "prompt" in all lines or in none'):
        load_pairs([write(*rows)])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.jsonl: No such file.*give a file"):
        load_pairs([tmp_path / "nowhere.jsonl"])
    with pytest.raises(ValueError, match="Is a directory"):
        load_pairs([tmp_path])


def test_a_file_without_pairs_is_named(write):
    good = write(row(), name="good.jsonl")
    with pytest.raises(ValueError, match="empty.jsonl: no pairs in it for domain all"):
        load_pairs([good, write(b"", b"  ", name="empty.jsonl")])
    with pytest.raises(ValueError, match="no pairs in it for domain chat"):
        load_pairs([write(row(domain="safety"))], "chat")


# --- the fingerprint -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "q"},
        {"chosen": "x"},
        {"rejected": "x"},
        {"chosen": "b", "rejected": "a"},  # the same lines, but for which is better
        {"domain": "safety"},
        {"prompt": "pa", "chosen": ""},  # the same letters, cut elsewhere
    ],
)
def test_the_fingerprint_changes_with_whatever_training_sees(change):
    pair = Pair("p", "a", "b", "subset", "chat")
    other = Pair("p", "c", "d")
    assert fingerprint([pair, other]) != fingerprint([pair._replace(**change), other])


def test_the_fingerprint_changes_with_the_order_and_the_number_of_pairs():
    one, two = Pair("p", "a", "b"), Pair("q", "a", "b")
    assert len({fingerprint(pairs) for pairs in ([one, two], [two, one], [one], [])}) == 4


def test_the_fingerprint_is_that_of_the_texts_wherever_the_file_is(write):
    here = load_pairs([write(row(0), row(1), name="a.jsonl")])
    there = load_pairs([write(b"", row(0, more=1), row(1), name="b.jsonl")])
    assert fingerprint(here) == fingerprint(there)


# --- the split -----------------------------------------------------------------------------------


def numbered(prompts):
    return [Pair(f"p{prompt}", "a", "b") for prompt in prompts]


def prompts_of(pairs, indices):
    return {pairs[i].prompt.strip().lower() for i in indices}


def test_a_prompt_is_on_one_side_only():
    pairs = numbered(i % 40 for i in range(200))
    pairs[7] = Pair(" P7\n", "a", "b")  # the same prompt but for case and space
    sides = split(pairs, 0.2, seed=1)
    assert sorted(sides.train + sides.held_out) == list(range(200))
    assert not prompts_of(pairs, sides.train) & prompts_of(pairs, sides.held_out)


def test_a_share_and_the_number_of_pairs_hold_out_the_same():
    pairs = numbered(i % 40 for i in range(200))
    by_share, by_number = split(pairs, 0.2, seed=1), split(pairs, 40, seed=1)
    assert len(by_share.held_out) == 40  # 8 prompts of 5 pairs
    assert by_share == by_number != split(pairs, 40, seed=2)


def test_prompts_are_drawn_until_there_are_enough_pairs():
    pairs = numbered([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert len(split(pairs, 1, seed=0).held_out) == 3  # one prompt
    assert len(split(pairs, 3, seed=0).held_out) == 3
    assert len(split(pairs, 4, seed=0).held_out) == 6  # two


@pytest.mark.parametrize("count, expected", [(50, 10), (500, 100), (1000, 200), (3000, 200)])
def test_by_default_a_fifth_of_the_pairs_is_held_out_but_not_more_than_200(count, expected):
    assert len(split(numbered(range(count)), -1, seed=1).held_out) == expected


def test_nothing_can_be_held_out():
    assert split(numbered(range(5)), 0, seed=1) == ([0, 1, 2, 3, 4], [])


def test_holding_out_everything_is_an_error():
    with pytest.raises(ValueError, match=r"holding out 5 of 6 pairs \(2 prompts\) leaves nothing"):
        split(numbered([0, 0, 0, 1, 1, 1]), 5, seed=1)


def test_the_order_of_the_pairs_does_not_matter():
    pairs = numbered(i % 40 for i in range(200))
    held_out = prompts_of(pairs, split(pairs, 40, seed=1).held_out)
    random.Random(0).shuffle(pairs)
    assert prompts_of(pairs, split(pairs, 40, seed=1).held_out) == held_out


@pytest.mark.parametrize(
    "held_out, seed, expected",
    [(4, 17, [0, 4, 6, 10]), (0.25, 17, [0, 4, 6, 10]), (3, 1, [1, 5, 7, 11])],
)
def test_the_same_prompts_are_held_out_as_in_the_first_edition(held_out, seed, expected):
    pairs = numbered(i % 6 for i in range(12))
    assert split(pairs, held_out, seed).held_out == expected  # what commit 4a59190 gave


# --- items ---------------------------------------------------------------------------------------


def test_a_pair_is_an_item_of_two():
    form, item = parse_item(row(subset="s", domain="chat"), "here")
    assert form == "pairs"
    assert (item.prompt, item.responses, item.good) == ("p0", ("good 0", "bad 0"), 1)
    assert (item.subset, item.domain, item.where) == ("s", "chat", "here")


def test_a_pair_without_a_prompt_takes_it_from_the_common_start():
    form, item = parse_item({"chosen": "one two three", "rejected": "one two four"}, "")
    assert form == "pairs without a prompt"
    assert (item.prompt, item.responses) == ("one two", (" three", " four"))


def test_lists_are_best_of_n_with_the_better_ones_first():
    fields = {"prompt": [user("Hi")], "chosen": ["a", "b"], "rejected": ["c", "\ud800"]}
    form, item = parse_item(fields, "")
    assert form == "best of n"
    assert (item.prompt, item.responses, item.good) == ("Hi", ("a", "b", "c", "\ufffd"), 2)
    assert item.tag == "" and not item.good_against_bad


def test_a_string_beside_a_list_is_a_list_of_one():
    form, item = parse_item({"prompt": "p", "chosen": "a", "rejected": ["b", "c"]}, "")
    assert form == "best of n"
    assert (item.responses, item.good) == (("a", "b", "c"), 1)


STYLES = {"prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}


@pytest.mark.parametrize(
    "style, domain",
    [
        ("chat", "chat"),
        ("code", "reasoning"),
        ("math", "reasoning"),
        ("safety-refuse", "safety"),
        ("safety-response", "safety"),
    ],
)
def test_three_by_three_styles_are_known_by_their_id(style, domain):
    form, item = parse_item({**STYLES, "id": f"{style}/3099"}, "")
    assert form == "3 x 3 styles"
    assert (item.subset, item.domain, item.good) == (style, domain, 3)
    assert item.good_against_bad  # the chosen ones are not compared with each other


@pytest.mark.parametrize("change", [{}, {"id": "zoo/1"}, {"id": "math/1", "rejected": ["d", "e"]}])
def test_other_lists_of_three_are_best_of_n(change):
    assert parse_item({**STYLES, **change}, "")[0] == "best of n"


def test_an_id_is_the_tag_of_a_tie_only():
    lists = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "id": "tied:4"}
    assert parse_item({**lists, "subset": "Ties"}, "")[1].tag == "tied:4"
    assert parse_item({**lists, "subset": "Focus"}, "")[1].tag == ""


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": "a", "chosen": "b"}, 'no "rejected"'),
        (row(chosen=None), '"chosen" is missing or null'),
        (row(chosen=["b"], rejected=[]), "chosen and rejected: give lists of strings"),
        (row(chosen=["b"], rejected=["c", 3]), "chosen and rejected: give lists of strings"),
        (row(chosen=["b"], rejected=None), "chosen and rejected: give lists of strings"),
        (row(prompt=None, chosen=["b"], rejected=["c"]), '"prompt" is missing or null'),
        (row(chosen=["b"], rejected=["c"], subset=3), '"subset" is 3'),
        (row(chosen=["b"], rejected=["c"], domain="cooking"), 'unknown domain "cooking"'),
    ],
)
def test_a_bad_item_is_one_line_that_names_its_place(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_item(fields, "f.jsonl, line 3")
    assert str(error.value).startswith("f.jsonl, line 3: ") and "\n" not in str(error.value)


# --- reading and writing -------------------------------------------------------------------------


@pytest.mark.parametrize("text, message", [("{", "not valid JSON"), ("[1,\n2]", "no object")])
def test_a_bad_json_file_is_one_line_that_names_it(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=f"x.json: {message}") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_a_json_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="x.json: No such file"):
        read_json(tmp_path / "x.json")


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"text": "é 😀", "list": [1, 2.5, None]}
    write_json(tmp_path / "folder/x.json", value)
    assert read_json(tmp_path / "folder/x.json") == value
    assert "é 😀" in (tmp_path / "folder/x.json").read_text(encoding="utf-8")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names_in(tmp_path) == ["file"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("")
    assert names_in(path) == ["new"] and names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_fails_half_way_changes_nothing_and_leaves_nothing(tmp_path, is_folder):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        if is_folder:
            temporary.mkdir()
        else:
            temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and names_in(tmp_path) == ["x"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / "x.tinyrm.tmp").mkdir()
    (tmp_path / "x.tinyrm.tmp/half").write_text("")
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("whole")
    assert names_in(tmp_path) == ["x"]


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_what_a_stranger_put_beside_a_file_stays(tmp_path):
    (tmp_path / "x.tmp").write_text("mine")
    write_json(tmp_path / "x", 1)
    assert (tmp_path / "x.tmp").read_text() == "mine"


def test_an_old_folder_comes_back_whole_or_new_and_never_half(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/old").write_text("old")

    def fail(path):
        raise OSError("killed")

    # nothing of the old folder is removed before the new one stands in its place
    monkeypatch.setattr("infra.files.shutil.rmtree", fail)
    with pytest.raises(OSError, match="killed"), replacing(tmp_path / "x") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]


def test_one_prompt_cannot_train_and_judge():
    with pytest.raises(ValueError, match="one prompt only .*: give --held-out 0, or more prompts"):
        split([Pair("p", "a", "b")] * 3, held_out=-1, seed=0)
