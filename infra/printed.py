"""The tables that evaluate.py prints of its reports."""

from infra.calibration import TEMPERATURES
from infra.report import FEW, RESAMPLES


def show(reports: list[dict]) -> str:
    """A table for each set of items, with its lines; of several models each line has a row for each
    model, and one for what it differs from the first. Under a single report stands what else is
    known of it."""
    # the reports by what was judged, and the models by a letter
    files = list(dict.fromkeys(each["data"] for each in reports))
    models = list(dict.fromkeys(each["model"] for each in reports))
    letters = {models[0]: ""}  # one needs none
    text = []
    if len(models) > 1:
        letters = {model: letter(number) for number, model in enumerate(models)}
        text = [""] + [f"{letters[model]} = {model}" for model in models]
    for file in files:
        of_file = [each for each in reports if each["data"] == file]
        text += [""] + table(file, of_file, letters)
    if len(reports) == 1:
        text += details(reports[0])
    return "\n".join(text)


def few_of(names: list[str]) -> str:
    """The first five, and how many more there are."""
    shown = "; ".join(names[:5])
    if len(names) > 5:
        shown += f" and {len(names) - 5} more"
    return shown


def plural(number: float, noun: str) -> str:
    """1 row, 2 rows."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


def letter(number: int) -> str:
    """A, B, C ... for 0, 1, 2 ..."""
    if number < 26:
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
    return f"M{number + 1}"


def table(file: str, reports: list[dict], letters: dict[str, str]) -> list[str]:
    """All lines of the reports on one set of items."""
    width = max(len(line["name"]) for line in reports[0]["lines"])  # no name is cut
    measure = f"{reports[0]['measure']} [95 %]"
    text = [file, f"  {'':{width}} {'':6}  {measure:23}{'right/n':>15}{'if shorter':>17}"
                  "  longer wins"]

    first = reports[0]
    for number, line in enumerate(first["lines"]):
        # the same line of all models
        name = line["name"]
        for each in reports:
            letter_of = letters[each["model"]]
            text.append(f"  {name:{width}} {letter_of:>6}  {cells(each['lines'][number])}")
            name = ""  # once
        for each in reports[1:]:
            tag = f"{letters[each['model']]} - {letters[first['model']]}"
            difference, low, high = each["lines"][number]["difference"]
            text.append(f"  {name:{width}} {tag:>6} {difference:+.3f} [{low:+.3f} {high:+.3f}]")
    return text


def cells(line: dict) -> str:
    """Score [95 % interval], right of how many, the same where the better response is the shorter
    one, and the baseline of lengths."""
    interval = f"{line['score']:.3f} [{line['low']:.3f} {line['high']:.3f}]"
    right_of = f"-/{line['n']:,}"  # no verdicts on pairs
    if_shorter = "-"  # it never is
    if "comparisons" in line:
        right_of = f"{line['right']:,}/{line['comparisons']:,}"
        if line["better is shorter"] > 0:
            if_shorter = share_of(line["right there"], line["better is shorter"])
    return f"{interval:23}{right_of:>15}{if_shorter:>17}{line['longer wins']:13.3f}"


def details(report: dict) -> list[str]:
    """How much was judged; and of the comparisons of the first line what the order of two responses
    does, and how well the probabilities hold."""
    seen = [f"{count:,} {what}" for what, count in report["seen"].items()]
    text = [", ".join([plural(report["prompts"], "prompt")] + seen)]

    counts = report["orders"]
    total, right = counts["comparisons"], counts["right"]
    text.append(f"{report['lines'][0]['name']}, {plural(total, 'comparison')}:")
    # a response alone in its row has no order
    if report["format"]["context"] == "pair":
        agree, right_there = counts["both orders agree"], counts["right where they agree"]
        first_slot, one_order = counts["first slot wins"], counts["right in one order"]
        text.append(f"  both orders agree {agree / total:.3f}: right there "
                    f"{share_of(right_there, agree)}, elsewhere "
                    f"{share_of(right - right_there, total - agree)}")
        text.append(f"  first slot wins {first_slot / total:.3f}; right in one order "
                    f"{one_order / total:.3f}, by both {right / total:.3f}")
    return text + calibration_lines(report["calibration"])


def share_of(right: float, count: int) -> str:
    if count == 0:
        return "- of 0"
    return f"{right / count:.3f} of {count:,}"


def calibration_lines(numbers: dict) -> list[str]:
    """How well the probabilities hold, and what a temperature would give."""
    errors = f"ECE {numbers['ECE']:.3f}, Brier {numbers['Brier']:.3f}"
    text = [f"  mean confidence {numbers['mean confidence']:.3f}, {errors}"]

    beyond = ""  # at the end of what is tried the judge is always right, or not at all
    if not 2 * TEMPERATURES[0] < numbers["temperature"] < TEMPERATURES[-1] / 2:
        beyond = "beyond "
    line = f"  best temperature {beyond}{numbers['temperature']:.2f}"
    mended = numbers.get("with a temperature")
    if mended is not None:
        errors = f"ECE {mended['ECE']:.3f}, Brier {mended['Brier']:.3f}"
        line += f"; that of one half of the prompts gives the other {errors}"
    return text + [line]


LEGEND = f"""
accuracy     share of the comparisons that are judged right, by the mean of both orders
score        the number that the benchmark itself reports
[95 %]       its interval, from {RESAMPLES:,} samples of the prompts, drawn with replacement;
             Wilson's formula where fewer than {FEW} prompts are right, or fewer than {FEW} wrong
right/n      how many comparisons are judged right, of how many; each counts alike, a tie as the
             benchmark counts it
if shorter   the share that is right where the better response is the shorter one, of how many
longer wins  what a judge would score that always takes the longer response
B - A        how much higher B is than A on the same prompts, and the interval of this difference
ECE          how far the confidence is from the share that is right, on average
temperature  what all log-odds are divided by; the best one makes the confidence fit"""
