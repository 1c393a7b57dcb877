"""The paper's data from the Hub: the real client, the true schemas, invented rows, a local server.

Run: python -m pytest tests/test_hub_data.py   (offline: the "Hub" is tests/hub_server.py)
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hub_server import HubServer
from pyarrow.parquet import write_table

import data
from data import BENCHMARK, PKU, SKYWORK, WEBGPT, Pairs, hub_pairs, hub_rows


def parquet(rows: list[dict], **options) -> bytes:
    out = io.BytesIO()
    write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


def skywork(source: str, prompt: str, good="good", bad="bad") -> dict:
    def talk(answer):
        return [{"content": text, "role": role} for text, role in
                ((prompt, "user"), (answer, "assistant"))]
    return {"chosen": talk(good), "rejected": talk(bad), "source": source}


def pku(prompt: str, safe_0: bool, safe_1: bool) -> dict:
    row = {"prompt": prompt, "prompt_source": "x", "better_response_id": 0, "safer_response_id": 1}
    for k, safe in enumerate((safe_0, safe_1)):
        row |= {f"response_{k}": f"answer {k}", f"is_response_{k}_safe": safe,
                f"response_{k}_severity_level": 0, f"response_{k}_harm_category": {"Crime": False}}
    return row


def webgpt(prompt: str, score: float) -> dict:
    row = {"question": {"dataset": "eli5", "id": "1", "full_text": prompt}}
    for k, sign in enumerate((1, -1)):
        row |= {f"quotes_{k}": {"title": ["t"], "extract": ["e"]}, f"answer_{k}": f"answer {k} [1]",
                f"tokens_{k}": {"prefix": [1, 2], "completion": [3]}, f"score_{k}": sign * score}
    return row


def bench(prompt: str) -> dict:
    return {"prompt": prompt, "chosen": "c", "chosen_model": "m", "rejected": "r",
            "rejected_model": "m", "subset": "hep-cpp", "id": 1}


def jsonl(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


SKYWORK_ROWS = [skywork("magpie-ultra-v0.1", "Prove it"), skywork("OffsetBias", "Shown \n twice"),
                skywork("Magpie-Pro", "In the bench"), skywork("WildGuardMix", "How to harm"),
                skywork("HelpSteer2", "Hi")]


@pytest.fixture
def hub():
    with HubServer({
        f"dataset:{SKYWORK}": {"README.md": b"#", "data/train-00000-of-00001.parquet":
                               parquet(SKYWORK_ROWS, row_group_size=2)},
        f"dataset:{PKU}": {
            "data/Alpaca-7B/train.jsonl": jsonl([pku("p0", True, False), pku("p1", True, True)]),
            "data/Alpaca3-8B/train.jsonl": jsonl([pku("p2", False, True), pku("p3", False, False)]),
            "data/Alpaca-7B/test.jsonl": jsonl([pku("kept for tests", True, False)])},
        f"dataset:{WEBGPT}": {"webgpt_comparisons.py": b"raise SystemExit"},
        f"dataset:{WEBGPT}@refs/convert/parquet": {"default/train/0000.parquet": parquet(
            [webgpt("w0", 0.5), webgpt("w1", 0.0), webgpt("w2", -1.0)])},
        f"dataset:{BENCHMARK}": {
            "data/raw-00000-of-00001.parquet": parquet([bench("in THE  bench")]),
            "data/filtered-00000-of-00001.parquet": parquet([bench("shown twice")])},
        "dataset:sarahpann/skywork_reasoning": {"data/train-00000-of-00001.parquet": parquet(
            [{"question": "q0", "chosen": "c", "rejected": "r", "source": "magpie"}])},
    }) as server:
        yield server


def texts(paths, domain="") -> list[tuple]:
    return [(p.prompt, p.chosen, p.rejected, p.subset, p.domain) for p in Pairs(paths, domain)]


def test_each_domain_has_the_pairs_of_the_paper(hub, tmp_path):
    with hub.client(tmp_path):
        paths, said = hub_pairs("reasoning")
        assert texts(paths) == [("Prove it", "good", "bad", "magpie-ultra-v0.1", "reasoning")]
        assert "reasoning = 2 magpie (published 54,582: -54,580) - 1 with a prompt of" in said
        for repo in (SKYWORK, BENCHMARK):  # what was read can be had again
            assert f"{repo}@{hub.commit(f'dataset:{repo}')}" in said
        paths, said = hub_pairs("safety")
        assert texts(paths) == [("How to harm", "good", "bad", "WildGuardMix", "safety"),
                                ("p0", "answer 0", "answer 1", "PKU-SafeRLHF", "safety"),
                                ("p2", "answer 1", "answer 0", "PKU-SafeRLHF", "safety")]
        assert "1 offset (published 8,504: -8,503) - 1 with" in said and "2 PKU-SafeRLHF" in said
        paths, said = hub_pairs("chat")
        assert texts(paths) == [
            ("Hi", "good", "bad", "HelpSteer2", "chat"),
            ("w0", "answer 0 [1]", "answer 1 [1]", "webgpt_comparisons", "chat"),
            ("w2", "answer 1 [1]", "answer 0 [1]", "webgpt_comparisons", "chat")]
        assert "2 webgpt_comparisons (published 14,300: -14,298)" in said
        commits = {}  # what was taken is told, and gives the same again
        paths, said = hub_pairs("all", commits=commits)
        assert len(texts(paths, "all")) == 7 and said.count("; ") == 2
        assert [*commits] == [SKYWORK, BENCHMARK, PKU, WEBGPT]
        assert commits[WEBGPT] == hub.commit(f"dataset:{WEBGPT}@refs/convert/parquet")
        hub.repos[f"dataset:{PKU}@old"] = hub.repos[f"dataset:{PKU}"]
        hub.repos[f"dataset:{PKU}"] = {}
        assert hub_pairs("all", commits=dict(commits)) == (paths, said)
        hub.repos[f"dataset:{PKU}"] = hub.repos[f"dataset:{PKU}@old"]
        paths, said = hub_pairs("reasoning", author=True)
        assert texts(paths) == [("q0", "c", "r", "skywork_reasoning", "reasoning")]
        assert "sarahpann/skywork_reasoning@" in said


def test_a_second_call_fetches_nothing_and_needs_no_network(hub, tmp_path):
    with hub.client(tmp_path):
        first = hub_pairs("safety")
        stamp = first[0][0].stat().st_mtime_ns
        hub.requests.clear()
        assert hub_pairs("safety") == first and first[0][0].stat().st_mtime_ns == stamp
        assert not [asked for asked in hub.requests if "/resolve/" in asked]
        hub.gone()
        assert hub_pairs("safety") == first
        with pytest.raises(ValueError, match="not come from the Hub .*check name, network"):
            hub_pairs("chat")


def test_new_data_make_a_new_file_and_a_commit_brings_the_old_one_back(hub, tmp_path):
    key = f"dataset:{SKYWORK}"
    with hub.client(tmp_path):
        old, commit = hub_pairs("reasoning")[0], hub.commit(key)
        rows = [skywork("magpie", "A new one"), *SKYWORK_ROWS]
        hub.repos[key] = {"data/train-00000-of-00001.parquet": parquet(rows)}
        new = hub_pairs("reasoning")[0]
        assert new != old and len(Pairs(new)) == 2
        assert hub_pairs("reasoning", commits={SKYWORK: commit})[0] == old
        suffixes = sorted(path.suffix for path in old[0].parent.iterdir())
        assert suffixes == [".jsonl", ".jsonl", ".txt", ".txt"]


def test_an_unknown_source_is_an_error_with_the_counts_and_leaves_nothing(hub, tmp_path):
    rows = [*SKYWORK_ROWS, skywork("Mystery", "?"), skywork("Mystery", "!")]
    hub.repos[f"dataset:{SKYWORK}"] = {"data/train-0.parquet": parquet(rows)}
    with hub.client(tmp_path):
        with pytest.raises(ValueError, match=r"not know \['Mystery'\] of .*'Mystery': 2"):
            hub_pairs("reasoning")
        assert not list((tmp_path / "tinyrm").iterdir())


def test_a_row_that_is_no_pair_is_left_out_and_said(hub, tmp_path):
    odd = skywork("magpie", "Prove it") | {"rejected": [{"content": "Else", "role": "user"}] * 2}
    hub.repos[f"dataset:{SKYWORK}"] = {"data/train-0.parquet": parquet([odd, *SKYWORK_ROWS])}
    with hub.client(tmp_path):
        paths, said = hub_pairs("reasoning")
        assert len(Pairs(paths)) == 1
        assert "(1 rows that are no pairs or ties left out)" in said


def test_the_contaminated_version_is_refused(hub, tmp_path):
    with hub.client(tmp_path), pytest.raises(ValueError, match="contaminated.*v0.2"):
        hub_rows("Skywork/Skywork-Reward-Preference-80K-v0.1", "data/")
    assert not hub.requests


def test_a_column_that_is_not_there_is_named(hub, tmp_path):
    hub.repos[f"dataset:{BENCHMARK}"] = {"data/raw-0.parquet": parquet([{"text": "x"}])}
    with hub.client(tmp_path), pytest.raises(ValueError, match="no column 'prompt'"):
        hub_pairs("reasoning")


def test_hub_rows_streams_parquet_json_and_json_lines(tmp_path):
    rows = [{"id": i, "prompt": f"p{i}"} for i in range(1000)]
    files = {"a.parquet": parquet(rows), "b.json": json.dumps(rows).encode(),
             "c.jsonl": jsonl(rows)}
    with HubServer({"dataset:org/set": files}) as hub, hub.client(tmp_path):
        for name in files:
            commit, read = hub_rows("org/set", name)
            assert commit == hub.commit("dataset:org/set") and list(read) == rows
        with pytest.raises(ValueError, match="no file d"):
            hub_rows("org/set", "d")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    path, most = tmp_path / "rows.parquet", []
    for count in (3000, 9000):
        rows = [skywork("magpie", f"{i} " + "x" * 2000) for i in range(count)]
        path.write_bytes(parquet(rows, row_group_size=500))
        del rows
        pa.default_memory_pool().release_unused()
        before = pa.total_allocated_bytes()
        most.append(max(pa.total_allocated_bytes() - before for _ in data._file_rows(path)))
    assert 0 < most[1] < 1.2 * most[0]


# --- what goes wrong -------------------------------------------------------------------------


@pytest.fixture
def small():
    files = {"a.jsonl": b'{"x": 1}\n', "big.jsonl": b'{"x": 2}\n' * 9999}
    with HubServer({"dataset:org/set": files}) as server:
        yield server


def refused(message: str, **options):
    with pytest.raises(ValueError, match=message) as error:
        hub_rows("org/set", "a", **options)
    assert "\n" not in str(error.value) and str(error.value).startswith("org/set, revision")


def test_every_refusal_is_one_line_that_says_what_to_do(small, tmp_path):
    with small.client(tmp_path):
        with pytest.raises(ValueError, match="org/none.*RepositoryNotFoundError.*check name"):
            hub_rows("org/none", "")
        refused("revision v9.*RevisionNotFoundError", revision="v9")
        small.gated.add("org/set")
        refused("GatedRepoError.*restricted")
    small.gated.clear()
    small.token = "hf_right"
    with small.client(tmp_path, HF_TOKEN="hf_wrong"):
        refused("401.*check .*HF_TOKEN")
    with small.client(tmp_path, HF_TOKEN="hf_right"):
        assert [*hub_rows("org/set", "a")[1]] == [{"x": 1}]
    small.gone()
    with small.client(tmp_path / "empty"):
        refused("LocalEntryNotFoundError.*check .*network")
    with small.client(tmp_path / "empty", HF_HUB_OFFLINE="1"):
        refused("LocalEntryNotFoundError.*check .*network")


def test_a_busy_hub_and_a_connection_cut_half_way_are_tried_again(small, tmp_path):
    with small.client(tmp_path):
        small.busy = 1
        assert [*hub_rows("org/set", "a")[1]] == [{"x": 1}]
        small.cut = [1000]
        assert len([*hub_rows("org/set", "big")[1]]) == 9999
        assert sum("GET /cdn/" in asked for asked in small.requests) == 2  # the rest, not the whole


def test_a_download_that_breaks_off_for_good_is_an_error_and_goes_on_next_time(small, tmp_path):
    with small.client(tmp_path):
        small.cut = [1000] + [0] * 20
        with pytest.raises(ValueError, match="not come from the Hub .*check name, network, disk"):
            hub_rows("org/set", "big")
        small.cut = []
        assert len([*hub_rows("org/set", "big")[1]]) == 9999


def test_the_address_of_the_hub_is_taken_from_the_environment(hub, tmp_path):
    code = "import data; paths, said = data.hub_pairs('reasoning'); print(said, *paths, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parent, text=True,
                         capture_output=True, env={**os.environ, **hub.env(tmp_path)})
    said, path = run.stdout.splitlines()
    assert said.startswith("reasoning = ") and len(Pairs(path)) == 1
    assert run.stderr.startswith(f"making {path}")
