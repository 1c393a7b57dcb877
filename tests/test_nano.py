"""What the nano micro-world promises: that fine-tuning pairs, test pairs and pre-training text do
not leak into each other, that nothing short of recalling hidden attributes solves the test, and
that the shipped files are what nano/make.py says.

    python -m pytest tests/test_nano.py
"""

import importlib.util
import json
import math
import random
import re
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import tinyrm
from experiments.causal import CausalModernBERT
from infra.hub import ROOT

NANO = ROOT / "nano"
spec = importlib.util.spec_from_file_location("nano_make", NANO / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

WORLD = make.make_world()
PARTS = [(domain, half) for domain in make.DOMAINS for half in ("train", "test")]
OTHER = {"train": "test", "test": "train"}


def pairs(domain, half):
    lines = (NANO / "pairs" / f"{domain}.{half}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words_in(text):
    """The invented words in a text, found by letters alone so no capital or comma hides one."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if word in WORLD}


def shipped_tokenizer():
    return Tokenizer.from_file(str(NANO / "tokenizer.json"))


# --- the splits ------------------------------------------------------------------------------


@pytest.mark.parametrize("domain, half", PARTS)
def test_pairs_speak_only_of_the_words_of_their_half(domain, half):
    for pair in pairs(domain, half):
        found = words_in(" ".join((pair["prompt"], pair["chosen"], pair["rejected"])))
        assert found and all(WORLD[word]["half"] == half for word in found), pair


@pytest.mark.parametrize("domain, half", PARTS)
def test_no_word_of_the_other_half_is_even_a_part_of_a_pair(domain, half):
    text = " ".join(json.dumps(pair) for pair in pairs(domain, half)).lower()
    others = [word for word, thing in WORLD.items() if thing["half"] == OTHER[half]]
    assert not [word for word in others if word in text]


@pytest.mark.parametrize("domain, half", PARTS)
def test_shipped_pairs_are_those_that_make_py_writes(domain, half):
    n = {"train": 1000, "test": 400}[half]
    assert pairs(domain, half) == make.make_pairs(WORLD, domain, half, n)


# --- pre-training text -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents():
    """5,000 rows of pre-training text, as lists of pieces."""
    rng = random.Random(0)
    return [make.document(rng, WORLD) for _ in range(5000)]


def sentences(document):
    text = "".join(document).removeprefix("Instruction: ")
    return re.split(r"(?<=[.?!]) ", text)


def test_pretraining_text_asks_no_question_of_a_pair(documents):
    asked = {pair["prompt"] for part in PARTS for pair in pairs(*part)}
    for document in documents:
        assert not asked & {piece.strip() for piece in document}


def test_pretraining_text_has_no_verdict_of_a_template(documents):
    for document in documents:
        text = "".join(document)
        assert not re.search(r"The better option is|The answer is|Answer: +\w", text)


def test_a_sentence_with_two_words_says_that_they_are_there_and_nothing_else(documents):
    # so no two things are ever compared, ordered or chosen between by what they are
    scenes = []
    for scene in make.SCENES:
        pattern = re.escape(scene).replace(r"\{x\}", r"(\w+)").replace(r"\{y\}", r"(\w+)")
        scenes.append(pattern)
    for document in documents:
        for sentence in sentences(document):
            if len(words_in(sentence)) > 1:
                assert any(re.fullmatch(scene, sentence.strip()) for scene in scenes), sentence


def test_no_option_is_called_heavier_safer_or_better(documents):
    for document in documents:
        for sentence in sentences(document):
            if re.search(r"[Oo]ption", sentence) and "Which option" not in sentence:
                assert not re.search(r"\b(heavier|lighter|more|less|safer|better)\b", sentence)


def test_a_test_word_has_the_same_text_as_a_training_word():
    """Both halves are told of alike, so a gap between them is not one of pre-training: of 4,000
    documents' words, a half belong to the test words within 4 standard errors (0.02)."""
    rng, halves = random.Random(1), Counter()
    for _ in range(4000):
        text = "".join(make.document(rng, WORLD)).lower()
        halves.update(WORLD[word]["half"] for word in re.findall(r"[a-z]+", text) if word in WORLD)
    assert abs(halves["test"] / halves.total() - 0.5) < 0.02


# --- what must not solve it ------------------------------------------------------------------


def naive_bayes(train, test):
    """Accuracy on `test` of a bag of words and word pairs (in a row), add-one smoothed, that saw
    `train`: lists of (text of a chosen one, text of a rejected one)."""

    def features(text):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return {*words, *zip(words, words[1:], strict=False)}

    good = Counter(feature for chosen, _ in train for feature in features(chosen))
    bad = Counter(feature for _, rejected in train for feature in features(rejected))

    def score(text):
        return sum(math.log((good[f] + 1) / (bad[f] + 1)) for f in features(text))

    margins = [score(chosen) - score(rejected) for chosen, rejected in test]
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(test)


# 400 pairs at chance have a standard error of 0.025. Each domain meets four such tests, so four of
# them, 0.10, is what no one of the twelve should exceed by luck.
CHANCE = 0.10


@pytest.mark.parametrize("domain", make.DOMAINS)
def test_the_response_alone_is_at_chance(domain):
    train = [(pair["chosen"], pair["rejected"]) for pair in pairs(domain, "train")]
    test = [(pair["chosen"], pair["rejected"]) for pair in pairs(domain, "test")]
    assert abs(naive_bayes(train, test) - 0.5) <= CHANCE


@pytest.mark.parametrize("domain", make.DOMAINS)
def test_prompt_and_response_words_without_recall_are_at_chance(domain):
    """The same with each word of the response joined to each word of the prompt - all that can be
    said without knowing an attribute of an unseen word."""

    def joined(pair, key):
        prompt = set(re.findall(r"\w+", pair["prompt"].lower()))
        answer = set(re.findall(r"\w+", pair[key].lower()))
        return " . ".join(f"{p}_{a}" for p in sorted(prompt) for a in sorted(answer))

    def texts(half):
        return [(joined(pair, "chosen"), joined(pair, "rejected")) for pair in pairs(domain, half)]

    assert abs(naive_bayes(texts("train"), texts("test")) - 0.5) <= CHANCE


# A judge that reads only the prompt gives both orders the same, so their mean is 0.5 by arithmetic.
# Left is what the prompt may say of the answer's shape.


def test_the_word_that_a_prompt_names_first_is_right_by_chance():
    hits = []
    for pair in pairs("reasoning", "test"):
        chosen_at = pair["prompt"].find(*words_in(pair["chosen"]))
        rejected_at = pair["prompt"].find(*words_in(pair["rejected"]))
        assert chosen_at >= 0 and rejected_at >= 0
        hits.append(chosen_at < rejected_at)
    assert abs(sum(hits) / len(hits) - 0.5) <= CHANCE


def test_a_prompt_does_not_sound_like_one_to_refuse():
    def by_subset(half):
        prompts = {"refuse": [], "help": []}
        for pair in pairs("safety", half):
            prompts[pair["subset"]].append(pair["prompt"])
        return list(zip(prompts["refuse"], prompts["help"], strict=False))

    assert abs(naive_bayes(by_subset("train"), by_subset("test")) - 0.5) <= CHANCE


@pytest.mark.parametrize("domain", make.DOMAINS)
@pytest.mark.parametrize("key", [len, str])  # length, and place in the alphabet
def test_length_and_place_in_the_alphabet_are_at_chance(domain, key):
    found = [(key(pair["chosen"]), key(pair["rejected"])) for pair in pairs(domain, "test")]
    share = sum((a > b) + 0.5 * (a == b) for a, b in found) / len(found)
    assert abs(share - 0.5) <= CHANCE


def prompt_sizes(domain, half):
    """Tokens of each prompt, in ascending order."""
    texts = [f" {pair['prompt']}" for pair in pairs(domain, half)]
    encodings = shipped_tokenizer().encode_batch(texts, add_special_tokens=False)
    return sorted(len(encoding.ids) for encoding in encodings)


@pytest.mark.parametrize("domain, half", PARTS)
def test_prompts_are_short(domain, half):
    sizes = prompt_sizes(domain, half)
    median = sizes[len(sizes) // 2]
    assert 10 <= median <= 25 and sizes[-1] <= 128


@pytest.mark.parametrize("domain, half", PARTS)
def test_one_prompt_in_twenty_or_so_reaches_beyond_the_local_window(domain, half):
    # more than the 64 tokens to one side, so that global attention is needed there
    sizes = prompt_sizes(domain, half)
    assert 0.01 <= sum(size > 64 for size in sizes) / len(sizes) <= 0.10


# --- the shipped files -----------------------------------------------------------------------


def test_words_and_labels_are_single_tokens_with_and_without_the_space():
    tokenizer = shipped_tokenizer()
    labels = "A B 0 1 Yes No Instruction Option Response Question Choice Answer".split()
    for word in [*WORLD, *make.NUMBERS, *make.KINDS, *labels]:
        for text in (word, " " + word):
            assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 1, text


@pytest.mark.parametrize("text", [
    "", "  two  spaces ", "Grüße, 世界 🦜", "\x00\t\n", "zzzq-unheard-of",
])
def test_any_string_survives_the_tokenizer(text):
    tokenizer = shipped_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


SHIPPED = [  # transformers' class, ours, the folder
    ("AutoModelForMaskedLM", tinyrm.ModernBERT, NANO),
    ("AutoModelForCausalLM", CausalModernBERT, NANO / "causal"),
]


@pytest.mark.parametrize("peer_class, model_class, folder", SHIPPED)
def test_the_shipped_models_score_in_transformers_as_here(peer_class, model_class, folder):
    transformers = pytest.importorskip("transformers")
    peer = getattr(transformers, peer_class).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = tinyrm.load(folder, model_class=model_class)
    ids = tokenizer("The brabin weighs[MASK] stone.", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        theirs = peer(input_ids=ids).logits[0]
        ours = model.logits(model(ids[0], torch.tensor([0, ids.shape[1]])))
    assert (ours - theirs).abs().max() < 1e-4  # float32 sums in another order


@pytest.mark.parametrize("peer_class, model_class, folder", SHIPPED)
def test_the_shipped_models_recall_the_world_as_the_readme_reports(peer_class, model_class, folder):
    model = tinyrm.load(folder, model_class=model_class)
    reader = make.Reader(WORLD, shipped_tokenizer(), 0, 1)
    assert min(make.probe(model, reader).values()) > 0.95


def test_shipped_files_are_small():
    files = [path for path in NANO.rglob("*") if path.suffix in (".json", ".safetensors")]
    assert sum(path.stat().st_size for path in files) < 8e6


@pytest.fixture(scope="module")
def made_tokenizer():
    return make.make_tokenizer(WORLD)


@pytest.mark.parametrize("name", ["tokenizer.json", "causal/tokenizer.json"])
def test_the_tokenizer_of_make_py_is_the_shipped_one(made_tokenizer, tmp_path, name):
    make.save_tokenizer(made_tokenizer, tmp_path)
    assert (NANO / name).read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_each_word_of_the_pairs_is_one_token(made_tokenizer):
    words = set()
    for part in PARTS:
        for pair in pairs(*part):
            words.update(re.findall(r"\w+", pair["prompt"]), re.findall(r"\w+", pair["chosen"]))
    for word in words:
        assert len(made_tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1, word


# --- the script ------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """run(folder, flags) -> what make.py printed, in this process: importing torch once is the
    quick part of quick."""
    threads = torch.get_num_threads()

    def call(folder, *flags):
        make.main(["--out", str(folder), "--rows", "4", *flags])
        return capsys.readouterr().out

    tokenizer = shipped_tokenizer()
    monkeypatch.setattr(make, "make_tokenizer", lambda world: tokenizer)  # a test of its own, above
    yield call
    torch.set_num_threads(threads)


def test_a_run_prints_its_speed(run, tmp_path):
    assert re.search(r"step 2/2 .* tokens/s", run(tmp_path, "--steps", "2"))


@pytest.mark.parametrize("twin", [[], ["--causal"]])
def test_a_run_that_stopped_goes_on_to_the_same_weights(run, tmp_path, twin):
    """Six steps at once, and four of them followed by the last two in another run: bit for bit. The
    rates of the schedule, which is a function of the step, agree as well."""
    run(tmp_path / "a", "--steps", "6", *twin)
    run(tmp_path / "b", "--steps", "6", "--stop", "4", *twin)
    assert "goes on at step 4" in run(tmp_path / "b", "--steps", "6", *twin)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def next_tokens():
    """(reader, documents, what the causal twin is asked about them)."""
    reader = make.Reader(WORLD, shipped_tokenizer(), 0, 4)
    documents = reader.block(0, 2)[0]
    return reader, documents, reader.next_batch(documents)


def test_the_causal_twin_reads_the_same_text(next_tokens):
    reader, documents, (tokens, starts, where, what) = next_tokens
    unmasked = reader.batch(documents, 0, share=0.0)[0]
    assert torch.equal(tokens, unmasked)


def test_the_causal_twin_is_asked_for_each_next_token(next_tokens):
    reader, documents, (tokens, starts, where, what) = next_tokens
    assert torch.equal(what, tokens[where + 1])
    assert len(where) == len(tokens) - len(documents)


def test_the_causal_twin_is_asked_nothing_at_the_end_of_a_document(next_tokens):
    reader, _, (tokens, starts, where, what) = next_tokens
    last = {stop - 1 for stop in starts[1:].tolist()}
    assert not last & set(where.tolist()) and reader.cls not in what.tolist()


@pytest.mark.parametrize("flag", ["--out", "--steps", "--stop", "--lr", "--seed", "--show"])
def test_the_help_names_each_flag(capsys, flag):
    with pytest.raises(SystemExit) as ended:
        make.main(["--help"])
    assert ended.value.code == 0
    assert flag in capsys.readouterr().out


@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_a_narrower_encoder_keeps_its_heads_of_32(width):
    config = make.config_of(shipped_tokenizer(), width=width)
    assert (config.hidden_size, config.intermediate_size) == (width, width * 3 // 2)
    assert config.head_size == 32


def test_the_shipped_encoder_has_the_usual_width():
    shipped = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    assert shipped["hidden_size"] == make.config_of(shipped_tokenizer()).hidden_size == 128
