"""What --data can name. The paper's data from the Hub: the real client, the true schemas, invented
rows, a local server.

Run: python -m pytest tests/test_sources.py   (offline: the "Hub" is tests/hub_server.py)
"""

import json
import os
import subprocess
import sys

import pytest
from hub_server import (
    HubServer,
    benchmark_repositories,
    json_lines,
    parquet,
    pku_row,
    skywork_row,
    webgpt_row,
)

import data
from data import Domain
from infra import sources
from infra.hub import ROOT, fetch_dataset
from infra.pairs import load_pairs
from infra.sources import (
    PKU,
    SKYWORK,
    SOURCES,
    WEBGPT,
    check_names,
    convert,
    load_sets,
    pinned_commits,
    repositories,
)

FEW = "; few pairs to judge by: their accuracy will say little, see --held-out"
BENCHES = [
    "allenai/reward-bench",
    "allenai/reward-bench-2",
    "THU-KEG/RM-Bench",
    "ScalerLab/JudgeBench",
]
SKYWORK_ROWS = [
    skywork_row("magpie-ultra-v0.1", "Prove it"),
    skywork_row("OffsetBias", "Shown \n twice"),
    skywork_row("Magpie-Pro", "In the bench"),
    skywork_row("WildGuardMix", "How to harm"),
    skywork_row("HelpSteer2", "Hi"),
]


@pytest.fixture
def hub():
    with HubServer({
        f"dataset:{SKYWORK}": {
            "README.md": b"#",
            "data/train-00000-of-00001.parquet": parquet(SKYWORK_ROWS, row_group_size=2),
        },
        f"dataset:{PKU}": {"round0/train.jsonl.xz": b"?"},
        f"dataset:{PKU}@refs/convert/parquet": {
            "default/train/0000.parquet": parquet(
                [pku_row("p0", 0), pku_row("p1", 2), pku_row("p2", 1)]
            ),
            "default/test/0000.parquet": parquet([pku_row("kept for tests", 0)]),
        },
        f"dataset:{WEBGPT}": {"webgpt_comparisons.py": b"raise SystemExit"},
        f"dataset:{WEBGPT}@refs/convert/parquet": {
            "default/train/0000.parquet": parquet(
                [webgpt_row("w0", 0.5), webgpt_row("w1", 0.0), webgpt_row("w2", -1.0)]
            )
        },
        **benchmark_repositories(
            rewardbench=["in THE  bench", "shown twice"],
            rewardbench2=["In the bench", "two"],
            rmbench=["three"],
            judgebench=["four"],
        ),
        "dataset:sarahpann/skywork_reasoning": {
            "data/train-00000-of-00001.parquet": parquet(
                [{"question": "q0", "chosen": "c", "rejected": "r", "source": "magpie"}]
            )
        },
    }) as server:  # fmt: skip
        yield server


def texts(files) -> list[tuple]:
    return [pair._replace(where="")[:5] for pair in load_pairs(files)]


def set_skywork(hub, rows):
    hub.repos[f"dataset:{SKYWORK}"] = {"data/train-0.parquet": parquet(rows)}


# --- the paper's pairs ---------------------------------------------------------------------------


def test_reasoning_is_magpie_less_the_prompts_of_the_benchmarks(hub, tmp_path):
    with hub.client(tmp_path):
        made = convert("reasoning")
    assert texts(made.files) == [("Prove it", "good", "bad", "magpie-ultra-v0.1", "reasoning")]
    assert made.note == (
        "reasoning = 2 magpie (published 54,582: -54,580) - 1 with a prompt of a benchmark "
        "(rewardbench 1, rewardbench2 1, rmbench 0, judgebench 0, left out 0 rows that are no "
        f"pairs or ties), from {SKYWORK}@{made.commits[SKYWORK][:8]}"
    )


@pytest.mark.parametrize("prompt, name", [("TWO", "rewardbench2"), ("three ", "rmbench"),
                                          ("Four", "judgebench")])  # fmt: skip
def test_the_prompts_of_each_benchmark_are_removed_and_counted(hub, tmp_path, prompt, name):
    set_skywork(hub, [skywork_row("magpie", prompt), skywork_row("magpie", "Prove it")])
    with hub.client(tmp_path):
        made = convert("reasoning")
    assert [pair[0] for pair in texts(made.files)] == ["Prove it"]
    assert "- 1 with a prompt of a benchmark" in made.note and f"{name} 1" in made.note


def test_rows_of_magpie_ultra_stay_and_tokens_of_templates_are_counted(hub, tmp_path):
    rows = [
        skywork_row("magpie_ultra", f"p{i}", good)
        for i, good in enumerate(["a <|im_start|>", "<|eot_id|> b", "[INST] c", "a < b | c > d"])
    ]
    set_skywork(hub, rows)
    with hub.client(tmp_path):
        made = convert("reasoning")
    assert len(texts(made.files)) == 4
    assert "kept 3 with tokens of a chat template" in made.note


def test_safety_is_offsetbias_wildguard_and_the_safer_response_of_pku(hub, tmp_path):
    with hub.client(tmp_path):
        made = convert("safety")
    assert texts(made.files) == [
        ("How to harm", "good", "bad", "WildGuardMix", "safety"),
        ("p0", "answer 0", "answer 1", "PKU-SafeRLHF-30K", "safety"),
        ("p2", "answer 1", "answer 0", "PKU-SafeRLHF-30K", "safety"),
    ]
    assert "1 offset (published 8,504: -8,503) - 1 with" in made.note
    assert "2 PKU-SafeRLHF-30K (published 26,874: -26,872) - 0 with" in made.note
    assert "left out 1 rows that are no pairs or ties, by safer_response_id; which" in made.note


def test_chat_is_helpsteer_and_webgpt_without_ties(hub, tmp_path):
    with hub.client(tmp_path):
        made = convert("chat")
    assert texts(made.files) == [
        ("Hi", "good", "bad", "HelpSteer2", "chat"),
        ("w0", "answer 0 [1]", "answer 1 [1]", "webgpt_comparisons", "chat"),
        ("w2", "answer 1 [1]", "answer 0 [1]", "webgpt_comparisons", "chat"),
    ]
    assert "2 webgpt_comparisons (published 14,300: -14,298)" in made.note


def test_all_is_a_file_of_each_domain(hub, tmp_path):
    with hub.client(tmp_path):
        made = convert("all")
        parts = [convert(domain) for domain in ("reasoning", "safety", "chat")]
    assert made.files == [part.files[0] for part in parts]
    assert made.note == "; ".join(part.note for part in parts)
    assert len(texts(made.files)) == 7


def test_the_authors_sets_are_read_by_their_own_columns(hub, tmp_path):
    with hub.client(tmp_path):
        made = convert("reasoning", author=True)
    assert texts(made.files) == [("q0", "c", "r", "skywork_reasoning", "reasoning")]
    assert "1 skywork_reasoning - 0 with" in made.note


def test_a_row_that_is_no_pair_is_left_out_and_counted(hub, tmp_path):
    odd = skywork_row("magpie", "Prove it")
    odd["rejected"] = [{"content": "Else", "role": "user"}] * 2
    set_skywork(hub, [odd, *SKYWORK_ROWS])
    with hub.client(tmp_path):
        made = convert("reasoning")
    assert len(texts(made.files)) == 1
    assert "left out 1 rows that are no pairs or ties" in made.note


def test_a_row_of_nulls_is_counted(hub, tmp_path):
    set_skywork(hub, [skywork_row("magpie", "p") | {"source": None}, *SKYWORK_ROWS])
    with hub.client(tmp_path):
        made = convert("reasoning")
    assert len(texts(made.files)) == 1
    assert "left out 1 rows that are no pairs or ties" in made.note and "0 unreadable" in made.note


def test_a_held_out_share_of_nanos_pairs_is_said_to_change_nothing():
    note = sources.load_sets(["nano"], "chat", held_out=0.5, limit=0, seed=0).note
    assert note.endswith("; --held-out does not change them")


def test_an_unknown_source_is_an_error_with_the_counts_and_leaves_nothing(hub, tmp_path):
    rows = [*SKYWORK_ROWS, skywork_row("Mystery", "?"), skywork_row("Mystery", "!")]
    set_skywork(hub, rows)
    with hub.client(tmp_path):
        with pytest.raises(ValueError, match=r"not know \['Mystery'\] of .*'Mystery': 2"):
            convert("reasoning")
    assert not list((tmp_path / "tinyrm").iterdir())


def test_a_source_that_fits_two_parts_is_unknown(hub, tmp_path):
    set_skywork(hub, [skywork_row("magpie-helpsteer", "?")])
    with hub.client(tmp_path), pytest.raises(ValueError, match=r"know \['magpie-helpsteer'\]"):
        convert("reasoning")


@pytest.mark.parametrize("repository, column", [(BENCHES[2], "prompt"), (SKYWORK, "source")])
def test_a_column_that_is_not_there_is_named(hub, tmp_path, repository, column):
    hub.repos[f"dataset:{repository}"] = {
        "data/a.parquet": parquet([{"text": "x"}]),
        "total_dataset.json": b'[{"text": "x"}]',
    }
    with hub.client(tmp_path):
        with pytest.raises(ValueError, match=f"{repository}@.*: no column '{column}'"):
            convert("reasoning")


# --- commits and the cache -----------------------------------------------------------------------


def test_what_was_read_is_returned_with_its_commits_and_stands_in_the_note(hub, tmp_path):
    with hub.client(tmp_path):
        made = convert("all")
    assert list(made.commits) == [SKYWORK, *BENCHES, PKU, WEBGPT]
    assert made.commits[SKYWORK] == hub.commit(f"dataset:{SKYWORK}")
    assert made.commits[WEBGPT] == hub.commit(f"dataset:{WEBGPT}@refs/convert/parquet")
    for repository in (SKYWORK, PKU, WEBGPT):
        assert f"{repository}@{made.commits[repository][:8]}" in made.note


def test_the_callers_commits_are_left_as_they_are(hub, tmp_path):
    given = {"": "of the model"}
    with hub.client(tmp_path):
        made = convert("reasoning", commits=given)
    assert given == {"": "of the model"}
    assert list(made.commits) == [SKYWORK, *BENCHES]


def test_given_commits_bring_the_same_pairs_back_when_main_has_moved_on(hub, tmp_path):
    with hub.client(tmp_path):
        old = convert("all")
        for key in (f"dataset:{SKYWORK}", f"dataset:{PKU}@refs/convert/parquet"):
            hub.repos[f"{key.partition('@')[0]}@old"] = hub.repos[key]
        set_skywork(hub, [skywork_row("magpie", "A new one"), *SKYWORK_ROWS])
        hub.repos[f"dataset:{PKU}@refs/convert/parquet"] = {}
        assert convert("all", commits=old.commits) == old


def test_all_domains_take_a_repository_at_one_commit(hub, tmp_path, monkeypatch):
    with hub.client(tmp_path):
        first = convert("reasoning").commits[SKYWORK]
        hub.repos[f"dataset:{SKYWORK}@old"] = hub.repos[f"dataset:{SKYWORK}"]
        asked = []

        def fetch(repository, patterns, revision=None):
            """As if main moved on after the first domain."""
            if repository == SKYWORK:
                asked.append(revision)
                revision = revision or first
                set_skywork(hub, [skywork_row("magpie", "A new one"), *SKYWORK_ROWS])
            return fetch_dataset(repository, patterns, revision)

        monkeypatch.setattr(sources, "fetch_dataset", fetch)
        assert convert("all").commits[SKYWORK] == first
        assert asked == [None, first, first]


def test_new_data_make_a_new_file_beside_the_old_one(hub, tmp_path):
    with hub.client(tmp_path):
        old = convert("reasoning").files[0]
        set_skywork(hub, [skywork_row("magpie", "A new one"), *SKYWORK_ROWS])
        new = convert("reasoning").files[0]
    assert len(load_pairs([old])) == 1 and len(load_pairs([new])) == 2
    suffixes = sorted(path.suffix for path in old.parent.iterdir())
    assert suffixes == [".jsonl", ".jsonl", ".txt", ".txt"]


def test_a_second_call_converts_and_fetches_nothing(hub, tmp_path):
    with hub.client(tmp_path):
        first = convert("safety")
        stamp = first.files[0].stat().st_mtime_ns
        hub.requests.clear()
        assert convert("safety") == first
        assert first.files[0].stat().st_mtime_ns == stamp
    assert not hub.downloads()


def test_a_second_call_needs_no_network(hub, tmp_path):
    with hub.client(tmp_path):
        first = convert("safety")
        hub.gone()
        assert convert("safety") == first
        with pytest.raises(ValueError, match="not come from the Hub .*check the name, the network"):
            convert("chat")


def test_a_conversion_that_was_lost_in_part_is_made_again(hub, tmp_path):
    with hub.client(tmp_path):
        first = convert("reasoning")
        first.files[0].with_suffix(".txt").unlink()
        assert convert("reasoning") == first


def test_the_address_of_the_hub_is_taken_from_the_environment(hub, tmp_path):
    code = "from infra.sources import convert; made = convert('reasoning'); print(*made.files)"
    env = {**os.environ, **hub.env(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, env=env
    )
    file = run.stdout.strip()
    assert len(load_pairs([file])) == 1
    assert run.stderr.startswith(f"making {file}")


# --- the table of domains ------------------------------------------------------------------------


def test_every_repository_that_a_domain_names_has_a_rule():
    for domain in data.DOMAINS.values():
        assert {*domain.sources, *domain.author_sources} <= SOURCES.keys()


def test_a_domains_repositories_end_with_those_whose_prompts_are_left_out():
    assert repositories("reasoning") == [SKYWORK, *BENCHES]
    assert repositories("all") == [SKYWORK, PKU, WEBGPT, *BENCHES]
    assert repositories("reasoning", author=True) == ["sarahpann/skywork_reasoning", *BENCHES]


COOKING = Domain("Which is tastier?", "Is it tasty?", "Which is tastier?")


def test_a_domain_that_names_no_repositories_is_one_line(monkeypatch):
    monkeypatch.setitem(data.DOMAINS, "cooking", COOKING)
    for author, flag in ((False, "--data hub:"), (True, "--data hub:author:")):
        with pytest.raises(ValueError, match="domain cooking names no rep.*give files") as error:
            repositories("cooking", author)
        assert str(error.value).startswith(flag) and "\n" not in str(error.value)


def test_all_passes_over_a_domain_that_names_no_repositories(hub, tmp_path, monkeypatch):
    with hub.client(tmp_path):
        before = convert("all")
        monkeypatch.setitem(data.DOMAINS, "cooking", COOKING)
        assert convert("all") == before


def test_a_domain_that_someone_adds_reads_a_repository_of_pairs_without_a_rule(
    hub, tmp_path, monkeypatch
):
    rows = [{"prompt": "Soup?", "chosen": "Salt.", "rejected": "Sand."}]
    hub.repos["dataset:org/recipes"] = {"data/a.jsonl": json_lines(rows)}
    cooking = Domain("Which is tastier?", "Is it tasty?", "?", sources=("org/recipes",))
    monkeypatch.setitem(data.DOMAINS, "cooking", cooking)
    with hub.client(tmp_path):
        made = convert("cooking")
        assert texts(made.files) == [("Soup?", "Salt.", "Sand.", "", "cooking")]
        assert made.note.startswith("cooking = 1 recipes - 0 with a prompt of a benchmark")
        assert texts(convert("all").files)[-1] == ("Soup?", "Salt.", "Sand.", "", "cooking")


# --- what --data can name ------------------------------------------------------------------------


def write_pairs(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(prompt, **fields):
    return {"prompt": prompt, "chosen": "c", "rejected": "r", **fields}


def test_nano_brings_its_own_test_pairs():
    sets = load_sets(["nano"], "chat", held_out=0.5, limit=0, seed=0)
    assert sets.train == load_pairs([ROOT / "nano/pairs/chat.train.jsonl"])
    assert sets.held_out == load_pairs([ROOT / "nano/pairs/chat.choose.jsonl"])
    assert sets.test == load_pairs([ROOT / "nano/pairs/chat.test.jsonl"])
    assert sets.commits == {}


def test_nano_of_all_domains_is_nano_of_each_in_the_order_of_the_table():
    each = [load_sets(["nano"], domain, 0, 0, 0) for domain in data.DOMAINS]
    whole = load_sets(["nano"], "all", 0, 0, 0)
    assert whole.train == [pair for sets in each for pair in sets.train]
    assert whole.held_out == [pair for sets in each for pair in sets.held_out]
    assert whole.test == [pair for sets in each for pair in sets.test]


def test_a_domain_that_nano_lacks_is_one_line_and_all_passes_over_it(monkeypatch):
    before = load_sets(["nano"], "all", 0, 0, 0)
    monkeypatch.setitem(data.DOMAINS, "cooking", COOKING)
    assert load_sets(["nano"], "all", 0, 0, 0) == before
    with pytest.raises(ValueError, match="--data nano: .*no cooking.train.jsonl.*give files"):
        load_sets(["nano"], "cooking", 0, 0, 0)


def test_pairs_of_nano_that_name_no_domain_are_of_that_of_their_file(tmp_path, monkeypatch):
    for domain in ("chat", "cooking"):
        write_pairs(tmp_path / f"{domain}.train.jsonl", row(f"{domain}?"))
        write_pairs(tmp_path / f"{domain}.choose.jsonl", row(f"{domain}."))
        write_pairs(tmp_path / f"{domain}.test.jsonl", row(f"{domain}!"))
    monkeypatch.setattr(sources, "NANO_PAIRS", tmp_path)
    monkeypatch.setitem(data.DOMAINS, "cooking", COOKING)
    sets = load_sets(["nano"], "all", 0, 0, 0)
    assert [(pair.prompt, pair.domain) for pair in sets.train] == [
        ("chat?", "chat"),
        ("cooking?", "cooking"),
    ]


def test_files_are_split_by_prompt(tmp_path):
    rows = [row(f"p{i % 6}", chosen=f"c{i}") for i in range(12)]
    files = [write_pairs(tmp_path / "a.jsonl", *rows[:6]), write_pairs(tmp_path / "b", *rows[6:])]
    sets = load_sets(files, "all", held_out=4, limit=0, seed=17)
    assert [pair.chosen for pair in sets.held_out] == ["c0", "c4", "c6", "c10"]  # see test_pairs
    assert len(sets.train) == 8
    assert sets.note == f"{files[0]} {files[1]}; 4 held out, by prompt{FEW}"


def test_a_limit_draws_training_pairs_by_the_seed_and_keeps_their_order(tmp_path):
    file = write_pairs(tmp_path / "a.jsonl", *(row(f"p{i}") for i in range(40)))
    whole = load_sets([file], "all", held_out=4, limit=0, seed=17)
    some = load_sets([file], "all", held_out=4, limit=5, seed=17)
    indices = [whole.train.index(pair) for pair in some.train]
    assert indices == [4, 15, 21, 26, 33]  # what commit 4a59190 gave
    assert some.held_out == whole.held_out
    assert len(load_sets([file], "all", held_out=4, limit=99, seed=17).train) == 36


def test_files_give_a_domain_its_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(data.DOMAINS, "cooking", COOKING)
    rows = [row("p"), row("q", domain="chat"), row("r", domain="cooking")]
    sets = load_sets([write_pairs(tmp_path / "a.jsonl", *rows)], "cooking", 0, 0, 0)
    assert [(pair.prompt, pair.domain) for pair in sets.train] == [
        ("p", "cooking"),
        ("r", "cooking"),
    ]


def test_the_hub_is_converted_and_split_by_prompt(hub, tmp_path):
    with hub.client(tmp_path):
        sets = load_sets(["hub"], "safety", held_out=1, limit=0, seed=0)
    assert (len(sets.train), len(sets.held_out)) == (2, 1)
    assert sets.note.startswith("safety = 1 offset")
    assert sets.note.endswith(f"; 1 held out, by prompt{FEW}")
    assert list(sets.commits) == [SKYWORK, PKU, *BENCHES]


def test_the_hub_takes_the_commits_that_are_given(hub, tmp_path):
    with hub.client(tmp_path):
        old = load_sets(["hub"], "reasoning", 0, 0, 0)
        hub.repos[f"dataset:{SKYWORK}@old"] = hub.repos[f"dataset:{SKYWORK}"]
        set_skywork(hub, [skywork_row("magpie", "A new one"), *SKYWORK_ROWS])
        words = [f"{repository}={commit}" for repository, commit in old.commits.items()]
        assert load_sets(["hub"], "reasoning", 0, 0, 0, ["abc", *words]) == old
        assert len(load_sets(["hub"], "reasoning", 0, 0, 0).train) == 2


def test_the_authors_sets_are_named_hub_author(hub, tmp_path):
    with hub.client(tmp_path):
        sets = load_sets(["hub:author"], "reasoning", 0, 0, 0)
    assert [pair.prompt for pair in sets.train] == ["q0"]


# --- a data set on the Hub by its name -----------------------------------------------------------

UF = "trl-lib/ultrafeedback_binarized"


def uf_row(i, better=8.0, worse=2.0) -> dict:
    return {**skywork_row("x", f"p{i}"), "score_chosen": better, "score_rejected": worse}


UF_ROWS = [uf_row(0), uf_row(1, 5.0, 5.0), *(uf_row(i) for i in range(2, 12))]


@pytest.mark.parametrize(
    "name, body",
    [
        ("data/train-00000-of-00001.parquet", parquet(UF_ROWS)),
        ("train.jsonl", json_lines(UF_ROWS)),
        ("default/train/0000.parquet", parquet(UF_ROWS)),
        ("train.json", json.dumps(UF_ROWS).encode()),
    ],
)
def test_a_data_set_on_the_hub_is_its_split_train(hub, tmp_path, name, body):
    tests = parquet([uf_row(99)])
    hub.repos[f"dataset:{UF}"] = {
        name: body,
        "data/test-0.parquet": tests,
        "data/train_gen-0.parquet": tests,
        "README.md": b"#",
    }
    with hub.client(tmp_path):
        sets = load_sets([UF], "chat", held_out=2, limit=0, seed=0)
    assert sorted(pair.prompt for pair in sets.train + sets.held_out) == sorted(
        f"p{i}" for i in range(12) if i != 1
    )
    assert {pair.domain for pair in sets.train} == {"chat"}
    assert sets.commits == {UF: hub.commit(f"dataset:{UF}")}
    assert sets.note == (
        f"{UF}; left out 1 rows whose score_chosen is not above score_rejected; 2 held out, by "
        f"prompt{FEW}"
    )


def test_a_data_set_by_name_can_be_pinned_and_stand_next_to_files(hub, tmp_path):
    hub.repos[f"dataset:{UF}@old"] = {"train.jsonl": json_lines(UF_ROWS[:3])}
    hub.repos[f"dataset:{UF}"] = {"train.jsonl": json_lines(UF_ROWS)}
    old = hub.commit(f"dataset:{UF}@old")
    file = write_pairs(tmp_path / "a.jsonl", row("mine"))
    with hub.client(tmp_path):
        sets = load_sets([file, UF], "all", 0, 0, 0, [f"{UF}={old}"])
    assert [pair.prompt for pair in sets.train] == ["mine", "p0", "p2"]
    assert sets.commits == {UF: old}


@pytest.mark.parametrize(
    "files, found",
    [
        (["data/test-0.parquet"], "has none"),
        (["en/train-0.parquet", "de/train-0.parquet"], "has de/train-0.parquet, en/train-0.parq"),
        (["train.jsonl", "train.parquet"], "has train.jsonl, train.parquet"),
    ],
)
def test_a_data_set_without_one_split_train_is_one_line_with_what_it_has(
    hub, tmp_path, files, found
):
    hub.repos[f"dataset:{UF}"] = {name: b"x" for name in files}
    with hub.client(tmp_path), pytest.raises(ValueError, match=f"--data {UF}: .*{found}") as error:
        load_sets([UF], "chat", 0, 0, 0)
    assert "\n" not in str(error.value)


def test_the_contaminated_set_is_refused_by_name(hub, tmp_path):
    name = SKYWORK.replace("v0.2", "v0.1")
    with hub.client(tmp_path), pytest.raises(ValueError, match=f"use {SKYWORK}"):
        load_sets([name], "chat", 0, 0, 0)


def test_a_file_or_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").write_text("")
    names = ["data/mine", "data/none.jsonl", "./data", "/data", "~/data", "a/b/c", "nano", UF]
    assert [name for name in names if sources.is_repository(name)] == [UF]


@pytest.mark.parametrize(
    "names", [["auto"], ["nano"], ["hub"], ["hub:author"], ["a.jsonl"], ["hubby", "nano.jsonl"]]
)
def test_names_that_can_be_given(names):
    check_names(names)
    check_names(tuple(names))


@pytest.mark.parametrize(
    "names", [["nano", "a.jsonl"], ["hub", "nano"], ["a.jsonl", "hub:author"], ["hub:x"], ["auto:"]]
)
def test_names_are_never_mixed_with_files(names):
    with pytest.raises(ValueError, match="--data .*: give nano, hub, hub:author or files"):
        check_names(names)


# --- --revision ----------------------------------------------------------------------------------


def test_revision_pins_the_model_and_the_repositories_in_use():
    words = ["abc", f"{SKYWORK}=def"]
    assert pinned_commits(words, ["hub"], "reasoning") == {"": "abc", SKYWORK: "def"}
    assert pinned_commits(["abc"], ["nano"], "reasoning") == {"": "abc"}


def test_a_repository_that_is_not_in_use_is_one_line_that_names_those():
    words = [f"{SKYWORK}=def"]
    with pytest.raises(ValueError, match=f"in use, here sarahpann/.*, {BENCHES[-1]}$"):
        pinned_commits(words, ["hub:author"], "reasoning")
    for names in (["nano"], ["a.jsonl"]):
        with pytest.raises(ValueError, match=f"--revision {words[0]}: .*in use, here none$"):
            pinned_commits(words, names, "reasoning")
        with pytest.raises(ValueError, match="in use, here none$"):
            load_sets(names, "reasoning", 0, 0, 0, words)
