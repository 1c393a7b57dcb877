"""Draw figure.png for the README from the code's own objects: pair -> cloze -> [MASK] -> score.

    python notebooks/figure.py [MODEL]      (default: the nano encoder as it is shipped)
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from data import Pair  # noqa: E402
from evaluate import RewardModel  # noqa: E402

PAIR = Pair("How many legs has a cat?", "It has four.", "It has two.", domain="reasoning")


def box(ax, x, y, width, height, title, lines, fill="white"):
    ax.add_patch(plt.Rectangle((x, y), width, height, fc=fill, ec="black", lw=1))
    ax.text(x + 0.12, y + height - 0.14, title, va="top", weight="bold", size=10)
    for i, line in enumerate(lines):
        ax.text(x + 0.12, y + height - 0.5 - 0.3 * i, line, va="top", size=8.5, family="monospace")


def main(model="nano"):
    rm = RewardModel.load(model, device="cpu", domain="reasoning")
    tokenizer = rm.prompt_format.tokenizer
    rows_of_pairs, _ = rm.prompt_format.rows([PAIR])
    texts = [tokenizer.decode(row.tokens) for row in rows_of_pairs[0]]
    one, two = [tokenizer.decode([word]).strip() for word in rm.prompt_format.label_ids]

    fig, ax = plt.subplots(figsize=(11.5, 3.0))
    ax.set(xlim=(-0.05, 16.2), ylim=(0.4, 4.3))
    ax.axis("off")
    box(ax, 0.0, 1.1, 3.75, 2.4, "a pair",
        ["prompt", f"  {PAIR.prompt}", "chosen", f"  {PAIR.chosen}", "rejected",
         f"  {PAIR.rejected}"], "0.96")  # fmt: skip
    for y, text, title in ((2.45, texts[0], "row 1: the chosen one first"),
                           (0.5, texts[1], "row 2: the rejected one first")):  # fmt: skip
        cut = text.index(" Option A"), text.index(" Which"), text.index(" The better")
        parts = text[: cut[0]], text[cut[0] : cut[1]], text[cut[1] : cut[2]], text[cut[2] :]
        box(ax, 4.2, y, 6.4, 1.75, title, [part.strip() for part in parts], "0.92")
    share = f"P({one}) / (P({one}) + P({two}))"
    box(ax, 11.3, 1.1, 4.8, 2.4, "the word at [MASK]: the score",
        [f"row 1: P1 = {share}", f"row 2: P2 = {share}", "",
         "P(chosen is better)", "  = (P1 + 1 - P2) / 2"], "0.96")  # fmt: skip
    arrow = dict(arrowstyle="-|>", color="black", lw=1.2)
    for start, end in (((3.75, 2.4), (4.2, 3.3)), ((3.75, 2.2), (4.2, 1.4)),
                       ((10.6, 3.3), (11.3, 2.4)), ((10.6, 1.4), (11.3, 2.2))):  # fmt: skip
        ax.annotate("", end, start, arrowprops=arrow)
    fig.savefig(HERE / "figure.png", dpi=110, bbox_inches="tight")
    print(f"wrote {HERE.name}/figure.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
