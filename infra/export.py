"""A scalar reward model for everyone's tools: `python infra/export.py RUN DIR`.

RUN is the folder of a run of `train.py --context single --head cls`, or its model/. DIR becomes one
folder that transformers' AutoModelForSequenceClassification opens with num_labels = 1, and whose
tokenizer has a chat template: what TRL's trainers take as a reward model by its name, with nothing
of ours.

- The score of a response is the difference of its two classes, z_0 - z_1 = (w_0 - w_1) h + b_0 -
  b_1: the two rows of the classifier become one.
- The chat template writes the row of data.TEMPLATES with its special tokens in the text, since
  these tools tokenise what a template gave with add_special_tokens=False.

The last message is the response that is scored, what stands before it the prompt, written as
infra/pairs.py does.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # else this folder's modules could be taken for other libraries'
    sys.path[0] = str(ROOT)

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from data import (  # noqa: E402
    CLS,
    MASK,
    PROMPT,
    QUESTION,
    RESPONSE_A,
    SEP,
    TEMPLATES,
    Pair,
    PromptFormat,
    load_tokenizer,
)
from infra.card import (  # noqa: E402
    accuracy_line,
    license_lines,
    license_section,
    licenses_of,
    row_text,
)
from infra.files import replacing, write_json  # noqa: E402
from infra.stopping import exit_code_of  # noqa: E402
from tinyrm import read_json  # noqa: E402

# Of messages: one alone is its bare text, several are "User: ...", "Assistant: ..." with blank
# lines between.
TURNS = (
    "{%- if messages | length < 2 -%}"
    "{{ raise_exception('give a prompt and a response: two messages at least') }}"
    "{%- endif -%}"
    "{%- for message in messages if message['content'] is not string -%}"
    "{{ raise_exception('the content of a message must be a string') }}"
    "{%- endfor -%}"
    "{%- for message in messages if message['tool_calls'] -%}"
    "{{ raise_exception('calls of tools cannot be scored: give messages of text') }}"
    "{%- endfor -%}"
    "{%- if messages[-1]['role'] != 'assistant' -%}"
    "{{ raise_exception('the last message is scored: it must be the response of an assistant') }}"
    "{%- endif -%}"
)
PROMPT_OF_MESSAGES = (
    "{%- if messages | length == 2 -%}{{ messages[0]['content'] }}"
    "{%- else -%}"
    "{%- for message in messages[:-1] -%}"
    "{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}"
    "{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{%- endfor -%}"
    "{%- endif -%}"
)
RESPONSE_OF_MESSAGES = "{{ messages[-1]['content'] }}"


def chat_template(prompt_format: PromptFormat, names: dict) -> str:
    """The row of a prompt and a response as a Jinja template; `names` are the special tokens."""
    question = prompt_format.question_for(Pair("", "", ""))
    text = TURNS
    for parts in TEMPLATES[prompt_format.template, prompt_format.context].pieces:
        for part in parts:
            if part is PROMPT:
                text += PROMPT_OF_MESSAGES
            elif part is RESPONSE_A:
                text += RESPONSE_OF_MESSAGES
            elif part is QUESTION:
                text += as_literal(question)
            elif part in (CLS, SEP, MASK):
                text += as_literal(names[part])
            else:
                text += as_literal(part)
    return text


def as_literal(text: str) -> str:
    """A text as it is, which Jinja does not read."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"  # no surrogates


def load_format(folder: Path) -> PromptFormat:
    """How a model is asked. ValueError, with the reason, for one that no tool can ask this way."""
    file = folder / "tinyrm.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no tinyrm.json in it: give a run of train.py, or its model/")
    settings = read_json(file)
    if settings.get("head") != "cls":
        raise ValueError(
            f"{folder} is a cloze: it reads a word at [MASK], but a classifier of transformers "
            "pools the first token or the mean, so its scores would be noise. Train with --context "
            "single --head cls, or ask it by the lines in its README.md")
    if settings.get("context") != "single":
        raise ValueError(f"{folder} reads two responses in a row, and has no score of one alone: "
                         "train with --context single --head cls")
    return PromptFormat(load_tokenizer(folder), **settings)


# Pairs of a prompt and a response whose row must be the same in one piece.
SAMPLES = [("What is 2 + 2?", "4"), ("(a) or 1)?\n", "\n\n- **b**\n\n```\nx\n```"), ("", ""),
           ("Ж、日本", "“é” 🙂")]


def check_in_one_text(prompt_format: PromptFormat, names: dict):
    """ValueError for a tokenizer that joins the pieces of a row where they stand in one text."""
    whole = Tokenizer.from_str(prompt_format.tokenizer.library.to_str())
    whole.encode_special_tokens = False
    for prompt, response in SAMPLES:
        pair = Pair(prompt, response, response + "x")
        (rows,), _ = prompt_format.rows([pair])
        text = ""
        for piece in prompt_format.fill(pair, pair.chosen, pair.rejected):
            text += names.get(piece.segments[0].slot, piece.text)
        if whole.encode(text, add_special_tokens=False).ids != rows[0].tokens:
            raise ValueError(f"this tokenizer reads {text!r} in one piece in another way than the "
                             "model was trained with: no chat template can ask this model")


RECORDED = ("base", "settings", "revisions", "result")  # what the card takes from run.json


def export(run: Path | str, out: Path | str):
    """Write the folder `out`, whole or not at all."""
    run, out = Path(run), Path(out)
    if run.resolve().name == "model" and (run.resolve().parent / "run.json").is_file():
        run = run.resolve().parent
    record, folder = read_json(run / "run.json"), run / "model"
    missing = [key for key in RECORDED if key not in record]
    if not missing and "n" not in record["result"]:
        missing = ["result of a finished run"]
    if missing:
        raise ValueError(f"{run}/run.json has no {missing[0]}: it is not of this version of "
                         "train.py; train again, or export with the version that trained it")
    prompt_format = load_format(folder)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special_ids = prompt_format.tokenizer.special_ids
    names = {slot: library.id_to_token(index) for slot, index in special_ids.items()}
    check_in_one_text(prompt_format, names)
    if out.exists():
        raise ValueError(f"{out} is already there: give another folder")
    check_can_be_made(out)

    # one row for the difference of two
    state = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        first, second = state[name]  # each (D,), or a number
        state[name] = (first - second)[None].contiguous()

    config = read_json(folder / "config.json")
    if config["model_type"] != "modernbert":
        raise ValueError(f"{folder} is a {config['model_type']}: only ModernBERT has the [CLS] "
                         "that transformers reads")
    config["id2label"], config["label2id"] = {"0": "reward"}, {"reward": 0}

    with replacing(out) as temporary:
        temporary.mkdir()
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config)
        shutil.copyfile(folder / "tokenizer.json", temporary / "tokenizer.json")
        write_tokenizer_config(temporary, folder, prompt_format, names)
        text = card(out.name, record, prompt_format)
        (temporary / "README.md").write_text(text, encoding="utf-8")


def check_can_be_made(out: Path):
    """ValueError if the folder could not be made there."""
    existing = out.absolute().parent
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{out}: {existing} is no folder to write in: give another")


def write_tokenizer_config(out: Path, folder: Path, prompt_format: PromptFormat, names: dict):
    """What transformers needs to know of the tokenizer, with the chat template."""
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    for slot, name in names.items():
        config[f"{slot.value}_token"] = name

    # rows of different length are padded there; what stands there is not attended to
    padding = config.get("pad_token")
    if padding is None:
        known = prompt_format.tokenizer.library.token_to_id("[PAD]")
        padding = names[SEP] if known is None else "[PAD]"
    config["pad_token"] = padding

    config["model_max_length"] = prompt_format.max_length
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["chat_template"] = chat_template(prompt_format, names)
    write_json(out / "tokenizer_config.json", config)


def card(name: str, record: dict, prompt_format: PromptFormat) -> str:
    question = prompt_format.question_for(Pair("", "", ""))
    licenses = licenses_of(record)
    return f"""---
{license_lines(licenses)}
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, tiny-reward-models, modernbert]
---
# {name}

A scalar reward model, exported from a tiny reward model (arXiv 2507.09973): the logit is the score
of the last message as an answer to those before it. It asks: {question!r}

- {accuracy_line(record["result"])}
- a row: `{row_text(prompt_format)}`

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".", num_labels=1).eval()
chat = [{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "4"}}]
text = tokenizer.apply_chat_template(chat, tokenize=False)
with torch.no_grad():  # the special tokens are in the text
    print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])
```

In TRL: `GRPOTrainer(reward_funcs="PATH/TO/THIS/FOLDER", ...)`, with prompts that are messages (a
plain string is not put into the template).

What differs from tinyrm, where the rows of a text are made of pieces:

- special tokens in a text of the user are not neutralised: a response that holds `[SEP]` or
  `[MASK]` is read with these tokens. Remove them where texts are not trusted.
- a text that ends in spaces may be cut into other tokens where a tokenizer joins spaces.
- nothing is truncated: the model was trained on rows of at most {prompt_format.max_length} tokens.

{license_section(licenses)}
"""


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run of train.py, or its model/")
    parser.add_argument("dir", metavar="DIR", help="the folder to write: a new one")
    flags = parser.parse_args(argv)
    export(flags.run, flags.dir)
    print(f"{flags.dir} opens with AutoModelForSequenceClassification, num_labels=1")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
