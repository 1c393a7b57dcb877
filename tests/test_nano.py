"""What the nano micro-world promises: that fine-tuning pairs, test pairs and pre-training text do
not leak into each other, that nothing short of recalling hidden attributes solves the test, and
that the shipped files are what nano/make.py says.

    pytest tests/test_nano.py
"""

import importlib.util
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
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


# --- the splits -----------------------------------------------------------------------------------
@pytest.mark.parametrize("domain, half", PARTS)
def test_pairs_speak_only_of_the_words_of_their_half(domain, half):
    for pair in pairs(domain, half):
        found = words_in(" ".join((pair["prompt"], pair["chosen"], pair["rejected"])))
        assert found and all(WORLD[word]["half"] == half for word in found), pair


@pytest.mark.parametrize("domain, half", PARTS)
def test_no_word_of_the_other_half_is_even_a_part_of_a_pair(domain, half):
    text = " ".join(json.dumps(pair) for pair in pairs(domain, half)).lower()
    assert not [w for w, thing in WORLD.items() if thing["half"] == OTHER[half] and w in text]


@pytest.mark.parametrize("domain, half", PARTS)
def test_shipped_pairs_are_those_that_make_py_writes(domain, half):
    n = {"train": 1000, "test": 400}[half]
    assert pairs(domain, half) == make.make_pairs(WORLD, domain, half, n)


def test_pretraining_text_has_no_test_question_no_comparison_and_no_verdict():
    """In 5,000 documents no prompt of a pair occurs; a sentence with two invented words says that
    they are there and nothing else - so no two things of the world are ever compared, ordered or
    chosen between by what they are; no row ends in a verdict of a template; and what is said of an
    option by its label is an attribute, never which is heavier, safer or better."""
    rng = random.Random(0)
    asked = {pair["prompt"] for part in PARTS for pair in pairs(*part)}
    scenes = [re.escape(s).replace(r"\{x\}", "(\\w+)").replace(r"\{y\}", "(\\w+)")
              for s in make.SCENES]  # fmt: skip
    for _ in range(5000):
        pieces = make.document(rng, WORLD)
        text = "".join(pieces)
        assert not asked & {piece.strip() for piece in pieces}
        assert not re.search(r"The better option is|The answer is|Answer: +\w", text)
        for sentence in re.split(r"(?<=[.?!]) ", text.removeprefix("Instruction: ")):
            if len(words_in(sentence)) > 1:
                assert any(re.fullmatch(scene, sentence.strip()) for scene in scenes), sentence
            if re.search(r"[Oo]ption", sentence) and "Which option" not in sentence:
                assert not re.search(r"\b(heavier|lighter|more|less|safer|better)\b", sentence)


def test_a_test_word_has_the_same_text_as_a_training_word():
    """Both halves are told of alike, so a gap between them is not one of pre-training: of 4,000
    documents' words, a half belong to the test words within 4 standard errors (0.02)."""
    rng, halves = random.Random(1), Counter()
    for _ in range(4000):
        text = "".join(make.document(rng, WORLD)).lower()
        halves.update(WORLD[w]["half"] for w in re.findall(r"[a-z]+", text) if w in WORLD)
    assert abs(halves["test"] / halves.total() - 0.5) < 0.02


# --- what must not solve it -----------------------------------------------------------------------
def naive_bayes(train, test):
    """Accuracy on `test` of a bag of words and word pairs (in a row), add-one smoothed, that saw
    `train`: lists of (text of a chosen one, text of a rejected one)."""

    def features(text):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return {*words, *zip(words, words[1:], strict=False)}

    good = Counter(f for chosen, _ in train for f in features(chosen))
    bad = Counter(f for _, rejected in train for f in features(rejected))

    def score(text):
        return sum(math.log((good[f] + 1) / (bad[f] + 1)) for f in features(text))

    margins = [score(chosen) - score(rejected) for chosen, rejected in test]
    return sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(test)


# 400 pairs at chance have a standard error of 0.025. Each domain meets four such tests, so four of
# them, 0.10, is what no one of the twelve should exceed by luck.
CHANCE = 0.10


@pytest.mark.parametrize("domain", make.DOMAINS)
def test_the_response_alone_is_at_chance(domain):
    train, test = (
        [(p["chosen"], p["rejected"]) for p in pairs(domain, half)] for half in ("train", "test")
    )
    assert abs(naive_bayes(train, test) - 0.5) <= CHANCE


@pytest.mark.parametrize("domain", make.DOMAINS)
def test_prompt_and_response_words_without_recall_are_at_chance(domain):
    """The same with each word of the response joined to each word of the prompt - all that can be
    said without knowing an attribute of an unseen word."""

    def joined(pair, key):
        prompt = set(re.findall(r"\w+", pair["prompt"].lower()))
        answer = set(re.findall(r"\w+", pair[key].lower()))
        return " . ".join(f"{p}_{a}" for p in sorted(prompt) for a in sorted(answer))

    train, test = (
        [(joined(p, "chosen"), joined(p, "rejected")) for p in pairs(domain, half)]
        for half in ("train", "test")
    )
    assert abs(naive_bayes(train, test) - 0.5) <= CHANCE


def test_the_prompt_alone_is_at_chance():
    """A judge that reads only the prompt says the same of both orders, so their mean is 0.5 by
    arithmetic. Left is what the prompt may say of the answer's shape: in reasoning, that the word
    named first is the right one; in safety, that the request sounds like one to refuse."""
    hits = []
    for pair in pairs("reasoning", "test"):
        places = [pair["prompt"].find(*words_in(pair[key])) for key in ("chosen", "rejected")]
        assert min(places) >= 0
        hits.append(places[0] < places[1])
    assert abs(sum(hits) / len(hits) - 0.5) <= CHANCE

    def by_subset(half):
        refuse, help_ = (
            [p["prompt"] for p in pairs("safety", half) if p["subset"] == subset]
            for subset in ("refuse", "help")
        )
        return list(zip(refuse, help_, strict=False))

    assert abs(naive_bayes(by_subset("train"), by_subset("test")) - 0.5) <= CHANCE


@pytest.mark.parametrize("domain", make.DOMAINS)
def test_length_and_place_in_the_alphabet_are_at_chance(domain):
    for key in (len, str):
        pairs_ = [(key(p["chosen"]), key(p["rejected"])) for p in pairs(domain, "test")]
        share = sum((a > b) + 0.5 * (a == b) for a, b in pairs_) / len(pairs_)
        assert abs(share - 0.5) <= CHANCE


@pytest.mark.parametrize("domain, half", PARTS)
def test_prompts_are_short_but_a_few_reach_beyond_the_local_window(domain, half):
    """The median prompt has 10 to 25 tokens, and one in twenty or so more than the 64 that local
    attention sees to one side, so that global attention is needed there."""
    tokenizer = make.Tokenizer.from_file(str(NANO / "tokenizer.json"))
    texts = [f" {pair['prompt']}" for pair in pairs(domain, half)]
    sizes = sorted(len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False))
    assert 10 <= sizes[len(sizes) // 2] <= 25 and sizes[-1] <= 128
    assert 0.01 <= sum(size > 64 for size in sizes) / len(sizes) <= 0.10


# --- the shipped files ----------------------------------------------------------------------------
def test_words_and_labels_are_single_tokens_with_and_without_the_space():
    tokenizer = make.Tokenizer.from_file(str(NANO / "tokenizer.json"))
    labels = "A B 0 1 Yes No Instruction Option Response Question Choice Answer".split()
    for word in [*WORLD, *make.NUMBERS, *make.KINDS, *labels]:
        for text in (word, " " + word):
            assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 1, text


def test_any_string_survives_the_tokenizer():
    tokenizer = make.Tokenizer.from_file(str(NANO / "tokenizer.json"))
    for text in ("", "  two  spaces ", "Grüße, 世界 🦜", "\x00\t\n", "zzzq-unheard-of"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("cls, folder", [("AutoModelForMaskedLM", NANO),
                                         ("AutoModelForCausalLM", NANO / "causal")])  # fmt: skip
def test_the_shipped_models_open_in_transformers_and_recall_the_world(cls, folder):
    """The same numbers from transformers and from tinyrm (1e-4: float32 sums in another order),
    and the recall of each attribute that the README reports."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, cls).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = make.tinyrm.load(folder)
    text = "The brabin weighs[MASK] stone."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        a = theirs(input_ids=ids).logits[0]
        b = ours.logits(ours(ids[0], torch.tensor([0, ids.shape[1]])))
    assert (a - b).abs().max() < 1e-4
    reader = make.Reader(WORLD, make.Tokenizer.from_file(str(NANO / "tokenizer.json")), 0, 1)
    assert min(make.probe(ours, reader).values()) > 0.95


def test_shipped_files_are_small():
    files = [path for path in NANO.rglob("*") if path.suffix in (".json", ".safetensors")]
    assert sum(path.stat().st_size for path in files) < 8e6


def test_the_tokenizer_of_make_py_is_the_shipped_one_and_knows_each_word_of_the_pairs(tmp_path):
    tokenizer = make.make_tokenizer(WORLD)
    make.save_tokenizer(tokenizer, tmp_path)
    for name in ("tokenizer.json", "causal/tokenizer.json"):
        assert (NANO / name).read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    texts = [pair[key] for part in PARTS for pair in pairs(*part) for key in ("prompt", "chosen")]
    for word in {word for text in texts for word in re.findall(r"\w+", text)}:
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1, word


# --- the script -----------------------------------------------------------------------------------
@pytest.fixture
def run(monkeypatch, capsys):
    """make.py as a command, in this process: importing torch once is the quick part of quick."""
    threads = torch.get_num_threads()

    def go(out, *flags):
        make.main(["--out", str(out), "--rows", "4", *flags])
        return capsys.readouterr().out

    tokenizer = make.Tokenizer.from_file(str(NANO / "tokenizer.json"))
    monkeypatch.setattr(make, "make_tokenizer", lambda world: tokenizer)  # a test of its own, above
    yield go
    torch.set_num_threads(threads)


def test_a_short_run_is_deterministic_and_goes_on_where_it_stopped(run, tmp_path):
    """Six steps at once, and four of them followed by the last two in another run: bit for bit the
    same weights. The rates of the schedule, which is a function of the step, agree as well."""
    assert re.search(r"step 6/6 .* tokens/s", run(tmp_path / "a", "--steps", "6"))
    run(tmp_path / "b", "--steps", "6", "--stop", "4")
    assert "goes on at step 4" in run(tmp_path / "b", "--steps", "6")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_decoder_is_asked_for_each_next_token_of_the_same_text():
    reader = make.Reader(WORLD, make.Tokenizer.from_file(str(NANO / "tokenizer.json")), 0, 4)
    docs = reader.block(0, 2)[0]
    tokens, starts, where, what = reader.next_batch(docs)
    assert torch.equal(tokens, reader.batch(docs, 0, share=0.0)[0])
    assert len(where) == len(tokens) - len(docs)  # no document's last token has a next one
    assert not {*where.tolist()} & {i - 1 for i in starts[1:].tolist()}
    assert torch.equal(what, tokens[where + 1]) and reader.cls not in what.tolist()


def test_the_help_names_each_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        make.main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(flag in told for flag in ("--out", "--steps", "--stop", "--lr", "--seed", "--show"))


def test_a_narrower_encoder_keeps_its_heads_of_32():
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    for width in (32, 64, 96, 128):
        config = make.config_of(tokenizer, width=width)
        assert (config.hidden_size, config.intermediate_size) == (width, width * 3 // 2)
        assert config.hidden_size // config.num_attention_heads == 32
    shipped = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    assert config.hidden_size == shipped["hidden_size"] == 128
