"""A tiny reward model as the reward of GRPO and RLOO, in TRL.

    pip install '.[examples]'
    python examples/trl_grpo.py runs/NAME Qwen/Qwen3-0.6B prompts.jsonl --num_generations 8 \\
        --per_device_train_batch_size 8 --output_dir runs/policy

A line of prompts.jsonl has a "prompt" (a string or messages) and, if you like, a "reference", a
fixed answer to it, and a "domain". What follows are the flags of TRL's GRPOConfig, or with --rloo
of RLOOConfig.

The reward of a completion is its mean probability of winning against the others of its group: those
that the policy gave to the same prompt. It is a number from 0 to 1, a half for a completion alone
and for equal ones. TRL's GRPO still divides by the standard deviation of the group, by default, so
that small differences count as much as large ones; --scale_rewards none leaves the rewards as they
are. Their mean over a group is always a half, so it does not say whether the policy gets better:
for that the win rate over the references, of the rows that have one, is logged.

Of a policy that thinks first only the answer is judged: a completion is read from behind its
`</think>`; one that begins with `<think>` and does not end it is an empty answer.

Groups of more than 8 different completions play a tournament (evaluate.RewardModel.rank): not all
of them meet, and the rewards are partly inferred from the games that were played.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluate import RewardModel  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from infra.tables import read_rows  # noqa: E402

THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"


def win_probability(
    prompts: list,
    completions: list,
    *,
    reward_model: RewardModel,
    group_size: int,
    reference: list | None = None,
    domain: list[str | None] | None = None,
    log_metric: Callable | None = None,
    **others,
) -> list[float]:
    """The rewards of B completions, whose groups stand one behind the other. TRL calls it with the
    columns of the data set, of which `reference` and `domain` are used, and with its `log_metric`.

    ValueError if a group is not whole."""
    check_groups(prompts, group_size)
    firsts = range(0, len(prompts), group_size)
    completions = [without_thoughts(completion) for completion in completions]

    # a row without the column has None in it
    domains = [""] * len(prompts)
    if domain is not None:
        domains = ["" if of_row is None else of_row for of_row in domain]

    # all groups in one call, which fills whole batches
    groups = [completions[first:first + group_size] for first in firsts]
    rankings = reward_model.rank([prompts[first] for first in firsts], groups,
                                 [domains[first] for first in firsts])
    rewards = [0.0] * len(prompts)
    for first, ranked in zip(firsts, rankings, strict=True):
        for one in ranked:
            rewards[first + one.index] = one.win

    if reference is not None and log_metric is not None:
        with_one = [index for index, text in enumerate(reference) if text is not None]
        if with_one:
            wins = reward_model.compare(
                [prompts[index] for index in with_one],
                [completions[index] for index in with_one],
                [reference[index] for index in with_one],
                [domains[index] for index in with_one],
            )
            log_metric("win_rate_over_reference", sum(wins) / len(wins))
    return rewards


def without_thoughts(completion: str | list) -> str | list:
    """The answer of a completion, a string or messages, without what the policy thought before."""
    if not isinstance(completion, str):
        messages = []
        for message in completion:
            content = message.get("content")
            if isinstance(content, str):
                message = message | {"content": without_thoughts(content)}
            messages.append(message)
        return messages

    if THOUGHTS_END in completion:
        return completion.partition(THOUGHTS_END)[2].lstrip()
    if completion.lstrip().startswith(THOUGHTS_BEGIN):
        return ""
    return completion


def check_groups(prompts: list, group_size: int):
    """Whether this process has whole groups: `group_size` times the same prompt."""
    whole = len(prompts) % group_size == 0
    for first in range(0, len(prompts), group_size):
        group = prompts[first:first + group_size]
        whole = whole and all(prompt == group[0] for prompt in group)
    if not whole:
        raise ValueError(
            f"{len(prompts)} completions here are not whole groups of {group_size} to one prompt: "
            "a group must not be split over processes. Make per_device_train_batch_size * "
            "steps_per_generation (by default gradient_accumulation_steps) a multiple of "
            "num_generations, and so per_device_eval_batch_size; leave num_generations_eval out")


def make_reward(reward_model: RewardModel, group_size: int) -> Callable:
    """What TRL's trainers take as one of their reward_funcs; group_size is num_generations."""
    return partial(win_probability, reward_model=reward_model, group_size=group_size)


def main(argv: list[str] | None = None):
    from datasets import Dataset
    from transformers import HfArgumentParser
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("judge", metavar="JUDGE", help="a run, a model folder or a Hub name")
    add("policy", metavar="POLICY", help="the model that is trained, by its folder or Hub name")
    add("prompts", metavar="PROMPTS", help="JSON lines, or another table (infra/tables.py)")
    add("--rloo", action="store_true", help="RLOO in place of GRPO")
    flags, of_trl = parser.parse_known_args(argv)

    trainer_class, config_class = GRPOTrainer, GRPOConfig
    if flags.rloo:
        trainer_class, config_class = RLOOTrainer, RLOOConfig
    (config,) = HfArgumentParser(config_class).parse_args_into_dataclasses(of_trl)

    rows = [found.row for found in read_rows(flags.prompts)]
    names = dict.fromkeys(name for row in rows for name in row)  # from_list takes the first row's
    columns = {name: [row.get(name) for row in rows] for name in names}
    trainer = trainer_class(
        model=flags.policy,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        reward_funcs=make_reward(RewardModel.load(flags.judge), config.num_generations),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
