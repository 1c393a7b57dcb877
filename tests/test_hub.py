"""The Hub: names, models and data sets fetched with the real client, and what goes wrong in one
line; published weights judge as in transformers and peft; a run from the Hub is pinned to commits.

Run: python -m pytest tests/test_hub.py   (offline: the "Hub" is tests/hub_server.py)
"""

import hashlib

import peft
import pytest
import torch
from hub_server import HubServer, benchmark_repositories, json_lines, parquet, skywork_row
from huggingface_hub import snapshot_download
from safetensors.torch import load
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM

import evaluate
import tinyrm
import train
from infra import plan
from infra.hub import (
    MODEL_NAMES,
    ROOT,
    commit_of,
    fetch_dataset,
    fetch_model,
    fetch_pinned,
    parse_revisions,
    version_of,
)
from infra.sources import SKYWORK
from infra.tables import read_rows
from tinyrm import read_json


def files_of(folder) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# files that real repositories have and nothing here reads
UNUSED = {
    "README.md": b"# a card",
    "pytorch_model.bin": b"x" * 5000,
    "onnx/model.onnx": b"x",
    "training_args.bin": b"x",
    "checkpoint-9/model.safetensors": b"x",
    "optimizer.pt": b"x",
}


@pytest.fixture
def hub(tiny):
    with HubServer({"model:org/base": files_of(tiny) | UNUSED}) as server:
        yield server


@pytest.fixture
def data_hub():
    files = {"data/a.jsonl": b'{"x": 1}\n', "data/b.jsonl": b'{"x": 2}\n', "c.json": b"[]"}
    large = {"large.jsonl": json_lines([{"x": 2}] * 9999)}
    with HubServer({"dataset:org/set": files | large}) as server:
        yield server


# --- names ---------------------------------------------------------------------------------------


def test_nano_is_a_folder_of_the_checkout():
    assert fetch_model("nano") == ROOT / "nano"
    assert fetch_model("nano-instruct") == ROOT / "nano/instruct"
    assert fetch_model("nano-causal") == ROOT / "nano/causal"
    assert (ROOT / "nano/model.safetensors").is_file()


@pytest.mark.parametrize(
    "name, repository",
    [
        ("large", "answerdotai/ModernBERT-large"),
        ("large-instruct", "answerdotai/ModernBERT-Large-Instruct"),
        ("ettin-17m", "jhu-clsp/ettin-encoder-17m"),
        ("ettin-decoder-1b", "jhu-clsp/ettin-decoder-1b"),
    ],
)
def test_a_short_name_stands_for_a_repository(name, repository, tmp_path):
    with HubServer({f"model:{repository}": {"config.json": b"{}"}}) as hub, hub.client(tmp_path):
        assert commit_of(fetch_model(name)) == hub.commit(f"model:{repository}")


def test_every_size_of_ettin_has_its_name_as_encoder_and_decoder():
    for size in ("17m", "32m", "68m", "150m", "400m", "1b"):
        assert MODEL_NAMES[f"ettin-{size}"] == f"jhu-clsp/ettin-encoder-{size}"
        assert MODEL_NAMES[f"ettin-decoder-{size}"] == f"jhu-clsp/ettin-decoder-{size}"


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert fetch_model(tmp_path) == tmp_path
    assert fetch_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/model", "nowhere", "a/b/c"])
def test_a_path_is_not_taken_for_a_repository(name):
    with pytest.raises(ValueError, match=f"{name}: no such folder .*no Hub name.*OWNER/NAME"):
        fetch_model(name)


# --- models --------------------------------------------------------------------------------------


def test_only_the_files_that_are_read_are_fetched(hub, tmp_path):
    with hub.client(tmp_path):
        folder = fetch_model("org/base")
    assert set(files_of(folder)) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_model_is_fetched_once_and_then_needs_no_network(hub, tmp_path):
    with hub.client(tmp_path):
        folder = fetch_model("org/base")
        hub.requests.clear()
        assert fetch_model("org/base") == folder
        assert not hub.downloads()
        hub.gone()
        assert fetch_model("org/base") == folder
    with hub.client(tmp_path, HF_HUB_OFFLINE="1"):
        assert fetch_model("org/base") == folder


def test_without_a_network_only_the_files_that_are_read_are_needed(hub, tmp_path):
    # as another program left them in the cache, without a file that nothing here reads
    hub.repos["model:org/base"] = hub.repos["model:org/base"] | {"generation_config.json": b"{}"}
    with hub.client(tmp_path):
        needed = ["config.json", "model.safetensors", "tokenizer*"]
        folder = snapshot_download("org/base", allow_patterns=needed)
        hub.gone()
        assert str(fetch_model("org/base")) == folder


def test_a_version_is_the_commit_on_the_hub(hub, tmp_path):
    with hub.client(tmp_path):
        assert version_of(fetch_model("org/base")) == hub.commit("model:org/base")


def test_a_version_of_a_folder_or_file_is_the_hash_of_the_weights_or_bytes(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "config.json"):
        (tmp_path / name).write_bytes(name.encode())

    def short_hash(name):
        return "sha256 " + hashlib.sha256(name.encode()).hexdigest()[:16]

    hashes = [short_hash("a.safetensors"), short_hash("b.safetensors")]
    assert version_of(tmp_path) == ", ".join(hashes)
    assert version_of(tmp_path / "config.json") == short_hash("config.json")
    assert commit_of(tmp_path) is None


# --- --revision ----------------------------------------------------------------------------------


def test_revisions_are_a_commit_of_the_model_and_commits_of_repositories():
    assert parse_revisions(["abc", "o/r=def", "o/q=1"]) == {"": "abc", "o/r": "def", "o/q": "1"}
    assert parse_revisions([]) == {}


@pytest.mark.parametrize(
    "words", [["abc", "def"], ["o/r=a", "o/r=b"], ["=a"], ["o/r="], [""], ["o/r=a=b"]]
)
def test_a_revision_of_nothing_is_one_line(words):
    given = " ".join(words)
    with pytest.raises(ValueError, match=f"--revision {given}: give COMMIT for the model"):
        parse_revisions(words)


def test_a_model_is_fetched_at_the_commit_that_is_given_for_it(hub, tmp_path):
    old = hub.commit("model:org/base")
    hub.repos["model:org/base@old"] = hub.repos["model:org/base"]
    hub.repos["model:org/base"] = hub.repos["model:org/base"] | {"new.json": b"{}"}
    with hub.client(tmp_path):
        assert commit_of(fetch_pinned("org/base", ["o/r=def", old])) == old
        newest = hub.commit("model:org/base")
        assert commit_of(fetch_pinned("org/base", ["o/r=def"])) == newest != old


@pytest.mark.parametrize("path", ["snapshots/second", "models--o--r/snapshots/second",
                                  f"snapshots/{'a' * 40}"])
def test_a_folder_of_snapshots_of_ones_own_has_no_commit(tmp_path, path):
    assert commit_of(tmp_path / path) is None


def test_a_folder_of_the_cache_has_its_own_commit_only(hub, tmp_path):
    with hub.client(tmp_path):
        folder = str(fetch_model("org/base"))
    commit = hub.commit("model:org/base")
    assert str(fetch_pinned(folder, [commit])) == folder
    with pytest.raises(ValueError, match=f"is the folder of commit {commit}: leave --revision"):
        fetch_pinned(folder, ["b" * 40])


def test_a_folder_has_no_commits():
    assert fetch_pinned("nano", ["o/r=def"]) == ROOT / "nano"
    with pytest.raises(ValueError, match="--revision abc: --model nano is a folder, which has no"):
        fetch_pinned("nano", ["abc"])


# --- data sets -----------------------------------------------------------------------------------


def test_files_come_by_pattern_in_order_with_their_commit(data_hub, tmp_path):
    with data_hub.client(tmp_path):
        snapshot = fetch_dataset("org/set", ["data/*"])
        assert [path.name for path in snapshot.paths] == ["a.jsonl", "b.jsonl"]
        assert snapshot.commit == data_hub.commit("dataset:org/set")
        assert not any("large" in request for request in data_hub.downloads())
        names = [path.name for path in fetch_dataset("org/set", ["c*", "data/b*"]).paths]
        assert names == ["c.json", "b.jsonl"]


def test_a_pattern_without_files_is_an_error_that_names_the_commit(data_hub, tmp_path):
    commit = data_hub.commit("dataset:org/set")
    with data_hub.client(tmp_path):
        with pytest.raises(ValueError, match=f"org/set: no file d/. at {commit}: give another"):
            fetch_dataset("org/set", ["data/*", "d/*"])


def test_the_contaminated_version_of_skywork_is_refused(data_hub, tmp_path):
    name = "Skywork/Skywork-Reward-Preference-80K-v0.1"
    with data_hub.client(tmp_path):
        with pytest.raises(ValueError, match="contaminated.*use Skywork/.*-80K-v0.2"):
            fetch_dataset(name, ["data/*"])
    assert not data_hub.requests


# --- what goes wrong -----------------------------------------------------------------------------


def refused(message: str, fetch, name: str, *more, **options):
    with pytest.raises(ValueError, match=message) as error:
        fetch(name, *more, **options)
    text = str(error.value)
    assert "\n" not in text and text.startswith(name)


@pytest.fixture(params=["model", "dataset"])
def remote(request, hub, data_hub):
    """A server, and how something is fetched from it: the same must hold for both kinds."""
    if request.param == "model":
        return hub, fetch_model, ("org/base",)
    return data_hub, fetch_dataset, ("org/set", ["data/*"])


def test_a_repository_that_is_not_there_is_one_line(remote, tmp_path):
    server, fetch, (_, *patterns) = remote
    with server.client(tmp_path):
        refused("RepositoryNotFound.*check the name", fetch, "org/none", *patterns)


def test_a_revision_that_is_not_there_is_one_line(remote, tmp_path):
    server, fetch, given = remote
    with server.client(tmp_path):
        refused("revision v9, .*RevisionNotFound", fetch, *given, revision="v9")


def test_terms_that_were_not_accepted_are_one_line(remote, tmp_path):
    server, fetch, given = remote
    server.gated.add(given[0])
    with server.client(tmp_path):
        refused("GatedRepoError.*restricted", fetch, *given)


def test_a_wrong_token_is_one_line_and_the_right_one_fetches(remote, tmp_path):
    server, fetch, given = remote
    server.token = "hf_right"
    with server.client(tmp_path, HF_TOKEN="hf_wrong"):
        refused("401.*check .*HF_TOKEN", fetch, *given)
    with server.client(tmp_path, HF_TOKEN="hf_right"):
        assert fetch(*given)


@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_is_one_line(remote, tmp_path, offline):
    server, fetch, given = remote
    server.gone()
    with server.client(tmp_path, **offline):
        refused("LocalEntryNotFoundError.*check .*network", fetch, *given)


def test_a_model_that_cannot_be_fetched_can_be_given_as_a_folder(hub, tmp_path):
    with hub.client(tmp_path):
        refused("HF_TOKEN, or give a folder$", fetch_model, "org/none")


def test_a_busy_hub_is_asked_again(remote, tmp_path):
    server, fetch, given = remote
    server.busy = 1
    with server.client(tmp_path):
        assert fetch(*given)


def test_a_connection_cut_half_way_goes_on_where_it_broke_off(hub, tmp_path):
    hub.cut = [1000]
    with hub.client(tmp_path):
        assert tinyrm.load(fetch_model("org/base")).config.hidden_size == 32
        size = len(hub.repos["model:org/base"]["model.safetensors"])
        assert (fetch_model("org/base") / "model.safetensors").stat().st_size == size


def test_of_a_file_that_was_cut_the_rest_is_asked_for(data_hub, tmp_path):
    data_hub.cut = [1000]
    with data_hub.client(tmp_path):
        (path,) = fetch_dataset("org/set", ["large*"]).paths
    assert len(list(read_rows(path))) == 9999
    assert sum("GET /cdn/" in request for request in data_hub.requests) == 2


def test_a_download_that_breaks_off_for_good_is_one_line_and_goes_on_next_time(data_hub, tmp_path):
    with data_hub.client(tmp_path):
        data_hub.cut = [1000] + [0] * 20
        refused("not come from the Hub .*the network, the disk", fetch_dataset, "org/set", ["l*"])
        data_hub.cut = []
        (path,) = fetch_dataset("org/set", ["l*"]).paths
    assert len(list(read_rows(path))) == 9999


# --- published weights ---------------------------------------------------------------------------

CHAT_MODEL = "sarahpann/chat_model"
REASONING_MODEL = "sarahpann/reasoning_model_large"
PROMPTS = ["one or two?", "Is it [MASK] or [SEP]?", "seven " * 80]
LEFT = ["two", "", "Option A is better"]
RIGHT = ["one", "[MASK]", "eight nine"]


def write_files(folder, files):
    folder.mkdir()
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def shake(parameters, scale):
    """Add noise, so that scores differ by more than the tolerance of a test."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p.add_(scale * torch.randn(p.shape, generator=generator))


@pytest.fixture
def chat_files(tiny, tmp_path):
    """A repository of full weights, like the author's, saved by transformers."""
    model = AutoModelForMaskedLM.from_pretrained(tiny)
    shake(model.parameters(), 0.05)
    model.save_pretrained(tmp_path / "chat")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tiny / name).exists():
            (tmp_path / "chat" / name).write_bytes((tiny / name).read_bytes())
    return files_of(tmp_path / "chat")


@pytest.fixture
def adapter_files(tiny, tmp_path):
    """An adapter like the author's, saved by peft: the tied decoder has one too."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        use_dora=True,
        target_modules=["Wqkv", "Wi", "Wo", "dense", "decoder"],
    )
    model = peft.get_peft_model(AutoModelForMaskedLM.from_pretrained(tiny), config)
    shake([p for p in model.parameters() if p.requires_grad], 0.1)
    model.peft_config["default"].base_model_name_or_path = "org/base"
    model.save_pretrained(tmp_path / "adapter")
    return files_of(tmp_path / "adapter")


@torch.no_grad()
def judged_by(peer, tiny, question):
    """P(left is better) by a model of transformers or peft, in the author's token layout."""
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as text
    cls, sep, mask = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]"))

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    def first_wins(prompt, a, b):
        first = ids(f"{question} Question: {prompt} Choice 0: {a}")
        second = ids(f" Choice 1: {b}Answer:  ")
        tokens = torch.tensor([[cls, *first, sep, *second, mask, sep]])
        at_mask = peer(input_ids=tokens).logits[0, -2]
        return at_mask[[*ids("0"), *ids("1")]].softmax(-1)[0].item()

    wins = []
    for prompt, a, b in zip(PROMPTS, LEFT, RIGHT, strict=True):
        wins.append((first_wins(prompt, a, b) + 1 - first_wins(prompt, b, a)) / 2)
    assert max(wins) - min(wins) > 1e-3  # else a test could not see a difference
    return wins


def test_full_weights_judge_as_in_transformers_in_the_layout_that_their_name_says(
    hub, tiny, chat_files, tmp_path
):
    hub.repos[f"model:{CHAT_MODEL}"] = chat_files | UNUSED
    with hub.client(tmp_path / "home"):
        rm = evaluate.RewardModel.load(CHAT_MODEL, device="cpu", dtype="fp32")
    shown = rm.prompt_format.settings()
    assert (shown["template"], shown["domain"], shown["head"]) == ("choice", "chat", "cloze")
    assert rm.about["weights"] == hub.commit(f"model:{CHAT_MODEL}")

    peer = AutoModelForMaskedLM.from_pretrained(tmp_path / "chat").eval()
    expected = judged_by(peer, tiny, "Select the best response.")
    assert rm.compare(PROMPTS, LEFT, RIGHT) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_with_one_on_the_tied_decoder_judges_as_in_peft(
    hub, tiny, adapter_files, tmp_path
):
    assert any("decoder.lora_A" in key for key in load(adapter_files["adapter_model.safetensors"]))
    hub.repos[f"model:{REASONING_MODEL}"] = adapter_files | UNUSED
    with hub.client(tmp_path / "home"):
        rm = evaluate.RewardModel.load(REASONING_MODEL, device="cpu", dtype="fp32")
    shown = rm.prompt_format.settings()
    assert (shown["template"], shown["domain"]) == ("choice", "reasoning")
    for name in ("org/base", REASONING_MODEL):
        assert hub.commit(f"model:{name}") in rm.about["weights"]

    base = AutoModelForMaskedLM.from_pretrained(tiny)
    embedding = base.model.embeddings.tok_embeddings.weight.clone()
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = judged_by(peer, tiny, "Which response is more correct?")
    assert rm.compare(PROMPTS, LEFT, RIGHT) == pytest.approx(expected, abs=1e-5)
    # the decoder was adapted, the embedding that it is tied to was not
    assert torch.equal(rm.model.model.embeddings.tok_embeddings.weight, embedding)


# --- the paper's command, in small ---------------------------------------------------------------

MODEL_KEY = "model:org/base"
SKYWORK_KEY = f"dataset:{SKYWORK}"
BENCHMARK_KEY = "dataset:allenai/reward-bench"
BENCHMARK_KEYS = list(benchmark_repositories())
BENCHMARK_NAMES = [key.partition(":")[2] for key in BENCHMARK_KEYS]


def skywork_files(numbers):
    """40 pairs of other prompts for each first number."""
    rows = [skywork_row("magpie", f"Is {i} more than {i + 1}?", "No.", "Yes.") for i in numbers]
    return {"data/train-00000-of-00001.parquet": parquet(rows)}


@pytest.fixture
def paper_hub(hub):
    hub.repos[SKYWORK_KEY] = skywork_files(range(40))
    hub.repos.update(benchmark_repositories(rewardbench=["Is 3 MORE than 4?"]))
    return hub


def short_run(*more) -> list[str]:
    flags = {
        "domain": "reasoning",
        "model": "org/base",
        "data": "hub",
        "max-steps": 2,
        "batch-size": 8,
        "rank": 2,
        "held-out": 4,
        "save-minutes": 0,
        "device": "cpu",
    }
    words = []
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return words + [str(word) for word in more]


def test_a_run_from_the_hub_trains_and_is_judged_on_rewardbench(paper_hub, tmp_path, capsys):
    run = tmp_path / "run"
    with paper_hub.client(tmp_path / "home"):
        train.main(short_run("--out", run))
        evaluate.main([str(run), "rewardbench", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "40 magpie (published 54,582: -54,542) - 1 with a prompt of a benchmark" in printed
    assert f"pinned: --revision {paper_hub.commit(MODEL_KEY)} {SKYWORK}=" in printed

    record = read_json(run / "run.json")
    assert record["result"]["n"] == 4
    assert record["revisions"]["model"] == f"org/base@{paper_hub.commit(MODEL_KEY)}"
    assert f"{SKYWORK}@{paper_hub.commit(SKYWORK_KEY)[:8]}" in record["source"]

    adapter = read_json(run / "adapter/adapter_config.json")
    assert adapter["base_model_name_or_path"] == "org/base"
    (report,) = read_json(run / "eval/rewardbench/results.json")["reports"]
    assert report["n"] == 1 and paper_hub.commit(BENCHMARK_KEY) in report["source"]


@pytest.fixture
def begun_run(paper_hub, tmp_path, monkeypatch):
    """A run from the Hub that ended after its first step; main has moved on since."""
    step = train.train_step

    def ends(*args):
        patch.setattr(train, "train_step", killed)
        return step(*args)

    def killed(*args):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch, paper_hub.client(tmp_path / "home"):
        patch.setattr(train, "train_step", ends)
        with pytest.raises(SystemExit, match="130"):
            train.main(short_run("--out", run))

    for key in (MODEL_KEY, SKYWORK_KEY, *BENCHMARK_KEYS):
        paper_hub.repos[f"{key}@old"] = paper_hub.repos[key]
        paper_hub.repos[key] = paper_hub.repos[key] | {"new.json": b"{}"}
    paper_hub.repos[SKYWORK_KEY] = skywork_files(range(50, 90))
    return run


def old_commits(hub) -> dict[str, str]:
    keys = [SKYWORK_KEY, *BENCHMARK_KEYS]
    of_data = {key.partition(":")[2]: hub.commit(f"{key}@old") for key in keys}
    return {"": hub.commit(f"{MODEL_KEY}@old"), **of_data}


def test_a_run_is_pinned_to_the_commits_that_it_began_with(paper_hub, begun_run):
    old = old_commits(paper_hub)
    pins = [f"{name}={commit}".removeprefix("=") for name, commit in old.items()]
    record = read_json(begun_run / "run.json")
    assert record["settings"]["revision"] == pins
    base = old.pop("")
    assert record["revisions"] == {"model": f"org/base@{base}", **old}


def test_a_run_resumes_with_the_old_commits_on_a_machine_that_has_nothing(
    paper_hub, begun_run, tmp_path
):
    old = old_commits(paper_hub)
    revisions = read_json(begun_run / "run.json")["revisions"]
    paper_hub.requests.clear()
    with paper_hub.client(tmp_path / "cold"):
        train.main(["--resume", str(begun_run)])
    record = read_json(begun_run / "run.json")
    assert "accuracy_after" in record["result"]
    assert record["revisions"] == revisions
    downloads = paper_hub.downloads()
    assert downloads
    for request in downloads:
        assert any(commit in request for commit in old.values())


def test_a_run_from_the_hub_goes_on_with_a_copy_of_its_pairs(paper_hub, begun_run, tmp_path):
    (converted,) = (tmp_path / "home/tinyrm").glob("*.jsonl")
    with paper_hub.client(tmp_path / "home"):
        train.main(["--resume", str(begun_run), "--data", str(converted)])
    record = read_json(begun_run / "run.json")
    assert "accuracy_after" in record["result"]
    assert record["settings"]["revision"] == [old_commits(paper_hub)[""]]


@pytest.mark.parametrize("pinned", [["", SKYWORK, "allenai/reward-bench"], [SKYWORK], [""]])
def test_revision_pins_what_it_names_and_the_newest_of_others(
    paper_hub, begun_run, tmp_path, capsys, pinned
):
    old = old_commits(paper_hub)
    expected = {"": paper_hub.commit(MODEL_KEY), SKYWORK: paper_hub.commit(SKYWORK_KEY)}
    words = []
    for name in pinned:
        expected[name] = old[name]
        words.append(f"{name}={old[name]}".removeprefix("="))

    capsys.readouterr()
    out = tmp_path / "planned"
    with paper_hub.client(tmp_path / "home"):
        train.main(short_run("--out", out, "--dry-run", "--revision", *words))
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "from the Hub:" in line]
    assert f"the model at {expected['']}" in line
    assert f"{SKYWORK}@{expected[SKYWORK]}" in line
    assert not out.exists()


# --- what the Hub will send, before it is asked to ------------------------------------------------


def announced(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the Hub ")]
    return line


def test_what_will_be_fetched_is_said_before_with_its_size(hub, data_hub, tmp_path, capsys):
    data_hub.repos["dataset:org/set"] = {"train.jsonl": b"x" * 3_000_000, "test.jsonl": b"x" * 5000}
    data_hub.repos |= hub.repos
    with data_hub.client(tmp_path):
        plan.fetch("org/base", ["org/set"], "reasoning", [])
    line = announced(capsys)
    assert "org/set 0.003 GB" in line  # the split train alone
    files = hub.repos["model:org/base"]
    read = sum(len(files[name]) for name in files.keys() - UNUSED.keys())
    assert f"org/base {read / 1e9:.3g} GB" in line


def test_what_is_in_the_cache_is_not_announced_again(hub, tmp_path, capsys):
    with hub.client(tmp_path):
        plan.fetch("org/base", ["nano"], "reasoning", [])
        assert announced(capsys).startswith("the Hub will send ")
        plan.fetch("org/base", ["nano"], "reasoning", [])
    assert announced(capsys) == "the Hub has nothing to send: org/base in its cache"


def test_without_a_network_the_cache_is_named(hub, tmp_path, capsys):
    with hub.client(tmp_path):
        fetch_model("org/base")
        hub.gone()
        plan.fetch("org/base", ["nano"], "reasoning", [])
    assert announced(capsys).startswith("the Hub does not say how large org/base is (no network")


def test_a_model_and_pairs_of_the_checkout_need_no_hub(capsys):
    assert plan.fetch("nano", ["nano"], "reasoning", []) == ROOT / "nano"
    assert capsys.readouterr().out == ""


def test_the_first_command_on_cuda_announces_large_and_the_papers_data(
    paper_hub, tmp_path, capsys
):
    paper_hub.repos["model:answerdotai/ModernBERT-large"] = paper_hub.repos[MODEL_KEY]
    given = {"domain": "reasoning", "out": str(tmp_path / "run")}
    with paper_hub.client(tmp_path / "home"):
        train.choose_settings(given, on_gpu=True, config_class=tinyrm.Config)
    auto, hub_line, _ = capsys.readouterr().out.splitlines()
    assert auto.startswith("model large, data hub (auto: on a GPU;")
    assert "a laptop's --model nano-instruct" in auto
    for repository in ("answerdotai/ModernBERT-large", SKYWORK, *BENCHMARK_NAMES):
        assert repository in hub_line
