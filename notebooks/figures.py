"""The notebooks' pictures: functions named for what they draw. They draw arrays, no more.

The palette can be told apart with any of the common colour blindnesses and in grey: its colours
rise in lightness in even steps. Each series has a mark of its own besides, and stands under its own
name at the end of its line where that fits. What is not measured (a coin's toss, a perfect judge)
is grey.

Shapes: S seeds, X places on an axis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

PALETTE = ("#10305c", "#c4491c", "#4f9fd0", "#e8b93c")  # navy, rust, sky, sand: dark to light
INKS = ("#10305c", "#c4491c", "#2f7fb5", "#8f6c08")  # the same for text, where light is too light
MARKS = ("o", "s", "^", "D")
GREY = "0.55"  # of what is not measured
STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "font.size": 9,
    "savefig.dpi": 110,
    "figure.dpi": 110,
}
plt.rcParams.update(STYLE)


class Series(NamedTuple):
    """A line of a figure: a mean at each x, and half its interval (nan: none)."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    half: Sequence[float]


class Dot(NamedTuple):
    """A point with an interval, and what is written by it."""

    name: str
    mean: float
    low: float
    high: float
    note: str = ""


# ------------------------------------------------------------------------------------ small pieces


def coin(ax, where: float = 0.5, vertical: bool = False, text: str = "a coin's toss"):
    """A dashed line at what a judge without knowledge gets."""
    if vertical:
        ax.axvline(where, color=GREY, ls="--", lw=1)
        return
    ax.axhline(where, color=GREY, ls="--", lw=1)
    ax.annotate(text, (0.99, where), xycoords=ax.get_yaxis_transform(), xytext=(0, -3),
                textcoords="offset points", color=GREY, fontsize=8, ha="right", va="top")


def ink(colour: str) -> str:
    """The colour of a text that belongs to a line of this colour."""
    return INKS[PALETTE.index(colour)]


def nothing_yet(ax, text: str = "no runs yet"):
    """Says on a panel that nothing is there to draw."""
    ax.text(0.5, 0.5, text, color=GREY, ha="center", va="center", transform=ax.transAxes)


def apart(places: Sequence[float], least: float) -> list[float]:
    """The places of labels, moved up where they would lie on each other."""
    order = np.argsort(places)
    moved = np.array(places, float)
    for before, after in zip(order[:-1], order[1:], strict=True):
        moved[after] = max(moved[after], moved[before] + least)
    return moved.tolist()


def name_ends(ax, series: list[Series], colours: list[str], least: float):
    """Each line's name, right of its last point."""
    heights = apart([line.mean[-1] for line in series], least)
    for line, colour, height in zip(series, colours, heights, strict=True):
        ax.annotate(line.name, (line.x[-1], line.mean[-1]), (1.03, height), color=ink(colour),
                    textcoords=ax.get_yaxis_transform(), va="center", fontsize=8,
                    annotation_clip=False)


# --------------------------------------------------------------------------- rows, and the encoder


def rows_of_a_pair(spans: list[dict[str, tuple[int, int]]], lengths: Sequence[int],
                   colours: list[dict[str, int]]):
    """The two rows of a pair, and where their parts stand. colours: 0 is the better response."""
    fig, ax = plt.subplots(figsize=(9, 1.9))
    for y, (row, length, places) in enumerate(zip(spans, lengths, colours, strict=True)):
        ax.barh(y, length, color="0.93")
        for part, (start, stop) in row.items():
            colour = "0.75" if part == "prompt" else "black"
            if part in places:
                colour = PALETTE[places[part]]
            ax.barh(y, stop - start, left=start, color=colour)
            letters = "black" if part == "prompt" else "white"
            turn = 90 if stop - start < 4 else 0
            ax.text((start + stop) / 2, y, part, color=letters, rotation=turn, fontsize=7,
                    ha="center", va="center")
    ax.set(yticks=[0, 1], yticklabels=["row 1", "row 2"], xlabel="position in the row (tokens)",
           title="One pair, two rows (navy: the better response, rust: the other)")
    ax.invert_yaxis()
    plt.show()


def lengths_of_pairs(chosen: Sequence[float], rejected: Sequence[float], unit: str, title: str):
    """A point a pair: how long its better response is, and how long the other."""
    chosen, rejected = np.asarray(chosen), np.asarray(rejected)
    longest = 1.1 * max(chosen.max(), rejected.max())
    fig, ax = plt.subplots(figsize=(4.2, 3.6))
    ax.plot([0, longest], [0, longest], color=GREY, ls="--", lw=1)
    ax.plot(rejected, chosen, "o", color=PALETTE[0], mfc="white", ms=5)
    ax.text(0.04, 0.93, f"better one longer: {np.sum(chosen > rejected)}", fontsize=8,
            transform=ax.transAxes)
    ax.text(0.97, 0.05, f"shorter: {np.sum(chosen < rejected)}", fontsize=8, ha="right",
            transform=ax.transAxes)
    ax.set(xlim=(0, longest), ylim=(0, longest), aspect="equal", title=title,
           xlabel=f"the other response ({unit})", ylabel=f"the better response ({unit})")
    plt.show()


def heat_map(table, names: Sequence[str], xlabel: str, ylabel: str, title: str):
    """Probabilities, (X, X): dark is 1."""
    fig, ax = plt.subplots(figsize=(4.8, 3.9))
    image = ax.imshow(table, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, yticks=ticks, yticklabels=names)
    ax.set_xticks(ticks, names, rotation=60)
    fig.colorbar(image, label="mean probability at [MASK]")
    plt.show()


def one_order_and_both(rows: Sequence[float], pairs: Sequence[float]):
    """P(A) of each row, where a lean to a slot shows, and P(chosen is better), where it cancels."""
    bins = np.linspace(min(*rows, *pairs, 0.4), max(*rows, *pairs, 0.6), 31)
    fig, ax = plt.subplots(figsize=(6.5, 2.7))
    ax.hist(rows, bins, color=PALETTE[3], label=f"P(A), one order, n = {len(rows)} rows")
    ax.hist(pairs, bins, histtype="step", color=PALETTE[0], lw=1.8,
            label=f"P(chosen is better), both orders, n = {len(pairs)} pairs")
    coin(ax, 0.5, vertical=True)
    ax.set(xlabel="probability", ylabel="rows, or pairs",
           title="Before fine-tuning: the lean to a slot cancels")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, -0.52), ncols=2)
    plt.show()


def shares(names: list[str], values: Sequence[float], parts: Sequence[float], xlabel: str,
           title: str):
    """Bars, each with its share of all."""
    fig, ax = plt.subplots(figsize=(6.5, 2.1))
    bars = ax.barh(names, values, color=PALETTE[0])
    ax.bar_label(bars, [f" {part:.1%}" for part in parts])
    ax.set(xlabel=xlabel, title=title, xmargin=0.12)
    ax.invert_yaxis()
    plt.show()


def attention_maps(maps: list, names: list[str]):
    """Who looks at whom in each layer, (T, T) each, on a logarithmic scale."""
    fig, axes = plt.subplots(1, len(maps), figsize=(2.7 * len(maps), 2.9), sharey=True)
    for ax, name, one in zip(axes, names, maps, strict=True):
        image = ax.imshow(one, cmap="Blues", norm="log", vmin=1e-4, vmax=1)
        ax.set(title=name, xlabel="key (position, tokens)")
    axes[0].set_ylabel("query (position, tokens)")
    fig.colorbar(image, ax=axes, shrink=0.8, label="attention, mean of heads")
    plt.show()


def attention_over_text(words: list[str], panels: dict[str, Sequence[float]],
                        spans: dict[str, tuple[int, int]], title: str, width: int = 78):
    """A row's text, its tokens shaded by the attention that one position pays to them: a panel a
    model. What gets 5 % or more has its share below. spans: {part: (first token, end)}."""
    places, x, line = [], 0.0, 0
    for word in words:
        if x + len(word) > width:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += len(word) + 0.5

    most = max(float(max(shares)) for shares in panels.values())
    shade = plt.get_cmap("Blues")
    fig, axes = plt.subplots(len(panels), 1, figsize=(9, len(panels) * (0.55 + 0.55 * (line + 1))),
                             squeeze=False)
    for ax, (name, shares) in zip(axes[:, 0], panels.items(), strict=True):
        for word, (x, line), share in zip(words, places, shares, strict=True):
            darkness = float(share) / most
            ax.add_patch(plt.Rectangle((x, line - 0.27), len(word), 0.46, color=shade(darkness)))
            ax.text(x + len(word) / 2, line - 0.04, word, ha="center", va="center", fontsize=8.5,
                    family="monospace", color="white" if darkness > 0.6 else "black")
            if share >= 0.05:
                ax.text(x + len(word) / 2, line + 0.33, f"{share:.0%}", ha="center", va="center",
                        fontsize=7)
        for place, (part, (start, end)) in enumerate(spans.items()):
            for (x, line), word in list(zip(places, words, strict=True))[start:end]:
                ax.plot([x - 0.25, x + len(word) + 0.25], [line - 0.33] * 2, lw=2.5,
                        color=PALETTE[place % len(PALETTE)], solid_capstyle="butt")
            ax.text(places[start][0], places[start][1] - 0.36, part, fontsize=7, va="bottom",
                    color=INKS[place % len(INKS)])
        ax.set(xlim=(-1, width + 1), ylim=(places[-1][1] + 0.5, -0.75))
        ax.set_title(name, loc="left", fontsize=9)
        ax.axis("off")
    fig.suptitle(title, fontsize=10)
    plt.show()


def scores_by_length(lengths: Sequence[int], scores: dict[str, Sequence[int]]):
    """The work of one attention layer."""
    fig, ax = plt.subplots(figsize=(6, 2.8))
    for (name, values), colour, mark in zip(scores.items(), PALETTE, MARKS, strict=False):
        ax.loglog(lengths, values, color=colour, marker=mark, mfc="white")
        ax.annotate(name, (lengths[-1], values[-1]), (8, 0), color=ink(colour), va="center",
                    textcoords="offset points", annotation_clip=False)
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    ax.set(xlabel="row length T (tokens)", ylabel="scores (a head and layer)",
           title="Work of one attention layer")
    plt.show()


def gate(a, values: dict[str, Sequence[float]]):
    """gelu(a) b against the gate a, for some b."""
    fig, ax = plt.subplots(figsize=(6, 2.6))
    for (name, y), colour in zip(values.items(), PALETTE, strict=False):
        ax.plot(a, y, color=colour, lw=2)
        ax.annotate(name, (a[-1], y[-1]), (5, 0), color=ink(colour), va="center",
                    textcoords="offset points", annotation_clip=False)
    ax.set(xlabel="gate a", ylabel="gelu(a) b", title="The gate lets the value through, or not")
    plt.show()


def rows_turned_and_stretched(arrows: dict[str, tuple], rows: int):
    """Rows of a weight after training: each in the plane of its change, with its old direction to
    the right and its old length as 1, the arc. arrows: {adapter: (along, across)}."""
    fig, axes = plt.subplots(1, len(arrows), figsize=(3.3 * len(arrows), 2.7), sharey=True)
    angles = np.linspace(0, 1.1, 50)
    for ax, (name, (along, across)), colour in zip(axes, arrows.items(), PALETTE, strict=False):
        ax.plot(np.cos(angles), np.sin(angles), color=GREY, ls="--", lw=1)
        ax.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
        ax.text(0.5, -0.02, "before", ha="center", va="top", fontsize=8)
        for x, y in zip(along.tolist(), across.tolist(), strict=True):
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-", "color": colour,
                                                        "alpha": 0.15})
        ax.plot(along, across, ".", color=colour)
        ax.set(title=f"{name}: {rows} rows, after", xlabel="along the old direction",
               xlim=(0, 1.35), ylim=(-0.12, 1.05))
        ax.set_aspect("equal")
    axes[0].set_ylabel("across it")
    axes[0].text(0.55, 0.9, "old length", color=GREY, fontsize=8)
    plt.show()


def stack_of_layers(parts: list[str], states: list[str], notes: list[str], title: str):
    """The parts of a model from bottom to top, each "frozen" (grey, hatched) or "trains" (blue),
    and what is computed for it. Arrows: how far the forward and the backward pass go."""
    colours = {"frozen": ("0.85", "0.55"), "trains": (PALETTE[2], PALETTE[0])}
    fig, ax = plt.subplots(figsize=(7.6, 0.44 * len(parts) + 0.7))
    for y, (part, state, note) in enumerate(zip(parts, states, notes, strict=True)):
        face, edge = colours[state]
        hatch = "///" if state == "frozen" else None
        ax.add_patch(plt.Rectangle((0, y), 3, 0.8, facecolor=face, edgecolor=edge, hatch=hatch))
        ax.text(1.5, y + 0.4, f"{part}: {state}", ha="center", va="center", fontsize=8,
                bbox={"facecolor": face, "edgecolor": "none", "pad": 1})
        ax.text(3.9, y + 0.4, note, va="center", fontsize=8)

    # forward goes through all of it, backward to the lowest part that trains
    lowest = states.index("trains")
    arrow = {"arrowstyle": "-|>", "lw": 1.5}
    ax.annotate("", (-0.25, len(parts)), (-0.25, 0), arrowprops=arrow | {"color": "black"})
    ax.text(-0.35, len(parts) / 2, "forward", rotation=90, ha="right", va="center", fontsize=8)
    ax.annotate("", (3.35, lowest), (3.35, len(parts)), arrowprops=arrow | {"color": PALETTE[1]})
    ax.text(3.45, (lowest + len(parts)) / 2, "backward", rotation=270, ha="left", va="center",
            fontsize=8, color=INKS[1])
    ax.set(xlim=(-0.8, 9), ylim=(-0.1, len(parts) + 0.1), title=title)
    ax.axis("off")
    plt.show()


def trained_parameters(counts: dict[str, Sequence[int]], title: str):
    """How much trains, by adapter and by how many layers are frozen."""
    fig, ax = plt.subplots(figsize=(6.3, 2.9))
    for (name, values), colour, mark in zip(counts.items(), PALETTE, MARKS, strict=False):
        ax.plot(range(len(values)), values, color=colour, marker=mark, mfc="white", label=name)
    ax.legend()
    ax.set(xlabel="frozen layers of 4 (from 1 on the embeddings too)", yscale="log",
           ylabel="trained parameters", xticks=range(len(values)), title=title)
    plt.show()


# ---------------------------------------------------------------------------------------- training


def gradients_of_layers(names: list[str], norms: Sequence[float], trained: Sequence[bool]):
    """Bars of how long the gradient is in each part of the model; a frozen part has none."""
    fig, ax = plt.subplots(figsize=(6, 2.3))
    bars = ax.barh(names, norms, color=PALETTE[0])
    for bar, is_trained in zip(bars, trained, strict=True):
        if not is_trained:
            ax.text(0, bar.get_y() + bar.get_height() / 2, "  frozen: no gradient", color=GREY,
                    va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="norm of the gradient of one step, before it is clipped",
           title="How far the error travels back")
    plt.show()


def learning_curves(curves: dict[str, Sequence[float]], ln2: float, title: str,
                    smooth: dict[str, Sequence[float]], window: int):
    """The loss of each step, light, and its running mean over `window` steps, dark."""
    fig, ax = plt.subplots(figsize=(6.8, 2.9))
    series = []
    for name, colour in zip(curves, PALETTE, strict=False):
        steps = np.arange(1, len(curves[name]) + 1)
        ax.plot(steps, curves[name], color=colour, lw=0.7, alpha=0.35)
        ax.plot(steps[window - 1:], smooth[name], color=colour, lw=2)
        series.append(Series(name, steps[window - 1:], smooth[name], []))
    if len(series) > 1:
        name_ends(ax, series, list(PALETTE[:len(series)]), least=0.09 * ax.get_ylim()[1])
    coin(ax, ln2, text="ln 2: a coin between two words")
    ax.set(xlabel=f"step (thick: mean of {window} steps)", ylabel="loss (nats a row)",
           ylim=(0, None), title=title)
    plt.show()


def accuracy_during_training(step: Sequence[float], accuracy: Sequence[float], n: Sequence[int]):
    """Accuracy on pairs that are not trained on, at a few steps of a run."""
    fig, ax = plt.subplots(figsize=(6.8, 2.4))
    ax.plot(step, accuracy, color=PALETTE[0], marker="o", mfc="white", lw=1.5)
    for x, y, count in zip(step, accuracy, n, strict=True):
        ax.annotate(f"{y:.3f}\nn = {count:,}", (x, y), (0, -8), textcoords="offset points",
                    ha="center", va="top", fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    coin(ax)
    ax.set(xlabel="step", ylabel="accuracy", ylim=(0.3, 1.05), xlim=(-0.06 * step[-1], None),
           title="On words that no training pair has")
    ax.margins(x=0.08)
    plt.show()


# ----------------------------------------------------------------------------------------- judging


def verdicts_before_and_after(before: Sequence[float], after: Sequence[float], bins):
    """How probable the better response is held to be, before training and after."""
    fig, ax = plt.subplots(figsize=(6.8, 2.7))
    ax.hist(before, bins, color=PALETTE[3], label="before training")
    ax.hist(after, bins, histtype="step", color=PALETTE[0], lw=1.8, label="after")
    coin(ax, 0.5, vertical=True)
    ax.set(xlabel="P(the better response is better); left of the line the verdict is wrong",
           ylabel="pairs", yscale="log", title=f"Verdicts on {len(after):,} test pairs")
    ax.legend(loc="upper left", ncols=2)
    plt.show()


def accuracy_by_group(panels: dict[str, list[Dot]], title: str, ylabel: str = "accuracy",
                      ylim: tuple[float, float] = (0.3, 1.05)):
    """A panel for each way to group: a point a group, with its interval and what is noted."""
    widths = [len(dots) for dots in panels.values()]
    fig, axes = plt.subplots(1, len(panels), figsize=(max(5.5, 1.05 * sum(widths)), 3),
                             width_ratios=widths, sharey=True, squeeze=False)
    for ax, (label, dots), colour in zip(axes[0], panels.items(), PALETTE, strict=False):
        for x, dot in enumerate(dots):
            ax.plot([x, x], [dot.low, dot.high], color=colour, lw=2)
            ax.plot(x, dot.mean, "o", color=colour, mfc="white", ms=6)
            ax.text(x, ylim[0] + 0.02, dot.note, ha="center", va="bottom", fontsize=7, color=GREY)
        ax.set(xticks=range(len(dots)), xlim=(-0.6, len(dots) - 0.4), xlabel=label, ylim=ylim)
        ax.set_xticklabels([dot.name for dot in dots])
        coin(ax, text="")
    axes[0, 0].set_ylabel(ylabel)
    fig.suptitle(title, fontsize=10, weight="bold")
    plt.show()


def reliability(judges: dict[str, list[Dot]], confidence: dict[str, Sequence[float]]):
    """How often a judge is right, against how sure it says it is; below, how often it says so."""
    fig, axes = plt.subplots(1, len(judges), figsize=(3.4 * len(judges), 3.5), sharey=True,
                             squeeze=False)
    for ax, (name, dots), colour in zip(axes[0], judges.items(), PALETTE, strict=False):
        ax.plot([0.5, 1], [0.5, 1], color=GREY, ls="--", lw=1)
        for x, dot in zip(confidence[name], dots, strict=True):
            ax.plot([x, x], [dot.low, dot.high], color=colour, lw=2)
            ax.plot(x, dot.mean, "o", color=colour, mfc="white")
            ax.text(x, 0.03, dot.note, ha="center", va="bottom", fontsize=7, color=GREY,
                    rotation=90)
        ax.set(title=name, xlabel="how sure it is (grey: pairs)", xlim=(0.47, 1.03), ylim=(0, 1.05))
    axes[0, 0].set_ylabel("share that is right (95 % interval)")
    axes[0, 0].text(0.6, 0.68, "as sure as right", color=GREY, fontsize=8, rotation=25)
    plt.show()


def two_orders(odds: dict[str, tuple[np.ndarray, np.ndarray]], note: dict[str, str]):
    """Log-odds of the right answer when it is shown as option A, and as option B."""
    fig, axes = plt.subplots(1, len(odds), figsize=(3.5 * len(odds), 3.6), squeeze=False)
    for ax, (name, (first, second)), colour in zip(axes[0], odds.items(), PALETTE, strict=False):
        most = 1.05 * max(abs(first).max(), abs(second).max())
        ax.plot([-most, most], [-most, most], color=GREY, lw=1, ls=":")
        ax.plot([-most, most], [most, -most], color=GREY, lw=1, ls="--")
        ax.plot(first, second, ".", color=colour, ms=3, alpha=0.5)
        ax.set(title=f"{name}: {note[name]}", xlabel="shown as option A (nats)", aspect="equal")
    axes[0, 0].set_ylabel("shown as option B (nats)")
    fig.suptitle(f"Log-odds of the right answer, n = {len(first):,} pairs. Dotted: the order makes "
                 "no\ndifference. Dashed: nothing but the order counts", fontsize=9)
    plt.show()


# ------------------------------------------------------------------------- runs of the experiments


def accuracy_by_pairs(panels: dict[str, list[Series]], xlabel: str, ylabel: str, title: str,
                      log_error: bool = False):
    """A panel a domain, a line a method: the mean over seeds with its interval, against the number
    of training pairs. A panel without lines says so."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels) + 1.3, 3.1), sharey=True,
                             squeeze=False)
    names = []
    for lines in panels.values():
        names += [line.name for line in lines if line.name not in names]
    for ax, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        ax.set(title=panel, xlabel=xlabel, xscale="log")
        for line in lines:
            place = names.index(line.name)
            dashes = "-" if place % 2 == 0 else "--"
            half = np.nan_to_num(line.half)
            ax.errorbar(line.x, line.mean, half, color=PALETTE[place], marker=MARKS[place], ms=5,
                        mfc="white", lw=1.5, ls=dashes, capsize=2, elinewidth=1)
        if not lines:
            nothing_yet(ax)
        ticks = sorted({x for line in lines for x in line.x})
        ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        ax.minorticks_off()
        if not log_error:
            coin(ax, text="")
    axes[0, 0].set_ylabel(ylabel)
    if log_error:
        axes[0, 0].set_yscale("log")
        axes[0, 0].set_yticks([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
                              ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"])
        axes[0, 0].minorticks_off()
        errors = [mean for lines in panels.values() for line in lines for mean in line.mean]
        if errors:
            axes[0, 0].set_ylim(0.7 * min(errors), 1.4 * max(errors))
    else:
        axes[0, 0].set_ylim(0.4, 1.04)

    # names stand at the ends of the last panel's lines where all of them end there
    last = list(panels.values())[-1]
    ends = {line.x[-1] for line in last}
    if len(last) == len(names) and len(ends) == 1 and not log_error:
        colours = [PALETTE[names.index(line.name)] for line in last]
        name_ends(axes[0, -1], last, colours, least=0.055)
    else:
        handles = [plt.Line2D([], [], color=PALETTE[i], marker=MARKS[i], mfc="white", label=name)
                   for i, name in enumerate(names)]
        fig.legend(handles=handles, loc="outside right center")
    fig.suptitle(title, fontsize=10)
    plt.show()


def effects(panels: dict[str, list[Dot]], names: list[str], filled: dict[str, list[bool]],
            heights: dict[str, list[float]], title: str):
    """Differences A - B with their intervals, a panel a model, a row a contrast: filled where the
    verdict is A or B. heights: in which row a point stands."""
    rows = max(1, len(names))
    fig, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels) + 3, 0.62 * rows + 1.3),
                             sharey=True, sharex=True, squeeze=False)
    for ax, (model, dots), colour in zip(axes[0], panels.items(), PALETTE, strict=False):
        for dot, solid, y in zip(dots, filled[model], heights[model], strict=True):
            face = colour if solid else "white"
            ax.plot([dot.low, dot.high], [y, y], color=colour, lw=1.2)
            ax.plot(dot.mean, y, "o", color=colour, mfc=face, ms=5)
            ax.annotate(dot.note, (max(dot.high, dot.mean), y), (4, 0), va="center", fontsize=6.5,
                        textcoords="offset points", color=GREY)
        if not dots:
            nothing_yet(ax)
        for row in range(1, len(names)):
            ax.axhline(row - 0.5, color="0.9", lw=0.8)
        coin(ax, 0, vertical=True)
        ax.set(title=model, xlabel="A - B in accuracy; right: A is ahead")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(rows - 0.5, -0.5)
    fig.suptitle(title, fontsize=10)
    plt.show()


def merged_accuracy(scales: Sequence[float], panels: dict[str, list[Series]],
                    alone: dict[str, float], title: str):
    """Accuracy of base + scale * (all changes), a panel a domain; above it the specialist alone."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels) + 0.6, 2.9), sharey=True)
    for ax, (domain, lines) in zip(axes, panels.items(), strict=True):
        ax.axvline(1 / 3, color="0.9", lw=7, zorder=0)
        for line, colour, mark in zip(lines, PALETTE, MARKS, strict=False):
            ax.errorbar(line.x, line.mean, np.nan_to_num(line.half), color=colour, marker=mark,
                        mfc="white", capsize=2)
        ax.axhline(alone[domain], color=PALETTE[1], lw=1.5)
        ax.text(scales[0], alone[domain], "the specialist", color=PALETTE[1], fontsize=8,
                va="bottom")
        coin(ax, text="a coin's toss" if domain == list(panels)[0] else "")
        ax.set(title=domain, xlabel="scale λ of the changes", ylim=(0.3, 1.08))
    axes[0].text(1 / 3 + 0.02, 0.31, "average of the weights", color=GREY, fontsize=8)
    axes[0].set_ylabel("accuracy")
    fig.suptitle(title, fontsize=10)
    plt.show()


# ---------------------------------------------------------------------------------- inside a model


def length_and_turn(panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]],
                    notes: dict[str, str]):
    """How far the rows of each weight matrix turned and how much longer they became: a panel an
    adapter, a point a matrix, {part of the model: (turns, lengths)}."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels) + 0.8, 3), sharex=True,
                             sharey=True, squeeze=False)
    parts = list(dict.fromkeys(part for found in panels.values() for part in found))
    for ax, (adapter, found) in zip(axes[0], panels.items(), strict=True):
        for part, (turns, lengths) in found.items():
            place = parts.index(part)
            colour = PALETTE[place % len(PALETTE)]
            ax.loglog(turns, lengths, (*MARKS, "v")[place], color=colour, mfc="white", ls="")
        ax.set(title=adapter, xlabel=f"turn of the rows, 1 - cos\n{notes[adapter]}")
        ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
        ax.set_xticks(ticks, ticks)
        ax.set_yticks(ticks, ticks)
        ax.minorticks_off()
    turns = np.concatenate([values[0] for found in panels.values() for values in found.values()])
    lengths = np.concatenate([values[1] for found in panels.values() for values in found.values()])
    axes[0, 0].set(xlim=(0.7 * turns.min(), 1.5 * turns.max()),
                   ylim=(0.7 * lengths.min(), 1.5 * lengths.max()),
                   ylabel="relative change of their length")
    handles = [plt.Line2D([], [], ls="", color=PALETTE[i % len(PALETTE)], marker=(*MARKS, "v")[i],
                          mfc="white", label=part) for i, part in enumerate(parts)]
    fig.legend(handles=handles, loc="outside right center")
    plt.show()


def by_depth(layers: Sequence[int], likeness: dict[str, Sequence[float]],
             readable: dict[str, Sequence[float]], rows: int):
    """After each layer: how like the residual stream is to what it was, and how often the verdict
    can already be read from it."""
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 2.9))
    for ax, lines in zip(axes, (likeness, readable), strict=True):
        series = [Series(name, layers, values, []) for name, values in lines.items()]
        for line, colour, mark in zip(series, PALETTE, MARKS, strict=False):
            ax.plot(line.x, line.mean, color=colour, marker=mark, mfc="white")
        name_ends(ax, series, list(PALETTE[:len(series)]), least=0.06)
        ax.set(xlabel="layers passed", xticks=layers, ylim=(0, 1.05))
    axes[0].set_ylabel("linear CKA, before and after")
    axes[1].set_ylabel("right, one order")
    coin(axes[1], text="")
    fig.suptitle(f"What training left of the residual stream, n = {rows} rows", fontsize=10)
    plt.show()


def paths(panels: dict[str, list[Series]], xlabel: str, title: str):
    """A panel for each measure, a line for each method: runs looked at while they went on."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels) + 1.6, 2.8), squeeze=False)
    for ax, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        few = slice(len(lines))  # more lines than colours are an error
        for line, colour, mark in zip(lines, PALETTE[few], MARKS[few], strict=True):
            ax.plot(line.x, line.mean, color=colour, marker=mark, mfc="white", ms=4,
                    label=line.name)
        ax.set(title=panel, xlabel=xlabel)
        if not lines:
            nothing_yet(ax)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside right center")
    fig.suptitle(title)
    plt.show()


# -------------------------------------------------------------------------------------------- cost


def best_of(panels: dict[str, list[Series]]):
    """A panel for each title, a line for each judge: a share against N, the number of candidates of
    which the best is chosen."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels) + 1, 3), squeeze=False)
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        few = slice(len(lines))  # more lines than colours are an error
        for line, colour, mark in zip(lines, PALETTE[few], MARKS[few], strict=True):
            mean, half = np.array(line.mean), np.nan_to_num(line.half)
            low, high = np.clip([mean - half, mean + half], 0, 1)
            ax.fill_between(line.x, low, high, color=colour, alpha=0.15, lw=0)
            ax.plot(line.x, mean, color=colour, marker=mark, mfc="white", ms=4, label=line.name)
        ax.set_xscale("log", base=2)
        ax.set(title=title, xlabel="N, the best of which is chosen", ylim=(0, 1.02))
        if lines:
            ax.set_xticks(lines[0].x, [f"{x}" for x in lines[0].x])
        else:
            nothing_yet(ax)
    axes[0, 0].set_ylabel("share, or P(better than a reference)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside right center")
    plt.show()


class CostDot(NamedTuple):
    """A way to judge: what it costs, and its accuracy with an interval."""

    name: str
    cost: float
    mean: float
    half: float


def accuracy_against_cost(panels: dict[str, list[CostDot]], xlabel: str, ylabel: str,
                          marks: dict[str, float]):
    """A panel for each title: accuracy against cost on a logarithmic axis; `marks` are costs of
    which no accuracy was measured."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3), squeeze=False)
    for ax, (title, dots) in zip(axes[0], panels.items(), strict=True):
        few = slice(len(dots))  # more dots than colours are an error
        for dot, colour, mark in zip(dots, PALETTE[few], MARKS[few], strict=True):
            low, high = np.clip([dot.mean - dot.half, dot.mean + dot.half], 0, 1)
            ax.plot([dot.cost, dot.cost], [low, high], color=colour, lw=2)
            ax.plot(dot.cost, dot.mean, mark, color=colour, mfc="white", label=dot.name)
        for name, cost in marks.items():
            ax.axvline(cost, color=GREY, ls="--", lw=1)
            ax.annotate(name, (cost, 0.03), (-3, 0), color=GREY, ha="right", rotation=90,
                        xycoords=ax.get_xaxis_transform(), textcoords="offset points", fontsize=7)
        ax.set_xscale("log")
        if dots:
            costs = [*[dot.cost for dot in dots], *marks.values()]
            ax.set_xlim(0.6 * min(costs), 4 * max(costs))
        else:
            nothing_yet(ax)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def cost_of_ranking(counts: Sequence[int], rows: dict[str, Sequence[float]], flops_a_row: float):
    """Rows that a model reads to rank k responses, by each way; at the right the FLOPs."""
    fig, ax = plt.subplots(figsize=(6.5, 3))
    series = [Series(name, counts, values, []) for name, values in rows.items()]
    for line, colour, mark in zip(series, PALETTE, MARKS, strict=False):
        ax.loglog(line.x, line.mean, color=colour, marker=mark, mfc="white")
        ax.annotate(line.name, (line.x[-1], line.mean[-1]), (8, 0), color=ink(colour), va="center",
                    textcoords="offset points", fontsize=8, annotation_clip=False)
        ax.annotate(f"{line.mean[-1] * flops_a_row:.1e} FLOPs", (line.x[-1], line.mean[-1]),
                    (8, -10), color=GREY, va="center", textcoords="offset points", fontsize=7,
                    annotation_clip=False)
    ax.set_xticks(counts, counts)
    ax.minorticks_off()
    ax.set(xlabel="responses to rank (k)", ylabel="rows that the model reads",
           title="What a ranking costs")
    plt.show()
