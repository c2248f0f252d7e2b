"""Draws the paper's two figures from committed records alone.

    python -m benchmarks.figures --dataset ml-1m

<dataset>-negatives: test NDCG@10 against the number of negatives of the sampled
softmax; <dataset>-curves: validation NDCG@10 against epoch and against training time,
which is the epochs at the pace that benchmarks.pace measured for the method.
Each as SVG and PNG in benchmarks/figures/. What has no record yet is left out of the
picture and named in its caption. Needs matplotlib: pip install 'jaxrec[figures]'.
"""

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import fidelity, markdown, options, pace, records
from benchmarks.fidelity import Runs, title
from benchmarks.published import DATASETS, PUBLISHED
from benchmarks.reproduce import DOCUMENT
from benchmarks.variants import num_negatives
from jaxrec.command import run_command
from jaxrec.errors import InputError

FIGURES = Path(__file__).parent / "figures"
METRIC = "ndcg@10"
# Points that the first figure is to have, and lines beside them.
NEGATIVES = (1, 30, 300, 3000)
LINES = ("sasrec_ce", "sasrec_ce_exclude_window", "bert4rec", "sasrec_bce")
CURVES = ("sasrec_sampled_ce", *LINES, "gru4rec")

# (colour, dash, marker). Okabe and Ito's colours are told apart with any colour vision;
# dashes and markers say the same again.
STYLES: dict[str, tuple[str, Any, str]] = {
    "sasrec_sampled_ce": ("#D55E00", "-", "o"),
    "sasrec_ce": ("#0072B2", "-", "s"),
    "sasrec_ce_exclude_window": ("#56B4E9", (0, (6, 1.5)), "D"),
    "bert4rec": ("#009E73", (0, (4, 1.5, 1, 1.5)), "^"),
    "gru4rec": ("#CC79A7", (0, (2, 1)), "v"),
    "sasrec_bce": ("#4D4D4D", (0, (1, 1)), "X"),
}
PAPER_X = 0.23  # of the column of published values, in the margin
MARK = {"ms": 5, "mec": "white", "mew": 0.5, "zorder": 3}
INK, FAINT = "#222222", "#8C8C8C"
LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on any machine
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "jaxrec",  # equal records, equal bytes
}

Found = Mapping[str, Runs]


def draw(dataset: str, folder: Path, output: Path) -> dict[str, str]:
    """Draws what the records of a data set allow.

    Args:
      dataset: its name.
      folder: of its records.
      output: the folder for <dataset>-<figure>.svg and .png.

    Returns:
      Captions by figure, of those that were drawn; each names what is missing.

    Raises:
      InputError: matplotlib is not installed, or no record is there.
    """
    check_matplotlib()
    found = records.read_all(folder)
    if not found:
        raise InputError(
            f"figures need records, and {folder} has none. Make some: python -m "
            f"benchmarks.reproduce --dataset {dataset}."
        )
    import matplotlib
    from matplotlib.figure import Figure

    output.mkdir(parents=True, exist_ok=True)
    captions = {}
    drawers = {
        "negatives": draw_negatives,
        "curves": partial(draw_curves, paces=pace.read(dataset)),
    }
    with matplotlib.rc_context(LOOK):
        for name, drawer in drawers.items():
            figure = Figure(figsize=(7.2, 3.9))
            captions[name] = drawer(figure, dataset, found)
            save(figure, output / f"{dataset}-{name}")
    return captions


def check_matplotlib() -> None:
    """Raises InputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib: pip install 'jaxrec[figures]'.")


def save(figure, stem: Path) -> None:
    """Writes <stem>.svg and .png, without the date: equal figures, equal bytes."""
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    figure.savefig(f"{stem}.png", dpi=200, metadata={"Software": None})


def draw_negatives(figure, dataset: str, found: Found) -> str:
    """NDCG@10 against the number of negatives; returns the caption."""
    axes, margin = figure.subplots(1, 2, sharey=True, width_ratios=(4, 3.2))
    figure.subplots_adjust(left=0.085, right=1, bottom=0.125, top=0.92, wspace=0)
    margin.set(xlim=(0, 1))
    margin.set_axis_off()
    points = {
        number: runs
        for method, runs in found.items()
        if (number := num_negatives(method))
    }
    measured = {
        number: fidelity.measure(points[number], METRIC) for number in sorted(points)
    }
    if measured:
        _draw_points(axes, measured)
    labels = []
    present = [method for method in LINES if method in found]
    for place, method in enumerate(present):
        colour, dash, _ = STYLES[method]
        one, x = fidelity.measure(found[method], METRIC), 0.035 + 0.04 * place
        axes.axhline(one["mean"], color=colour, ls=dash, lw=1.5, zorder=1)
        margin.plot((0, x), (one["mean"],) * 2, color=colour, ls=dash, lw=1.5)
        _whisker(margin, x, one, method)
        labels.append((one["mean"], _ours(method, one), method))
    if one := measured.get(NEGATIVES[-1]):  # the paper's
        method = "sasrec_sampled_ce"
        labels.append((one["mean"], _ours(method, one), method))
    for method, paper in PUBLISHED[dataset].items():
        if method in found:
            colour, _, marker = STYLES[method]
            hollow = {"mfc": "white", "mec": colour, "mew": 1.1, "ms": 5.5}
            margin.plot(PAPER_X, paper.ndcg, marker, **hollow)
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    published = [paper.ndcg for paper in PUBLISHED[dataset].values()]
    axes.set(
        # All that the paper has is in sight, also while few of ours are.
        ylim=(min(low, 0.95 * min(published)), max(high, 1.05 * max(published))),
        xscale="log",
        xlim=(0.55, 4800),
        xlabel="negatives a sequence",
        ylabel="test NDCG@10",
        title=f"{DATASETS[dataset]}: how many negatives does SASRec need?",
    )
    ticks = [1, 10, 100, 1000, 3000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    _mark_fractions(axes, high - low)
    top = {"transform": margin.get_xaxis_transform(), "va": "top", "fontsize": 8}
    margin.text(PAPER_X, 1, "paper", color=FAINT, ha="center", **top)
    margin.text(PAPER_X + 0.075, 1, "ours", color=FAINT, **top)
    _label(margin, labels, x=PAPER_X + 0.04)
    missing = [title(method) for method in LINES if method not in found]
    missing += [f"S = {number}" for number in NEGATIVES if number not in points]
    return (
        f"Test NDCG@10 on {DATASETS[dataset]} of SASRec with a softmax over the target "
        "and S negatives a sequence (joined points), and of methods in which the "
        "number is fixed (lines). Bars: 95% bootstrap intervals over users. Hollow "
        f"marks: the paper's values.{_absent(missing)}"
    )


def _draw_points(axes, measured: Mapping[int, Mapping]) -> None:
    """The sampled softmax: a point and its interval for each number of negatives."""
    method = "sasrec_sampled_ce"
    numbers = [*measured]
    colour = STYLES[method][0]
    axes.plot(numbers, [one["mean"] for one in measured.values()], color=colour, lw=1.8)
    for number, one in measured.items():
        _whisker(axes, number, one, method)
        below = {"xytext": (0, -3), "textcoords": "offset points", "va": "top"}
        axes.annotate(
            f"{'S = ' if number == numbers[0] else ''}{number:,}",
            (number, one["low"]),
            **below,
            ha="center",
            color=_dark(colour),
            fontsize=8,
        )
    is_left = numbers[0] < 100
    axes.annotate(
        "SASRec+, S negatives",
        (numbers[0], measured[numbers[0]]["mean"]),
        xytext=(10 if is_left else -10, 0),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="center",
        color=_dark(colour),
        fontsize=8.5,
        bbox={"fc": "white", "ec": "none", "pad": 1},
    )


def _ours(method: str, one: Mapping) -> str:
    return f"{title(method)}  {markdown.fraction(one['mean'])}"


def draw_curves(
    figure, dataset: str, found: Found, paces: Mapping[str, Mapping[str, float]]
) -> str:
    """Validation NDCG@10 against epoch and time; returns the caption."""
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.74, bottom=0.125, top=0.92, wspace=0.09)
    labels, highest, paceless = [], 0.0, []
    device, epoch_seconds = fidelity.one_pace(found, paces)
    for method in (method for method in CURVES if method in found):
        for place, (_, run) in enumerate(sorted(found[method].items())):
            values = [line[f"valid/{METRIC}"] for line in run.epochs]
            epochs = [line["epoch"] for line in run.epochs]
            best = epochs.index(run.result["best_epoch"])
            _curve(by_epoch, epochs, values, best, method, is_first=place == 0)
            epoch_s = epoch_seconds.get(method)
            if epoch_s is None:
                paceless.append(f"{title(method)}, seed {run.result['seed']}")
            else:
                minutes = [epoch * epoch_s / 60 for epoch in epochs]
                _curve(by_time, minutes, values, best, method, is_first=place == 0)
            if place == 0:
                labels.append((values[best], title(method), method))
            highest = max(highest, *values)
    by_epoch.set(
        xlabel="epoch",
        ylabel="validation NDCG@10",
        title=f"{DATASETS[dataset]} by epoch",
        xlim=(0, None),
        ylim=(0, 1.04 * highest),
    )
    by_time.set(xlabel="minutes at the measured pace", title="by training time")
    by_time.set_xlim(0)
    _mark_fractions(by_epoch, highest)
    _label(by_time, labels, x=1.07, marker_x=1.03)
    missing = [title(method) for method in CURVES if method not in found]
    return (
        f"Validation NDCG@10 on {DATASETS[dataset]} after every epoch; a mark is the "
        "epoch that early stopping kept; further seeds are paler. Time is that of "
        f"training steps, an epoch's as the methods took in turn on {device} "
        "(`python -m benchmarks.pace`)."
        f"{_absent(paceless, 'Not on the right, for want of a pace')}{_absent(missing)}"
    )


def _curve(axes, x, values, best: int, method: str, *, is_first: bool) -> None:
    """A run; those of further seeds are paler."""
    colour, _, marker = STYLES[method]
    axes.plot(x, values, color=colour, lw=1.3, alpha=1.0 if is_first else 0.35)
    axes.plot(x[best], values[best], marker, color=colour, **MARK)


def _whisker(axes, x: float, measured: Mapping, method: str) -> None:
    colour, _, marker = STYLES[method]
    axes.vlines(x, measured["low"], measured["high"], color=colour, lw=1.2)
    axes.plot(x, measured["mean"], marker, color=colour, **MARK)


def _label(
    axes,
    labels: Iterable[tuple[float, str, str]],
    *,
    x: float,
    marker_x: float | None = None,
) -> None:
    """Texts at the right of their lines, moved apart where they would overlap."""
    labels = sorted(labels)
    low, high = axes.get_ylim()
    where = spread([value for value, _, _ in labels], (high - low) * 0.06)
    place = axes.get_yaxis_transform()
    for y, (_, text, method) in zip(where, labels, strict=True):
        colour, _, marker = STYLES[method]
        if marker_x is not None:
            mark = {"color": colour, "transform": place, "clip_on": False, **MARK}
            axes.plot(marker_x, y, marker, **mark)
        style = {"color": _dark(colour), "fontsize": 8.5, "va": "center"}
        axes.text(x, y, text, transform=place, **style)


def _mark_fractions(axes, span: float) -> None:
    """Ticks as the tables write them: .20, or .025 on an axis that is short."""
    from matplotlib.ticker import MaxNLocator

    digits = 2 if span > 0.06 else 3
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(
        lambda value, place: f"{value:.{digits}f}".removeprefix("0")
    )


def _dark(colour: str) -> str:
    """The colour as ink for small letters."""
    return "#" + "".join(
        f"{int(colour[i : i + 2], 16) * 3 // 4:02X}" for i in (1, 3, 5)
    )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The nearest positions, in the same order, that are at least `gap` apart.

    >>> spread([0.0, 1.0, 1.0], 0.5), spread([0.0, 2.0], 0.5)
    ([0.0, 0.75, 1.25], [0.0, 2.0])

    Args:
      values: in increasing order.
      gap: >= 0.
    """
    blocks: list[list[float]] = []  # (sum of wished first places, members)
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1:
            (a, m), (b, n) = blocks[-2:]
            if b / n - a / m >= gap * m:
                break
            blocks[-2:] = [[a + b - gap * m * n, m + n]]
    places = []
    for total, number in blocks:
        places += [total / number + gap * i for i in range(int(number))]
    return places


def _absent(missing: Sequence[str], what: str = "Not run yet") -> str:
    return f" {what}: {', '.join(missing)}." if missing else ""


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser(
        "figures", "Draw a data set's figures from its committed records."
    )
    parser.add_argument("--dataset", default="ml-1m", help=", ".join(PUBLISHED))
    flags = parser.parse_args(argv)
    if flags.dataset not in PUBLISHED:
        raise InputError(
            f"--dataset must be one of {', '.join(PUBLISHED)}: got {flags.dataset}."
        )
    captions = draw(flags.dataset, records.RESULTS / flags.dataset, FIGURES)
    for name, caption in captions.items():
        print(f"{FIGURES / f'{flags.dataset}-{name}.svg'}: {caption}")
    text = DOCUMENT.read_text()
    for name, caption in captions.items():
        place = f"{flags.dataset}-{name}"
        if f"<!-- begin {place} -->" in text:
            image = f"![{place}](../benchmarks/figures/{place}.svg)"
            text = markdown.insert(text, place, f"{image}\n\n*{caption}*")
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
