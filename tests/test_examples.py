"""The reward for GRPO and RLOO; with TRL, which the extra `examples` installs, a few steps of both,
and of the exported scalar model with nothing of ours.

    python -m pytest tests/test_examples.py
"""

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import train
from evaluate import RewardModel
from examples import trl_grpo
from infra import export
from infra.hub import ROOT


@pytest.fixture(scope="module")
def judge(tiny):
    return RewardModel.load(tiny, device="cpu")


@pytest.fixture
def reward(judge):
    return trl_grpo.make_reward(judge, 3)


TEXTS = ["two", "six seven", "three four", "one", "nine", "ten"]


def test_the_reward_is_the_mean_probability_of_winning_in_the_group(judge, reward):
    rewards = reward(["one"] * 3 + ["two"] * 3, TEXTS, completion_ids=[], trainer_state=None)
    for first, prompt in ((0, "one"), (3, "two")):
        group = TEXTS[first:first + 3]
        for one in judge.rank(prompt, group):
            assert rewards[first + one.index] == pytest.approx(one.win, abs=1e-6)
        assert sum(rewards[first:first + 3]) == pytest.approx(1.5)


def test_a_half_for_one_alone_and_for_equal_ones(judge, reward):
    assert trl_grpo.make_reward(judge, 1)(["one"], ["two"]) == [0.5]
    assert reward(["one"] * 3, ["two"] * 3) == [0.5] * 3
    a, b, c = reward(["one"] * 3, ["two", "six", "two"])
    assert a == c != b


def messages(role, text):
    return [{"role": role, "content": text}]


def test_messages_are_read_as_strings_are(reward):
    prompts = [messages("user", "one")] * 3
    said = [messages("assistant", text) for text in TEXTS[:3]]
    assert reward(prompts, said) == reward(["one"] * 3, TEXTS[:3])


@pytest.mark.parametrize("prompts", [
    ["one"] * 2, ["one"] * 4, ["one", "one", "two"], ["one"] * 3 + ["two", "one", "one"],
])
def test_a_group_that_is_split_is_refused(reward, prompts):
    with pytest.raises(ValueError, match="a group must not be split over processes"):
        reward(prompts, TEXTS[:len(prompts)])


def test_a_prompt_that_is_too_long_does_not_end_a_run(reward):
    rewards = reward(["one two " * 20_000] * 3, ["two", "six " * 20_000, "three four"])
    assert sum(rewards) == pytest.approx(1.5)


def test_the_win_rate_over_the_reference_is_logged(judge, reward):
    logged = {}
    reward(["one"] * 3, TEXTS[:3], reference=["nine"] * 3, log_metric=logged.__setitem__)
    wins = judge.compare(["one"] * 3, TEXTS[:3], ["nine"] * 3)
    assert logged == {"win_rate_over_reference": pytest.approx(sum(wins) / 3)}


def test_rows_without_a_reference_or_a_domain_do_not_count_or_have_none(judge, reward):
    logged = {}
    rewards = reward(["one"] * 3 + ["two"] * 3, TEXTS, reference=["nine"] * 3 + [None] * 3,
                     domain=[None] * 6, log_metric=logged.__setitem__)
    wins = judge.compare(["one"] * 3, TEXTS[:3], ["nine"] * 3)
    assert logged == {"win_rate_over_reference": pytest.approx(sum(wins) / 3)}
    assert rewards == pytest.approx(reward(["one"] * 3 + ["two"] * 3, TEXTS))
    reward(["one"] * 3, TEXTS[:3], reference=[None] * 3, log_metric=pytest.fail)


def test_thoughts_are_not_judged(reward):
    plain = reward(["one"] * 3, ["two", "six seven", ""])
    texts = ["<think>\nlong\n</think>\n\ntwo", "the prompt began it</think>six seven",
             "<think> without an end"]
    assert reward(["one"] * 3, texts) == plain
    assert reward(["one"] * 3, [messages("assistant", text) for text in texts]) == plain


def test_the_domain_of_a_row_asks_its_question(judge, reward):
    rewards = reward(["one"] * 3, TEXTS[:3], domain=["safety"] * 3)
    wins = {one.index: one.win for one in judge.rank("one", TEXTS[:3], "safety")}
    assert rewards == pytest.approx([wins[0], wins[1], wins[2]])


# --- with TRL --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl", reason="the extra `examples` installs it")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a random causal model of one layer that speaks nano's words."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        ROOT / "nano", eos_token="[SEP]", padding_side="left")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n" \
                              "{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
                         num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                         bos_token_id=tokenizer.cls_token_id)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rows(talk):
    """Prompts with references: strings, or messages."""
    texts = ["Which one is heavier?", "two or six?", "one two three", "Is it safe?"]
    if not talk:
        return [{"prompt": text, "reference": "two"} for text in texts]
    return [{"prompt": messages("user", text), "reference": messages("assistant", "two")}
            for text in texts]


def few_steps(folder):
    """Flags of TRL for two steps on this machine's processor."""
    return ["--output_dir", str(folder), "--max_steps", "2", "--num_generations", "4",
            "--per_device_train_batch_size", "4", "--max_completion_length", "8", "--use_cpu",
            "--bf16", "False", "--logging_steps", "1", "--report_to", "none", "--save_strategy",
            "no"]


def test_keys_that_the_first_row_has_not_reach_the_reward(trl, tiny, policy, tmp_path):
    some = rows(False)
    del some[0]["reference"]
    some[1]["domain"] = "chat"
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in some))
    trainer = trl_grpo.main([str(tiny), str(policy), str(file), *few_steps(tmp_path / "out")])
    assert trainer.train_dataset[1] == some[1]
    assert trainer.train_dataset[0] == some[0] | {"reference": None, "domain": None}


@pytest.mark.parametrize("talk", [False, True], ids=["strings", "messages"])
@pytest.mark.parametrize("rloo", [False, True], ids=["grpo", "rloo"])
def test_a_few_steps_of_a_random_policy(trl, tiny, policy, tmp_path, rloo, talk):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(talk)))
    words = [str(tiny), str(policy), str(file), *few_steps(tmp_path / "out")]
    trainer = trl_grpo.main(words + ["--rloo"] * rloo)

    steps = [line for line in trainer.state.log_history if "reward" in line]
    assert len(steps) == 2
    for step in steps:
        assert step["rewards/win_probability/mean"] == pytest.approx(0.5)
        assert 0 < step["win_rate_over_reference"] < 1
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_group_over_two_batches_is_refused_by_name(trl, tiny, policy, tmp_path):
    """Four generations to a prompt, two of them at a time: as with two processes of two each."""
    config = trl.GRPOConfig(output_dir=str(tmp_path), num_generations=4, use_cpu=True, bf16=False,
                            per_device_train_batch_size=4, report_to="none", max_steps=1,
                            max_completion_length=4)
    from datasets import Dataset

    reward = trl_grpo.make_reward(RewardModel.load(tiny, device="cpu"), 8)
    trainer = trl.GRPOTrainer(model=str(policy), args=config, reward_funcs=reward,
                              train_dataset=Dataset.from_list(rows(False)))
    with pytest.raises(ValueError, match="must not be split over processes"):
        trainer.train()


def test_the_exported_model_is_a_reward_with_nothing_of_ours(trl, policy, pairs_file, tmp_path):
    from datasets import Dataset

    run = tmp_path / "run"
    train.main(["--domain", "reasoning", "--model", str(ROOT / "nano"), "--data", str(pairs_file),
                "--max-steps", "2", "--context", "single", "--head", "cls", "--lr", "0.02",
                "--device", "cpu", "--held-out", "4", "--out", str(run)])
    export.export(run, tmp_path / "exported")
    config = trl.GRPOConfig(output_dir=str(tmp_path / "out"), num_generations=4, use_cpu=True,
                            bf16=False, per_device_train_batch_size=4, report_to="none",
                            max_steps=1, max_completion_length=8, logging_steps=1)
    trainer = trl.GRPOTrainer(model=str(policy), args=config, train_dataset=Dataset.from_list(
        rows(True)), reward_funcs=str(tmp_path / "exported"))
    trainer.train()

    # what it logged is what we score
    logged = trainer._logs
    judge = RewardModel.load(run, device="cpu")
    (name,) = logged["rewards"]
    assert len(logged["completion"]) == 4
    for prompt, completion, score in zip(logged["prompt"], logged["completion"],
                                         logged["rewards"][name], strict=True):
        (ours,) = judge.rank(prompt, [completion])
        assert score == pytest.approx(ours.score, abs=1e-5)
