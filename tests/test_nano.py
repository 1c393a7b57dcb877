"""What the nano micro-world promises: that training pairs, choosing pairs, test pairs, instructions
and pre-training text do not leak into each other; that nothing short of recalling hidden attributes
solves the test; and that the shipped files are what nano/make.py says.

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

import data
import tinyrm
from infra.hub import ROOT
from infra.pairs import to_text

NANO = ROOT / "nano"
spec = importlib.util.spec_from_file_location("nano_make", NANO / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
micro = make.micro

WORLD = micro.make_world()
FILES = [(domain, part) for domain in micro.DOMAINS for part in micro.PARTS]
MODELS = {"nano": NANO, "instruct": NANO / "instruct"}


def pairs(domain, part):
    """The shipped pairs, with their prompts as a model reads them."""
    rows = []
    for line in (NANO / "pairs" / f"{domain}.{part}.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rows.append(row | {"prompt": micro.as_text(row["prompt"])})
    return rows


def words_in(text):
    """The invented words in a text, found by letters alone so no capital or comma hides one."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if word in WORLD}


def without_idle(text):
    for sentence in micro.ALL_IDLE:
        text = text.replace(sentence, "")
    return " ".join(text.split())


def tokenizer():
    return Tokenizer.from_file(str(NANO / "tokenizer.json"))


# --- the parts ------------------------------------------------------------------------------------


def test_attributes_are_balanced_within_each_part_of_the_world():
    for part, size in micro.PARTS.items():
        things = [thing for thing in WORLD.values() if thing.part == part]
        assert len(things) == size
        for attribute, values in (("weight", 10), ("danger", 2), ("kind", 8)):
            counts = Counter(getattr(thing, attribute) for thing in things)
            assert len(counts) == values
            assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("domain, part", FILES)
def test_pairs_speak_only_of_the_words_of_their_part(domain, part):
    for pair in pairs(domain, part):
        found = words_in(" ".join((pair["prompt"], pair["chosen"], pair["rejected"])))
        assert found and all(WORLD[word].part == part for word in found), pair


@pytest.mark.parametrize("domain, part", FILES)
def test_no_word_and_no_idle_sentence_of_another_part_is_even_a_piece_of_a_pair(domain, part):
    text = " ".join(json.dumps(pair) for pair in pairs(domain, part)).lower()
    assert not [word for word, thing in WORLD.items() if thing.part != part and word in text]
    for other, sentences in micro.IDLE.items():
        found = [sentence for sentence in sentences if sentence.lower() in text]
        assert len(found) == (len(sentences) if other == part else 0)


@pytest.mark.parametrize("domain, part", FILES)
def test_shipped_pairs_are_those_that_the_script_writes(domain, part):
    made = micro.make_pairs(WORLD, domain, part, make.PAIRS_OF[part])
    lines = (NANO / "pairs" / f"{domain}.{part}.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == made


def test_pretraining_text_has_no_test_question_no_comparison_and_no_verdict():
    """In 5,000 documents no prompt of a pair occurs; a sentence with two invented words says that
    they are there and nothing else, so no two things of the world are ever compared, ordered or
    chosen between by what they are; no row ends in a verdict of a template; and what is said of an
    option by its label is an attribute, never which is heavier, safer or better."""
    rng = random.Random(0)
    asked = {pair["prompt"] for file in FILES for pair in pairs(*file)}
    scenes = []
    for sentence in micro.SCENES:
        pattern = re.escape(sentence).replace(r"\{x\}", r"(\w+)").replace(r"\{y\}", r"(\w+)")
        scenes.append(re.compile(pattern))

    for _ in range(5000):
        pieces = micro.document(rng, WORLD)
        text = "".join(pieces)
        assert not asked & {text.strip(), *(piece.strip() for piece in pieces)}
        assert not re.search(r"The better option is|The answer is|Answer: +\w", text)
        for sentence in re.split(r"(?<=[.?!])\s+", text.removeprefix("Instruction: ")):
            if len(words_in(sentence)) > 1:
                assert any(scene.fullmatch(sentence.strip()) for scene in scenes), sentence
            described = re.search(r"[Oo]ption(?! [AB]:)", sentence)
            if described and "Which option" not in sentence:
                assert not re.search(r"\b(heavier|lighter|more|less|safer|better)\b", sentence)


def test_a_test_word_has_the_same_text_as_a_training_word():
    """All parts are told of alike, so a gap between them is not one of pre-training: of 4,000
    documents' words a half belong to the training words, a third to the test words (0.02 is four
    standard errors)."""
    rng, counts = random.Random(1), Counter()
    for _ in range(4000):
        text = "".join(micro.document(rng, WORLD)).lower()
        counts.update(WORLD[word].part for word in re.findall(r"[a-z]+", text) if word in WORLD)
    assert abs(counts["train"] / counts.total() - 1 / 2) < 0.02
    assert abs(counts["test"] / counts.total() - 1 / 3) < 0.02


# --- the instructions -----------------------------------------------------------------------------


def matches(wordings, text):
    """Whether the text is one of the wordings, with any words in their slots."""
    for wording in wordings:
        pattern = re.sub(r"\\\{\w+\\\}", r"[a-z ]+", re.escape(wording))
        if re.fullmatch(pattern, text):
            return True
    return False


def test_no_task_asks_what_a_pair_asks():
    """In 5,000 rows: where there is an invented word, the task is to name it, to find which of two
    has an attribute or an owner that the prompt states, or to compare one with a plain load; and
    the answers are names. So no two words are compared, none is a reason to help or to refuse, and
    none is what an answer must speak of."""
    rng = random.Random(0)
    asked = {pair["prompt"] for file in FILES for pair in pairs(*file)}
    others_talk = [s for part in ("choose", "test") for s in micro.IDLE[part]]
    with_words = 0
    for _ in range(5000):
        task = micro.make_task(rng, WORLD)
        row = " ".join(task)
        assert task.prompt not in asked
        assert not [sentence for sentence in others_talk if sentence in row]
        if not words_in(row):
            continue
        with_words += 1
        prompt = without_idle(task.prompt)
        if re.search(r"\b(heavier|lighter)\b", prompt):
            (word,) = words_in(row)  # the other side is a load of so many stone
            assert matches(micro.COMPARE, prompt) and " stone" in prompt, task
        elif not matches(micro.NAME_TASKS + micro.FIND_TASKS, prompt):
            last_sentence = re.split(r"(?<=[.?!]) ", prompt)[-1].removeprefix("User: ")
            assert matches(micro.OWNER_TASKS + micro.OUR_TASKS, last_sentence), task
        for answer in (task.right, task.wrong):
            assert matches(micro.NAMING + micro.HAS, without_idle(answer)), answer
    assert 2000 < with_words < 3500


def test_a_task_names_the_word_that_has_what_is_asked_for():
    rng = random.Random(1)
    for _ in range(500):
        task = micro.find_task(rng, WORLD, micro.IDLE["train"])
        (right,), (wrong,) = words_in(task.right), words_in(task.wrong)
        stated = set(re.findall(r"\w+", task.prompt))
        for word, holds in ((right, True), (wrong, False)):
            thing = WORLD[word]
            values = {micro.number(thing), thing.kind, *micro.DANGER[thing.danger]["is"]}
            assert bool(values & stated) == holds or micro.number(thing) == "one", task


def test_a_word_against_a_load_is_compared_by_its_weight():
    rng = random.Random(1)
    for _ in range(300):
        task = micro.mixed_task(rng, WORLD, [])
        (word,) = words_in(task.prompt)
        (load,) = [n for n in micro.NUMBERS if f"load of {n} stone" in task.prompt]
        is_heavier = WORLD[word].weight > micro.NUMBERS.index(load) + 1
        assert (word in task.right) == (is_heavier == ("heavier" in task.prompt)), task


@pytest.mark.parametrize("idle", [[], micro.IDLE["train"]], ids=["plain", "idle"])
def test_what_an_owner_has_is_what_the_user_says_of_that_owner(idle):
    """The one who is asked about, or of the system turn; the wrong answer is another one's."""
    rng = random.Random(1)
    for _ in range(300):
        task = micro.owner_task(rng, WORLD, idle)
        has = {word: owner for owner, word in re.findall(r"my (\w+) (?:that )?has a (\w+)",
                                                         task.prompt.lower())}
        assert len(has) == 2
        if task.prompt.startswith("System:"):
            wanted = task.prompt.partition("User:")[0]
        else:
            wanted = task.prompt.rpartition("one")[2] + task.prompt.rpartition("Name")[2]
        (right,), (wrong,) = words_in(task.right), words_in(task.wrong)
        assert right == task.word and has[right] in wanted
        assert task.prompt.startswith("System:") or has[wrong] not in wanted.partition("has")[0]


def test_a_task_row_is_the_template_of_data_py():
    """Token for token, but for the question, which is one of the instructions' own."""
    prompt_format = data.PromptFormat(data.load_tokenizer(NANO), domain="chat")
    reader = make.Reader(WORLD, tokenizer(), 0, 1)
    task = micro.Task("Say no.", "No.", "Yes.")
    rows_of_pairs, _ = prompt_format.rows([data.Pair(task.prompt, task.right, task.wrong)])
    theirs = rows_of_pairs[0][0]
    question = "Which option is better? The better option is"
    pieces = micro.option_row(task.prompt, task.right, task.wrong, question)
    ours = [reader.cls, *reader.encode(pieces), reader.mask, *reader.ids("."), reader.sep]
    assert theirs.tokens == ours


def test_of_an_answer_in_words_the_deciding_word_is_hidden():
    """Nothing else of the answer is gone, and the word is in no wrong answer."""
    rng = random.Random(3)
    for _ in range(300):
        row = micro.word_row(rng, WORLD)
        word = row.answer.strip()
        assert word in WORLD or word in micro.NUMBERS or word in micro.KINDS
        answer = row.before[-1] + row.answer + row.after[0]
        assert matches(micro.NAMING + micro.HAS + micro.TOPICAL, without_idle(answer)), answer
    for task in micro.WORD_TASKS:
        for _ in range(100):
            drawn = task(rng, WORLD, [])
            assert drawn.word in drawn.right.split(".")[0].replace("!", "").split()
            assert drawn.word not in re.findall(r"\w+", drawn.wrong)


def test_a_conversation_reads_as_it_does_for_a_model():
    for line in (NANO / "pairs" / "chat.test.jsonl").read_text("utf-8").splitlines()[:100]:
        prompt = json.loads(line)["prompt"]
        assert micro.as_text(prompt) == to_text(prompt, "")


# --- what must not solve it -----------------------------------------------------------------------


# 1,000 pairs at chance have a standard error of 0.016. Each domain meets six such tests or so; four
# standard errors are what none of them should exceed by luck.
CHANCE = 0.064


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

    return share_ahead([(score(chosen), score(rejected)) for chosen, rejected in test])


def share_ahead(scores):
    """How often the chosen one has the higher of two scores; equal ones count a half."""
    hits = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in scores]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("domain", micro.DOMAINS)
def test_the_response_alone_is_at_chance(domain):
    train, test = (
        [(p["chosen"], p["rejected"]) for p in pairs(domain, part)] for part in ("train", "test")
    )
    assert abs(naive_bayes(train, test) - 0.5) <= CHANCE


@pytest.mark.parametrize("domain", micro.DOMAINS)
def test_prompt_and_response_words_without_recall_are_at_chance(domain):
    """The same with each word of the response joined to each word of the prompt: all that can be
    said without knowing an attribute of an unseen word."""

    def joined(pair, key):
        prompt = set(re.findall(r"\w+", pair["prompt"].lower()))
        answer = set(re.findall(r"\w+", pair[key].lower()))
        return " . ".join(f"{p}_{a}" for p in sorted(prompt) for a in sorted(answer))

    train, test = (
        [(joined(p, "chosen"), joined(p, "rejected")) for p in pairs(domain, part)]
        for part in ("train", "test")
    )
    assert abs(naive_bayes(train, test) - 0.5) <= CHANCE


@pytest.mark.parametrize("domain", micro.DOMAINS)
def test_length_idle_talk_and_place_in_the_alphabet_are_at_chance(domain):
    """Each as a judge of its own: the longer answer, the one with an idle sentence, the one that
    comes first in the alphabet. Idle talk is on each side in three of ten pairs, independently."""

    def idle(text):
        return any(sentence in text for sentence in micro.ALL_IDLE)

    for part in ("train", "test"):
        rows = pairs(domain, part)
        for key in (len, str, idle):
            scores = [(key(row["chosen"]), key(row["rejected"])) for row in rows]
            assert abs(share_ahead(scores) - 0.5) <= CHANCE
        both = [row for row in rows if idle(row["chosen"]) and idle(row["rejected"])]
        assert abs(len(both) / len(rows) - 0.09) < 0.04
        for side in ("chosen", "rejected"):
            assert abs(sum(idle(row[side]) for row in rows) / len(rows) - 0.3) < 0.06


@pytest.mark.parametrize("domain", micro.DOMAINS)
def test_answers_have_many_wordings_and_lengths(domain):
    for part in ("train", "test"):
        for side in ("chosen", "rejected"):
            texts = [without_idle(row[side]) for row in pairs(domain, part)]
            lengths = {len(text.split()) for text in texts}
            assert len(lengths) >= 5 and max(lengths) >= 3 * min(lengths)


def test_the_prompt_alone_is_at_chance():
    """A judge that reads only the prompt says the same of both orders, so their mean is 0.5 by
    arithmetic. Left is what the prompt may say of the answer's shape: in reasoning, that the word
    named first is the right one; in safety, that the request sounds like one to refuse; in chat,
    that of two things the one named first is meant."""
    firsts = []
    for pair in pairs("reasoning", "test"):
        places = [pair["prompt"].find(*words_in(pair[key])) for key in ("chosen", "rejected")]
        assert min(places) >= 0
        firsts.append(places)
    assert abs(share_ahead(firsts) - 0.5) <= CHANCE

    def by_subset(part):
        refuse, help_ = (
            [p["prompt"] for p in pairs("safety", part) if p["subset"] == subset]
            for subset in ("refuse", "help")
        )
        return list(zip(refuse, help_, strict=False))

    assert abs(naive_bayes(by_subset("train"), by_subset("test")) - 0.5) <= CHANCE

    firsts = []
    for pair in pairs("chat", "train") + pairs("chat", "test"):
        if not pair["subset"].startswith(("refer", "persona")):
            continue
        place = {WORLD[word].kind: pair["prompt"].find(word) for word in words_in(pair["prompt"])}
        places = []
        for side in ("chosen", "rejected"):
            (kind,) = set(re.findall(r"[a-z]+", without_idle(pair[side]))) & set(micro.KINDS)
            places.append(place[kind])
        firsts.append(places)
    assert len(firsts) > 1000 and abs(share_ahead(firsts) - 0.5) <= CHANCE


def test_chat_is_a_conversation_of_one_to_four_turns():
    """A quarter of the pairs each. The question, which ends the last turn, never names a thing;
    what decides is an earlier turn or the system turn, but for plain questions of one turn."""
    turns, kinds = Counter(), Counter()
    for line in (NANO / "pairs" / "chat.test.jsonl").read_text("utf-8").splitlines():
        pair = json.loads(line)
        kind, said = pair["subset"].split(", ")
        messages = pair["prompt"]
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        users = [message for message in messages if message["role"] == "user"]
        turns[len(users)] += 1
        kinds[kind] += 1
        assert int(said.split()[0]) == len(users)
        assert (messages[0]["role"] == "system") == (kind == "persona")
        assert messages[-1]["role"] == "user"
        if kind in ("earlier", "refer"):
            assert len(users) > 1 and not words_in(users[-1]["content"])
    assert sorted(turns) == [1, 2, 3, 4] and min(turns.values()) > 200
    assert sorted(kinds) == ["earlier", "persona", "plain", "refer"]


@pytest.mark.parametrize("domain, part", FILES)
def test_some_prompts_reach_beyond_the_local_window(domain, part):
    """Local attention sees 64 tokens to one side; global attention is needed in one of twenty pairs
    of reasoning and safety, and in many conversations."""
    texts = [f" {pair['prompt']}" for pair in pairs(domain, part)]
    encodings = tokenizer().encode_batch(texts, add_special_tokens=False)
    sizes = sorted(len(encoding.ids) for encoding in encodings)
    assert 10 <= sizes[len(sizes) // 2] <= 60 and sizes[-1] <= 128
    share = sum(size > 64 for size in sizes) / len(sizes)
    if domain == "chat":
        assert 0.10 <= share <= 0.40
    else:
        assert 0.005 <= share <= 0.10


def test_idle_talk_can_be_put_on_either_side():
    rows = micro.make_pairs(WORLD, "safety", "test", 200)
    for sides in ((), ("chosen",), ("rejected",), ("chosen", "rejected")):
        for row in micro.add_idle(rows, sides, "test"):
            for side in ("chosen", "rejected"):
                count = sum(sentence in row[side] for sentence in micro.IDLE["test"])
                assert count == (1 if side in sides else 0)
                assert without_idle(row[side]) in micro.HELP + micro.REFUSALS


# --- the shipped files ----------------------------------------------------------------------------


def test_words_and_labels_are_single_tokens_with_and_without_the_space():
    labels = "A B 0 1 Yes No Instruction Option Response Question Choice Answer".split()
    roles = "System User Assistant".split()
    for word in [*WORLD, *micro.NUMBERS, *micro.KINDS, *labels, *roles]:
        for text in (word, " " + word):
            assert len(tokenizer().encode(text, add_special_tokens=False).ids) == 1, text


def test_any_string_survives_the_tokenizer():
    for text in ("", "  two  spaces ", "Grüße, 世界 🦜", "\x00\t\n", "zzzq-unheard-of"):
        ids = tokenizer().encode(text, add_special_tokens=False).ids
        assert tokenizer().decode(ids, skip_special_tokens=False) == text


def test_the_pieces_of_a_document_are_encoded_as_the_whole_text_is():
    rng, reader = random.Random(2), make.Reader(WORLD, tokenizer(), 0, 1)
    for _ in range(500):
        pieces = micro.document(rng, WORLD)
        if "[SEP]" not in pieces:
            whole = reader.tokenizer.encode("".join(pieces), add_special_tokens=False).ids
            assert reader.encode(pieces) == whole


@pytest.mark.parametrize("folder", MODELS.values(), ids=MODELS)
def test_the_shipped_encoders_open_in_transformers_and_recall_the_world(folder):
    """The same numbers from transformers and from tinyrm (1e-4: float32 sums in another order),
    and the recall of each attribute that the README reports."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ours = make.load_model(folder)
    text = "The brabin weighs[MASK] stone."
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        a = theirs(input_ids=ids).logits[0]
        b = ours.logits(ours(ids[0], torch.tensor([0, ids.shape[1]])))
    assert (a - b).abs().max() < 1e-4
    reader = make.Reader(WORLD, tokenizer(), 0, 1)
    assert min(make.recall(ours, reader).values()) > 0.95


def answers_right(folder):
    reader = make.Reader(WORLD, tokenizer(), 99, 64)
    model = make.load_model(folder)
    with torch.inference_mode():
        return sum(make.losses_at(model, reader, step, True).right for step in range(8)) / 8


def test_only_the_instructed_encoder_answers_instructions():
    """1,024 fresh tasks. nano has never seen a verdict, and most often says another word than the
    answers or tosses a coin; the instructed one is right."""
    assert answers_right(MODELS["nano"]) < 0.6
    assert answers_right(MODELS["instruct"]) > 0.95


def test_shipped_files_are_small():
    for folder in (*MODELS.values(), NANO / "causal"):
        assert (folder / "model.safetensors").stat().st_size < 4e6


def test_the_tokenizer_of_the_script_is_the_shipped_one_and_knows_each_word_of_the_pairs(tmp_path):
    made = make.make_tokenizer(WORLD)
    make.save_tokenizer(made, tmp_path)
    expected = (tmp_path / "tokenizer.json").read_bytes()
    for folder in (*MODELS.values(), NANO / "causal"):
        assert (folder / "tokenizer.json").read_bytes() == expected
    words = set()
    for file in FILES:
        for pair in pairs(*file):
            for key in ("prompt", "chosen", "rejected"):
                words.update(re.findall(r"\w+", pair[key]))
    for word in words:
        assert len(made.encode(f" {word}", add_special_tokens=False).ids) == 1, word


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """make.py as a command, in this process: importing torch once is the quick part of quick."""
    threads = torch.get_num_threads()

    def go(out, *flags):
        make.main(["--out", str(out), "--rows", "4", *flags])
        return capsys.readouterr().out

    shipped = tokenizer()
    monkeypatch.setattr(make, "make_tokenizer", lambda world: shipped)  # a test of its own, above
    yield go
    torch.set_num_threads(threads)


@pytest.mark.parametrize("instruct", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_short_run_is_deterministic_and_goes_on_where_it_stopped(run, tmp_path, instruct, causal):
    """Six steps at once, and four of them followed by the last two in another run: bit for bit the
    same weights. The rates of the schedule, which is a function of the step, agree as well."""
    flags = ["--steps", "6", "--width", "32"]
    if causal:
        flags.append("--causal")
    if instruct:
        run(tmp_path / "plain", *flags)
        flags = ["--steps", "6", "--instruct", str(tmp_path / "plain")]
    assert re.search(r"step 6/6 .* tokens/s", run(tmp_path / "a", *flags))
    run(tmp_path / "b", *flags, "--stop", "4")
    assert "goes on at step 4" in run(tmp_path / "b", *flags)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_control_has_the_same_text_and_no_tasks(run, tmp_path):
    run(tmp_path / "plain", "--steps", "2", "--width", "32")
    flags = ["--steps", "2", "--instruct", str(tmp_path / "plain"), "--no-tasks"]
    assert "verdicts" not in run(tmp_path / "control", *flags)


def test_a_head_at_cls_can_be_instructed_instead(run, tmp_path):
    """It is stored as a classifier over an encoder that was trained with it, and a killed run goes
    on to the same bits."""
    run(tmp_path / "plain", "--steps", "2", "--width", "32")
    flags = ["--steps", "4", "--instruct", str(tmp_path / "plain"), "--head", "cls"]
    run(tmp_path / "a", *flags)
    run(tmp_path / "b", *flags, "--stop", "2")
    run(tmp_path / "b", *flags)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    fresh = tinyrm.load(tmp_path / "plain", "cls", seed=17)
    instructed = tinyrm.load(tmp_path / "a")
    assert instructed.head_kind == "cls"
    for name in ("classifier.weight", "model.layers.0.mlp.Wi.weight"):
        assert not torch.equal(fresh.state_dict()[name], instructed.state_dict()[name])


def test_the_classes_are_the_labels():
    """A classifier that always says A is right where the answer's label is A."""
    reader = make.Reader(WORLD, tokenizer(), 0, 8)
    model = make.load_model(NANO)
    make.add_classifier(model, 0)
    model.at_cls.classifier.weight.data.zero_()
    model.at_cls.classifier.bias.data.copy_(torch.tensor([9.0, -9.0]))
    task = reader.answers(1, causal=False, plain=True)  # labels alone
    hidden = model(task.tokens, make.starts_of(task.lengths))
    answered = make.answers_with_classes(model, reader, task, hidden)
    says_a = (task.what == reader.ids(" A")[0]).float().mean().item()
    assert 0.5 < says_a < 1  # at one half, B as class 0 would be right as often
    assert answered.right == pytest.approx(says_a)


def test_the_decoder_is_asked_for_each_next_token_of_the_same_text():
    reader = make.Reader(WORLD, tokenizer(), 0, 4)
    text = reader.next_tokens(0)
    assert torch.equal(text.tokens, reader.masked(0, share=0.0).tokens)
    # no document's last token has a next one
    assert len(text.where) == len(text.tokens) - len(text.lengths)
    ends = make.starts_of(text.lengths)[1:] - 1
    assert not set(text.where.tolist()) & set(ends.tolist())
    assert torch.equal(text.what, text.tokens[text.where + 1])


@pytest.mark.parametrize("causal", [False, True])
def test_of_a_task_only_the_answer_is_hidden(causal):
    reader = make.Reader(WORLD, tokenizer(), 0, 4)
    batch = reader.answers(0, causal, plain=True)
    labels = [reader.ids(label)[0] for label in (" A", " B")]
    assert len(batch.where) == 8 and set(batch.what.tolist()) <= set(labels)
    if causal:  # the row ends where the answer would come
        assert batch.where.tolist() == (make.starts_of(batch.lengths)[1:] - 1).tolist()
        assert (batch.tokens == reader.mask).sum() == 0
    else:
        assert (batch.tokens == reader.mask).nonzero().squeeze(1).tolist() == batch.where.tolist()


def test_the_help_names_each_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        make.main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    flags = "--out --steps --stop --lr --seed --show --instruct --no-tasks --pairs".split()
    assert all(flag in told for flag in flags)


def test_a_narrower_encoder_keeps_its_heads_of_32():
    for width in (32, 64, 96, 128):
        config = make.config_of(tokenizer(), width=width)
        assert (config["hidden_size"], config["intermediate_size"]) == (width, width * 3 // 2)
        assert config["hidden_size"] // config["num_attention_heads"] == 32
    shipped = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] == shipped["hidden_size"] == 128
