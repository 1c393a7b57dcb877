"""What a run will do and need, before it does it: what the Hub has to send; and for --dry-run its
pairs, tokens, parameters and memory."""

import math
from collections.abc import Sequence
from pathlib import Path

from data import PromptFormat
from infra import distributed, sources
from infra.hub import (
    Wanted,
    bytes_to_fetch,
    commit_of,
    fetch_pinned,
    parse_revisions,
    wanted_model,
)
from infra.machine import Machine, count_parameters, memory_of
from infra.sources import PairSets
from tinyrm import ModernBERT


def fetch(model: str, data_names: Sequence[str], domain: str, revision: Sequence[str]) -> Path:
    """The folder of a model. Before anything is fetched, a line says what the Hub has to send: the
    model, and the pairs that --data names."""
    wanted = sources.to_fetch(data_names, domain, revision)
    of_model = wanted_model(model, parse_revisions(revision).get(""))
    if of_model is not None:
        wanted.insert(0, of_model)
    if wanted and distributed.rank() == 0:
        distributed.log(announcement(wanted))
    return fetch_pinned(model, revision)


def announcement(wanted: list[Wanted]) -> str:
    """What the Hub has to send, in words."""
    parts, total = [], 0
    for one in wanted:
        size = bytes_to_fetch(one)
        if size is None:
            # the others are not asked: without a network each may take its time
            return (f"the Hub does not say how large {one.repository} is (no network, or no "
                    "access): what its cache has is taken")
        if size > 0:
            parts.append(f"{one.repository} {size / 1e9:.3g} GB")
            total += size
    if not parts:
        names = ", ".join(one.repository for one in wanted)
        return f"the Hub has nothing to send: {names} in its cache"
    return f"the Hub will send {total / 1e9:.3g} GB, once: {', '.join(parts)}"


SAMPLE = 500  # pairs that are tokenised to estimate the tokens of all


def show(model: ModernBERT, prompt_format: PromptFormat, pairs: PairSets, model_folder: Path,
         steps: int, batch_size: int, micro_tokens: int, machine: Machine):
    """Print pairs, rows, tokens, steps, trainable parameters, memory, and what comes from the
    Hub."""
    every = max(1, len(pairs.train) // SAMPLE)
    sample = pairs.train[::every]
    rows_of_pairs, dropped = prompt_format.rows(sample)
    tokens_sampled, n = 0, 0
    for rows in rows_of_pairs:
        if rows is not None:
            tokens_sampled += len(rows[0].tokens) + len(rows[1].tokens)
            n += 1

    rows_in_all = 2 * pairs_seen(len(pairs.train), steps, batch_size // 2)
    tokens_a_row = tokens_sampled / max(1, 2 * n)
    tokens = tokens_a_row * rows_in_all
    distributed.log(f"plan: {rows_in_all // 2:,} pairs, {rows_in_all:,} rows, about {tokens:,.0f} "
                    f"tokens (mean of {n} pairs; dropped of them: {dict(dropped)}); {steps} steps")

    sizes = count_parameters(model)
    distributed.log(f"      {sizes.trainable:,} of {sizes.all:,} parameters train")

    memory = memory_of(model, machine.dtype)
    at_once = min(micro_tokens, tokens_a_row * batch_size / distributed.world_size())
    parts = {**memory.fixed,
             f"the backward pass of {at_once:,.0f} tokens": memory.per_token * at_once}
    detail = ", ".join(f"{size / 2**30:.1f} {what}" for what, size in parts.items())
    total = sum(parts.values()) / 2**30
    distributed.log(f"      about {total:.1f} GiB in each process, without torch itself ({detail})")

    fetched = [f"{repository}@{commit}" for repository, commit in pairs.commits.items()]
    commit = commit_of(model_folder)
    if commit:
        size = sum(file.stat().st_size for file in model_folder.iterdir())
        fetched.insert(0, f"the model at {commit} ({size / 1e9:.2f} GB)")
    if fetched:
        distributed.log(f"      from the Hub: {', '.join(fetched)}")


def pairs_seen(n: int, steps: int, pairs_a_step: int) -> int:
    """How many pairs so many steps have, as train.step_pairs cuts epochs of n pairs into steps."""
    every = math.ceil(n / pairs_a_step)  # steps an epoch
    epochs, rest = divmod(steps, every)
    return epochs * n + rest * n // every
