#!/usr/bin/env bash
# What a GPU must show, in some six minutes on one H100 or H200, from the root of the checkout:
#
#     bash tests/gpu.sh [FOLDER for what is printed]
#
# Each part goes on if the one before failed: time on a GPU is short, and every number helps.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out"

part() { # NAME SECONDS COMMAND...: its output, also in a file; ended after so many seconds
    local name=$1 limit=$2
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt"
}

# the tests that need a GPU
part tests 150 python3 -m pytest -q -m gpu tests/test_gpu.py tests/test_causal.py

# seconds, memory, waits and kernels of a step of ModernBERT-large, random weights
part profile 120 python3 tests/gpu_profile.py

# train.py at its own choice of micro-batches, and the judge, on the shape of large
python3 - "$out" <<'PYTHON'
import json, random, shutil, sys
from pathlib import Path

sys.path[:0] = [".", "tests"]
import torch
import tinyrm
from benchmark import config_of

out = Path(sys.argv[1])
random.seed(0)
config = tinyrm.Config.from_json(config_of("large"))
tinyrm.save(tinyrm.ModernBERT(config).init_weights(0), out / "large")
for name in ("tokenizer.json", "tokenizer_config.json"):  # nano's words serve for random weights
    shutil.copy(f"nano/{name}", out / "large")

words = Path("nano/pairs/chat.train.jsonl").read_text().split()


def text():
    length = min(900, random.lognormvariate(4.5, 0.8))  # in words: as long as real pairs
    return " ".join(random.choices(words, k=int(length)))


with open(out / "pairs.jsonl", "w") as file:
    for i in range(999):
        row = {"prompt": f"{i} {text()}", "chosen": text(), "rejected": text()}
        file.write(json.dumps(row) + "\n")
PYTHON
rm -rf "$out/run"
part train 90 python3 train.py --model "$out/large" --data "$out/pairs.jsonl" --domain reasoning \
    --max-steps 6 --out "$out/run"
part evaluate 60 python3 experiments/flops.py "$out/run" "$out/pairs.jsonl" --limit 99

# against transformers and peft
part benchmark 150 python3 tests/benchmark.py --device cuda --size large --dtype bf16 \
    --rows $(seq 300 99 1500)
rm -rf "$out/large" "$out/run" "$out/pairs.jsonl" # weights: a gigabyte and a half
