"""Guards in front of the strict loading of the root: what a folder holds is looked over before
anything is built from it, and before memory is taken.

The keys of config.json, and what becomes of each that is known to change the result:

    tinyrm.FIELDS          computed, within bounds
    tinyrm.REQUIRED_VALUES computed for one value, which every published model has; else refused
    sliding_window         refused, unless it says local_attention again
    decoder_bias           refused where it is false: the head "cloze" has a bias
    head_dim               refused, unless it is hidden_size / num_attention_heads
    classifier_pooling     "mean" is refused for a saved classifier (tinyrm.Config.from_json)
    num_labels, id2label   two classes, or the weights do not fit

Any other key is named once and ignored, if it says anything: real checkpoints carry dozens.
"""

from functools import cache
from pathlib import Path

from safetensors import safe_open

import data
import dora
import tinyrm
from infra import distributed
from tinyrm import Field, read_json

# Keys that change nothing here: of training elsewhere, of generating, of the tokenizer, of the file
# itself. The first two stand in the Hub's ModernBERT, and transformers does not read them either.
NO_EFFECT = set("""
    layer_norm_eps position_embedding_type
    attention_dropout embedding_dropout mlp_dropout classifier_dropout gradient_checkpointing
    deterministic_flash_attn reference_compile repad_logits_with_grad sparse_prediction
    sparse_pred_ignore_index use_cache output_attentions output_hidden_states return_dict
    chunk_size_feed_forward is_encoder_decoder problem_type num_labels id2label label2id
    classifier_pooling decoder_bias sliding_window head_dim causal_mask
    bos_token_id cls_token_id eos_token_id mask_token_id pad_token_id sep_token_id unk_token_id
    _name_or_path dtype torch_dtype transformers_version
""".split())

TINYRM_JSON = {"template": Field(str), "context": Field(str), "head": Field(str),
               "domain": Field(str), "max_length": Field(int, 1, 10**7), "question": Field(str)}

HEADER = 10_000_000  # bytes that the header of a weights file may well have


def check_model(base: Path, adapter: Path | None = None):
    """Look over the folder of a model, and that of an adapter on it. Raises ValueError for what is
    not computed here, and for files that are larger than config.json says."""
    file = base / "config.json"
    if not file.is_file():
        return  # tinyrm.read_config says so
    raw = read_json(file, tinyrm.FIELDS)
    check_keys(file, raw)
    for size in tinyrm.REQUIRED_SIZES:
        if raw.get(size) is None:
            raise ValueError(f"{file}: a size is missing: {size}")

    # weights: at most 8 bytes a number, and the tied matrix twice
    D, FF, V = raw["hidden_size"], raw["intermediate_size"], raw["vocab_size"]
    layers = raw["num_hidden_layers"]
    numbers = layers * (4 * D * D + 3 * D * FF + 2 * D) + 2 * V * D + V + D * D + 10 * D
    pattern = "model.safetensors"
    if not (base / pattern).is_file():
        pattern = "model-*.safetensors"  # its shards
    check_size(base, pattern, 8 * numbers, "config.json")
    tokenizer_folder = base
    if adapter is not None:
        rank = read_json(adapter / dora.ADAPTER_CONFIG, dora.ADAPTER_FIELDS).get("r") or 1
        numbers = layers * (8 * D + 3 * FF) * (rank + 1) + (V + 8 * D) * (rank + 1)
        check_size(adapter, "adapter_model.safetensors", 8 * numbers, dora.ADAPTER_CONFIG)
        if (adapter / "tokenizer.json").is_file():
            tokenizer_folder = adapter

    # every token needs a row of the embedding
    if (tokenizer_folder / "tokenizer.json").is_file():
        tokenizer = data.load_tokenizer(tokenizer_folder)
        library = tokenizer.library
        special = {i for i, t in library.get_added_tokens_decoder().items() if t.special}
        # of special tokens no other occurs in a row than these three
        used = set(library.get_vocab().values()) - special | set(tokenizer.special_ids.values())
        last = max(used, default=0)
        if last >= V:
            raise ValueError(f"{tokenizer_folder}/tokenizer.json has the token id {last}, but the "
                             f"vocab_size of the model is {V}: they do not belong together")


def check_keys(file: Path, raw: dict):
    """The keys that tinyrm.Config.from_json does not look at; see above."""
    window = raw.get("sliding_window")
    if window and window != (raw.get("local_attention") or 128) // 2:
        raise ValueError(f"{file}: sliding_window is {window!r}: local_attention says another one")
    architectures = raw.get("architectures") or []
    is_classifier = any(str(name).endswith("ForSequenceClassification") for name in architectures)
    if raw.get("decoder_bias") is False and not is_classifier:
        raise ValueError(f"{file}: decoder_bias is false: only a decoder with a bias is built here")

    known = NO_EFFECT | tinyrm.FIELDS.keys() | tinyrm.REQUIRED_VALUES.keys()
    ignored = sorted(key for key, value in raw.items() if value and key not in known)
    if ignored:
        say_once(f"{file}: not known here and ignored: {', '.join(ignored)[:300]!r}")


@cache  # that is: each text once
def say_once(text: str):
    distributed.log(text)


def check_size(folder: Path, pattern: str, most: int, reason: str):
    size = sum(file.stat().st_size for file in folder.glob(pattern))
    if size > most + HEADER:
        raise ValueError(f"{folder}: {pattern} has {size:,} bytes, where {reason} asks for at most "
                         f"{most:,}: fetch or save it again")


def read_format(file: Path) -> dict:
    """What tinyrm.json says about how a pair is shown. Raises ValueError for what it cannot say."""
    settings = {}
    choices = {"template": ["option", "choice"], "context": ["pair", "single"],
               "head": ["cloze", "cls"], "domain": data.domain_names()}
    for key, value in read_json(file, TINYRM_JSON).items():
        if value is None:
            continue
        if key not in TINYRM_JSON or value not in choices.get(key, [value]):
            raise ValueError(f"{file}: {key[:40]!r} {str(value)[:40]!r} is not known here")
        settings[key] = value
    return settings


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a safetensors file, from its header: its numbers are not read."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except Exception as error:  # safetensors has its own error type for a damaged file
        raise ValueError(f"{file} cannot be read ({error})") from None
