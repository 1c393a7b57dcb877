"""The model card of a folder that can be published: what the model is, how it is asked, with tinyrm
and with transformers alone, and under which licenses its base and its data stand.

The folder stands alone: nothing in its card points to a place on the machine that made it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data import DOMAINS, GENERAL, QUESTION, TEMPLATES, Pair, PromptFormat, Slot
from infra.benchmarks import BENCHMARKS
from infra.hub import license_of_model
from infra.sources import SOURCES
from tinyrm import ModernBERT

PIPELINES = {"MaskedLM": "fill-mask", "SequenceClassification": "text-classification",
             "CausalLM": "text-generation"}
SPECIAL = {Slot.CLS: "cls", Slot.SEP: "sep", Slot.MASK: "mask"}
EXAMPLE = 'prompt, a, b = "What is 2 + 2?", "4", "5"'


class License(NamedTuple):
    of: str  # a model or a data set
    name: str  # as the Hub writes it, or "none named"


def licenses_of(record: dict) -> list[License]:
    """Of the base and of the data that a run was trained on; `record` is its run.json. Of a data
    set that is not in infra/sources.py, and of files of one's own, none is known."""
    found = [License(public_name(record["base"]), license_of_model(record["base"]))]

    # data sets on the Hub; benchmarks only had their prompts taken out
    not_trained_on = {"model"} | {benchmark.repository for benchmark in BENCHMARKS.values()}
    for repository in record["revisions"]:
        if repository in SOURCES:
            found.append(License(repository, SOURCES[repository].license))
        elif repository not in not_trained_on:
            found.append(License(repository, "none named"))

    # files
    for name in record["settings"]["data"]:
        if name == "nano":
            found.append(License("nano/pairs", "apache-2.0"))
        elif name not in ("hub", "hub:author") and name not in record["revisions"]:
            found.append(License(Path(name).name, "none named"))
    return found


def license_lines(licenses: list[License]) -> str:
    """For the head of the card: the base's license where no other one has a say."""
    names = {license.name for license in licenses}
    if len(names) == 1 and names != {"none named"}:
        return f"license: {names.pop()}"
    return "license: other\nlicense_name: those-of-base-and-data\nlicense_link: README.md"


def license_section(licenses: list[License]) -> str:
    lines = ["## Licenses", ""]
    for license in licenses:
        lines.append(f"- {license.of}: {license.name}")
    if any("-nc-" in license.name for license in licenses):
        lines += ["", "At least one of them is not for commercial use (NC)."]
    return "\n".join(lines)


def public_name(model: str) -> str:
    """The name of a model without the folder that it was read from."""
    if Path(model).is_absolute() or model.startswith((".", "~")):
        return Path(model).name
    return model


def public_source(record: dict) -> str:
    """Where the pairs come from, in words, without the folders of files."""
    source = record["source"]
    for name in record["settings"]["data"]:
        if Path(name).exists():
            source = source.replace(str(name), Path(name).name)
    return source


# ------------------------------------------------------------------------------ the text of a row


def literal(parts: Iterable, question: str) -> str:
    """Parts of a template as a Python expression: "Option A: " + a."""
    words, text = [], ""
    for part in parts:
        if part is QUESTION:
            text += question
        elif isinstance(part, str):
            text += part
        else:
            if text:
                words.append(repr(text))
            words.append(part.value)  # a variable: prompt, a or b
            text = ""
    if text:
        words.append(repr(text))
    return " + ".join(words)


def row_text(prompt_format: PromptFormat) -> str:
    """The text of a row, with the names of what is filled in."""
    question = prompt_format.question_for(Pair("", "", ""))
    text = ""
    for parts in TEMPLATES[prompt_format.template, prompt_format.context].pieces:
        for part in parts:
            if isinstance(part, str):
                text += part
            elif part is QUESTION:
                text += question
            elif part in SPECIAL:
                text += f"[{SPECIAL[part].upper()}]"
            else:
                text += "{" + part.value + "}"
    return text


def questions(prompt_format: PromptFormat) -> str:
    """What a generalist asks about pairs of each domain."""
    if prompt_format.domain != "all" or prompt_format.question:
        return ""
    lines = [f"\n- the question above is that of {GENERAL}; by the domain of a pair it asks:"]
    for domain in DOMAINS:
        question = prompt_format.question_for(Pair("", "", "", domain=domain))
        lines.append(f"  {domain}: {question!r}")
    return "\n".join(lines)


def transformers_snippet(prompt_format: PromptFormat, opens_with: str) -> str:
    """Python that asks the model with transformers (of an adapter also peft) alone. Texts that were
    cut in training are not cut here."""
    library, _, loader = opens_with.rpartition(".")
    question = prompt_format.question_for(Pair("", "", ""))
    pieces = []
    for parts in TEMPLATES[prompt_format.template, prompt_format.context].pieces:
        if parts[0] in SPECIAL:
            pieces.append(f"[{SPECIAL[parts[0]]}]")
        else:
            pieces.append(literal(parts, question))
    pieces = ",\n              ".join(pieces)

    first, second = prompt_format.label_ids
    logits = "logits[0]"  # of head "cls": those of two classes
    if prompt_format.head == "cloze":
        logits = "logits[0, ids.index(mask)]"

    signature, probability = "prompt, a, b", """x, y = score(prompt, a, b), score(prompt, b, a)
print((x.sigmoid() + 1 - y.sigmoid()) / 2)  # the probability that a is better"""
    if prompt_format.context == "single":
        signature, probability = "prompt, a", """x, y = score(prompt, a), score(prompt, b)
print((x - y).sigmoid())  # the probability that a is better"""

    return f"""import torch
from {library} import {loader}
from transformers import AutoTokenizer

model = {loader}.from_pretrained(".").eval()
tokenizer = AutoTokenizer.from_pretrained(".")
cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id

def score({signature}):
    pieces = [{pieces}]
    ids = []
    for piece in pieces:
        if isinstance(piece, str):  # as text, also where it says "[MASK]"
            piece = tokenizer(piece, add_special_tokens=False, split_special_tokens=True).input_ids
        ids += piece
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).{logits}
    return logits[{first}] - logits[{second}]

{EXAMPLE}
{probability}"""


# ------------------------------------------------------------------------------------- the card


def model_card(name: str, record: dict, model: ModernBERT, prompt_format: PromptFormat,
               evaluate_program: str, adapter: bool = False) -> str:
    """The card of a run's model/, or of its adapter/. `record` is what run.json holds."""
    settings = record["settings"]
    architecture = model.config.architectures[model.head_kind]
    task = architecture.partition("For")[2]

    opens_with = f"transformers.AutoModelFor{task}"
    if adapter:
        opens_with = "peft.AutoPeftModel"
        if prompt_format.head == "cls":
            opens_with = "peft.AutoPeftModelForSequenceClassification"

    base = public_name(record["base"])
    base_line = f"# trained from the folder {base}"
    if "@" in record["revisions"]["model"]:  # REPOSITORY@COMMIT
        base_line = f"base_model: {base}"

    shown = "two responses"
    if prompt_format.context == "single":
        shown = "one response at a time"

    licenses = licenses_of(record)
    return f"""---
{license_lines(licenses)}
{base_line}
library_name: {"peft" if adapter else "transformers"}
pipeline_tag: {PIPELINES[task]}
tags: [reward-model, tiny-reward-models, modernbert]
---
# {name}

A tiny reward model (arXiv 2507.09973) for {settings["domain"]}: it reads a prompt and {shown} and
says which is better. Trained with tinyrm from {public_name(record["revisions"]["model"])} on
{public_source(record)}.

- {accuracy_line(record["result"])}
- recipe: {settings["adapter"]}, {settings["freeze"]} layers frozen, peak rate {settings["lr"]:g},
  {record["steps"]} steps of {settings["batch_size"]} rows, seed {settings["seed"]}
- a row: `{row_text(prompt_format)}`
- template `{settings["template"]}`, at most {prompt_format.max_length} tokens, read at
  {"[CLS]" if prompt_format.head == "cls" else "[MASK]"}, {labels_line(prompt_format)}\
{questions(prompt_format)}

{how_to_ask(model, prompt_format, opens_with, evaluate_program)}

{license_section(licenses)}
"""


def accuracy_line(result: dict) -> str:
    if not result["n"]:
        return "no test pairs"
    return (f"test accuracy: {result['accuracy_before']:.3f} before, "
            f"{result['accuracy_after']:.3f} after,\n  on {result['n']} pairs")


def labels_line(prompt_format: PromptFormat) -> str:
    if prompt_format.head == "cls":
        return "labels: two classes"
    first, second = prompt_format.label_ids
    decode = prompt_format.tokenizer.decode
    return f"labels `{decode([first])}` and `{decode([second])}`"


def how_to_ask(model: ModernBERT, prompt_format: PromptFormat, opens_with: str,
               evaluate_program: str) -> str:
    """The snippets; of a kind of model that is not tinyrm's own (the causal twin) the command."""
    if type(model) is not ModernBERT:
        return f"""In this folder, from a checkout of tinyrm (it opens with `{opens_with}`, too):

```bash
{evaluate_program} PATH/TO/THIS/FOLDER pairs.jsonl
```"""

    return f"""In this folder (elsewhere give its path or its name on the Hub in place of `"."`),
with a checkout of tinyrm on `PYTHONPATH`:

```python
from evaluate import RewardModel

{EXAMPLE}
rm = RewardModel.load(".")
print(rm.compare(prompt, a, b))  # the probability that a is better
```

The same without tinyrm:

```python
{transformers_snippet(prompt_format, opens_with)}
```"""
