"""Draw figure.png for the README from the code's own objects: pair -> cloze -> [MASK] -> P.

    python notebooks/figure.py [MODEL]      (default: the nano encoder as it is shipped)

The rows are what the model reads. The bars at the right are a drawing: no model gave them.
"""

import sys
from pathlib import Path
from textwrap import wrap

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from data import Pair  # noqa: E402
from evaluate import RewardModel  # noqa: E402

PAIR = Pair("How many legs has a cat?", "It has four.", "It has two.", domain="reasoning")
NAVY, RUST, SAND, GREY, PAPER = "#10305c", "#c4491c", "#f5d98b", "0.35", "#f6f4ef"
MONO = {"family": "monospace", "size": 9.5}
LETTER = 0.1122  # width of a letter of MONO, in the figure's units
LINE = 0.32  # from a line of text to the next


def card(ax, x, y, width, height, title):
    """A box with a title on top of it; y is its lower edge."""
    ax.add_patch(plt.Rectangle((x, y), width, height, fc=PAPER, ec="0.6", lw=0.8))
    ax.text(x, y + height + 0.09, title, weight="bold", size=10.5, color="0.15")


def write(ax, x, y, text, colour="0.15", mark=""):
    """A line of typewriter text at its upper left corner; `mark` in it is highlighted."""
    if mark and mark in text:
        first = text.index(mark)
        place = (x + first * LETTER - 0.02, y - 0.25)
        ax.add_patch(plt.Rectangle(place, len(mark) * LETTER + 0.04, 0.28, fc=SAND, ec="none"))
    ax.text(x, y, text, va="top", color=colour, **MONO)


def draw_pair(ax, x, y):
    card(ax, x, y, 3.4, 2.35, "a pair")
    write(ax, x + 0.12, y + 2.2, PAIR.prompt, "0.15")
    for top, name, response, colour in ((1.55, "better", PAIR.chosen, NAVY),
                                        (0.8, "worse", PAIR.rejected, RUST)):
        ax.text(x + 0.12, y + top, name, va="top", size=9, color=GREY)
        write(ax, x + 0.12, y + top - 0.28, response, colour)


def draw_row(ax, x, y, text, title):
    """A row as the model reads it; the two responses in their colours."""
    card(ax, x, y, 5.1, 1.5, title)
    options = text[text.index(" Option A"):text.index(" Which")].strip()
    second = options.index("Option B")
    before, after = text[:text.index(" Option A")], text[text.index(" Which"):]
    lines = [(before, "0.15"), (options[:second], None), (options[second:], None)]
    lines += [(line, "0.15") for line in wrap(after.strip(), 36)]
    for i, (line, colour) in enumerate(lines):
        if colour is None:
            colour = NAVY if PAIR.chosen in line else RUST
        write(ax, x + 0.12, y + 1.43 - 0.27 * i, line.strip(), colour, "[MASK]")


def draw_verdict(ax, x, y, shares, colours, names):
    """Bars of the two label words at [MASK]."""
    ax.text(x, y + 1.59, "at [MASK]", size=10.5, weight="bold", color="0.15")
    for i, (share, colour, name) in enumerate(zip(shares, colours, names, strict=True)):
        middle = y + 1.1 - 0.6 * i
        ax.text(x, middle, name, va="center", color="0.15", **MONO)
        ax.add_patch(plt.Rectangle((x + 0.3, middle - 0.17), 1.5 * share, 0.34, fc=colour))


def arrow(ax, start, end):
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.3})


def main(model="nano"):
    rm = RewardModel.load(model, device="cpu", domain="reasoning")
    tokenizer = rm.prompt_format.tokenizer
    rows_of_pairs, _ = rm.prompt_format.rows([PAIR])
    texts = [tokenizer.decode(row.tokens) for row in rows_of_pairs[0]]
    names = [tokenizer.decode([word]).strip() for word in rm.prompt_format.label_ids]

    fig, ax = plt.subplots(figsize=(12.6, 4.0))
    ax.set(xlim=(-0.1, 13.6), ylim=(-0.1, 4.3))
    ax.axis("off")
    draw_pair(ax, 0.0, 0.85)
    for y, text, title in ((2.4, texts[0], "one order"), (0.1, texts[1], "the other order")):
        draw_row(ax, 3.95, y, text, title)
        arrow(ax, (3.43, 2.02), (3.92, y + 0.75))
        arrow(ax, (9.08, y + 0.75), (9.4, y + 0.75))
        arrow(ax, (11.4, y + 0.75), (11.9, 2.02 + 0.1 * (y - 1.25)))
    draw_verdict(ax, 9.5, 2.4, (0.9, 0.1), (NAVY, RUST), names)
    draw_verdict(ax, 9.5, 0.1, (0.2, 0.8), (RUST, NAVY), names)
    ax.text(12.0, 2.1, "P(better)", size=12, weight="bold", color=NAVY, va="center")
    ax.text(12.0, 1.83, "the mean of\nboth orders", size=9.5, color=GREY, va="top")
    fig.savefig(HERE / "figure.png", dpi=150, bbox_inches="tight")
    print(f"wrote {HERE.name}/figure.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
