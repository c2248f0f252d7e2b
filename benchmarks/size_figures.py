"""Draws what a step costs against each size, from the records of benchmarks.sizes.

    python -m benchmarks.size_figures

sizes-<device>-ms and sizes-<device>-mb in figures/, as SVG and PNG: milliseconds of a
training step, and MiB that its program allocates beside its arguments, one panel a
size. Needs matplotlib: pip install 'jaxrec[figures]'.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, options, page
from benchmarks.figures import FIGURES, INK, LOOK, check_matplotlib, save
from jaxrec.command import run_command
from jaxrec.errors import InputError

# A size's column in the rows, and what its axis says.
PANELS = {
    "catalogue": ("items", "items of the catalogue"),
    "negatives": ("negatives", "negatives a sequence"),
    "batch": ("batch", "sequences a batch"),
    "window": ("window", "items of a window"),
    "width": ("width", "width"),
    "layers": ("layers", "layers"),
}
VALUES = {
    "ms": ("ms", "milliseconds a step"),
    "mb": ("temp_mb", "MiB beside parameters, optimiser and log"),
}
# By data set, name and one of Okabe and Ito's colours; by method, name, dash, marker.
DATASETS = {
    "ml-1m": ("ML-1M", "#0072B2"),
    "beauty": ("Beauty", "#D55E00"),
    "lengths of beauty": ("Beauty", "#D55E00"),
}
METHODS: dict[str, tuple[str, Any, str]] = {
    "sasrec_ce": ("full softmax", "-", "s"),
    "sasrec_sampled_ce": ("sampled softmax", (0, (4, 1.5)), "o"),
    "sasrec_sampled_ce_dealt": ("sampled, dealt", (0, (1, 1.2)), "^"),
}


def draw(results: Path, output: Path) -> list[Path]:
    """Draws the latest record of every size, device by device.

    Args:
      results: the folder of the records, with a folder "sizes".
      output: of the figures.

    Returns:
      The files without their suffix.

    Raises:
      InputError: matplotlib is not installed, or no record is there.
    """
    check_matplotlib()
    folder = results / "sizes"
    found = page.latest(folder) if folder.is_dir() else []
    if not found:
        raise InputError(
            f"figures need records, and {folder} has none. Make some: python -m "
            "benchmarks.sizes."
        )
    import matplotlib
    from matplotlib.figure import Figure

    output.mkdir(parents=True, exist_ok=True)
    stems = []
    with matplotlib.rc_context(LOOK):
        for device in sorted({one.found["device"] for one in found}):
            rows = {
                one.subject: one.found["rows"]
                for one in found
                if one.found["device"] == device
            }
            for name, (column, label) in VALUES.items():
                figure = Figure(figsize=(7.2, 4.9))
                _draw(figure, rows, column, label)
                stem = output / f"sizes-{measure.file_name(device)}-{name}"
                save(figure, stem)
                stems.append(stem)
    return stems


def lines(
    rows: Sequence[Mapping[str, Any]], size: str, value: str
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Points (size, value) of each data set and method, by size.

    >>> rows = [{"dataset": "d", "method": "m", "width": w, "ms": 2.0 * w}
    ...         for w in (64, 32)]
    >>> lines(rows, "width", "ms")
    {('d', 'm'): [(32, 64.0), (64, 128.0)]}
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        points = found.setdefault((row["dataset"], row["method"]), [])
        points.append((row[size], row[value]))
    return {key: sorted(points) for key, points in found.items()}


def _draw(figure, rows: Mapping[str, Sequence[Mapping]], column: str, label: str):
    """A panel for each size; one legend for all."""
    panels = figure.subplots(2, 3).flat
    figure.subplots_adjust(
        left=0.085, right=0.985, bottom=0.1, top=0.855, wspace=0.28, hspace=0.42
    )
    handles = {}
    for axes, (name, (size, text)) in zip(panels, PANELS.items(), strict=True):
        axes.set(xlabel=text, xscale="log", yscale="log")
        sizes: set[float] = set()
        for (dataset, method), points in lines(
            rows.get(name, ()), size, column
        ).items():
            (known, colour), (loss, dash, marker) = DATASETS[dataset], METHODS[method]
            style = {"color": colour, "ls": dash, "marker": marker, "ms": 4}
            (handle,) = axes.plot(*zip(*points, strict=True), lw=1.5, **style)
            handles.setdefault(f"{known}, {loss}", handle)
            sizes |= {x for x, _ in points}
        axes.set_xticks(sorted(sizes), [_short(x) for x in sorted(sizes)], minor=False)
        axes.tick_params(axis="x", labelsize=7.5)
        axes.minorticks_off()
        low, high = axes.get_ylim()
        # A decade at the least, or what hardly grows would seem to soar.
        missing = max(1.0, 10 * low / high) ** 0.5
        low, high = low / missing, high * missing
        axes.set_ylim(low, high)
        ticks = [m * 10**e for e in range(5) for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    # A column a loss, ML-1M above Beauty.
    names = dict.fromkeys(name for name, _ in DATASETS.values())
    labels = [f"{name}, {loss}" for loss, _, _ in METHODS.values() for name in names]
    labels = [label for label in labels if label in handles]
    figure.legend(
        [handles[one] for one in labels],
        labels,
        loc="upper left",
        bbox_to_anchor=(0.02, 1.0),
        ncols=-(-len(labels) // 2),
        frameon=False,
        fontsize=7.5,
        handlelength=2.9,
        columnspacing=0.9,
    )
    figure.text(0.075, 0.895, label, color=INK, fontsize=9, weight="bold")


def _short(x: float) -> str:
    """
    >>> _short(64), _short(30_000), _short(1_000_000)
    ('64', '30k', '1M')
    """
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if x >= unit and x % unit == 0:
            return f"{x // unit}{name}"
    return f"{x}"


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("size_figures", __doc__)
    parser.add_argument("--output", type=options.folder, default=FIGURES)
    flags = parser.parse_args(argv)
    for stem in draw(measure.RESULTS, flags.output):
        print(f"{stem}.svg")


if __name__ == "__main__":
    sys.exit(run_command(main))
