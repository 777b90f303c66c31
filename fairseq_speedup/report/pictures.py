"""Pictures of runs, drawn by matplotlib."""

from collections import Counter, defaultdict
from pathlib import Path

from fairseq_speedup.report.pareto import COSTS, front
from fairseq_speedup.report.runs import Row

AXES = {"MACs": "GMACs per second of audio", "time": "real-time factor"}


class MissingExtraError(ValueError):
    """matplotlib or adjustText is not installed."""

    def __init__(self, remedy: str):
        super().__init__(
            "pictures need matplotlib and adjustText, which are not installed: pip install "
            f"matplotlib adjustText (the extra 'report'), or {remedy}"
        )


def check_installed(remedy: str = "give --no-pictures") -> None:
    """Raises MissingExtraError.

    Args:
        remedy: how to do without pictures
    """
    try:
        import adjustText  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError(remedy) from None


def new_axes(width: float = 9, height: float = 6, count: int = 1):
    """A figure and its axes, or an array of them side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count)


def _part(names: list, axes) -> None:
    """Moves texts that lie on one another or on points apart, with a line to where they belong."""
    from adjustText import adjust_text

    axes.figure.draw_without_rendering()
    # an end by iterations, not by time: the same picture everywhere
    adjust_text(
        names,
        ax=axes,
        iter_lim=500,
        expand=(1.1, 1.4),
        arrowprops={"arrowstyle": "-", "color": "0.6"},
    )


def draw_costs(rows: list[Row], cost: str, path: Path, measure: str = "WER") -> None:
    """Error rates of rows of one test set against a cost; bars are standard deviations over seeds,
    the line joins the Pareto front, whose models are named in bold."""
    figure, axes = new_axes()
    of = COSTS[cost]
    best = front(rows, cost)
    with_cost = [row for row in rows if of(row) is not None]
    names = []
    for row in with_cost:
        on_front = row in best
        axes.errorbar(
            of(row),
            row.wer,
            yerr=row.spread,
            fmt="o" if on_front else "x",
            color="C0" if on_front else "0.5",
            capsize=3,
        )
        weight = "bold" if on_front else "normal"
        names.append(axes.text(of(row), row.wer, row.name, fontsize=8, weight=weight))
    axes.step([of(row) for row in best], [row.wer for row in best], where="post", alpha=0.5)
    axes.set(xlabel=AXES[cost], ylabel=f"{measure} (%)", title=str(rows[0].test_set))
    axes.set_xlim(left=0, right=1.2 * max(of(row) for row in with_cost))
    _part(names, axes)
    figure.savefig(path, dpi=150)


def draw_amounts(rows: list[Row], path: Path, measure: str = "WER") -> bool:
    """Error rates of rows of one test set against labelled audio, a line for each method that has
    several amounts of it, under the shortest of its names. False where there is none."""
    by_method: dict[str, list[tuple[float, Row]]] = defaultdict(list)
    for row in rows:
        if row.hours is not None:
            by_method[row.method].append((60 * row.hours, row))
    methods = [each for each in by_method.values() if len({minutes for minutes, _ in each}) > 1]
    if not methods:
        return False
    figure, axes = new_axes(7, 5)
    for several in methods:
        in_order = sorted(several, key=lambda each: each[0])
        axes.errorbar(
            [minutes for minutes, _ in in_order],
            [row.wer for _, row in in_order],
            yerr=[row.spread or 0 for _, row in in_order],
            marker="o",
            capsize=3,
            label=min((row.name for _, row in in_order), key=len),
        )
    amounts = sorted({round(minutes) for several in methods for minutes, _ in several})
    axes.set_xscale("log")
    axes.set_xticks(amounts, [str(minutes) for minutes in amounts])
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel="labelled audio (minutes)", ylabel=f"{measure} (%)", title=str(rows[0].test_set)
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return True


def draw_exits(rows: list[Row], path: Path) -> bool:
    """Layers that utterances of one test set ran, of models with exits. False without such."""
    with_exits = [row for row in rows if row.mean_layers is not None]
    if not with_exits:
        return False
    figure, axes = new_axes(9, 4)
    width = 0.8 / len(with_exits)
    for index, row in enumerate(with_exits):
        histogram: Counter[int] = Counter()
        for compute in row.computes:
            histogram.update(
                {int(n): count for n, count in compute["layers_run_histogram"].items()}
            )
        layers = sorted(histogram)
        places = [n + (index + 0.5) * width - 0.4 for n in layers]
        shares = [100 * histogram[n] / histogram.total() for n in layers]
        axes.bar(places, shares, width, label=f"{row.name}: {row.mean_layers:.2f} on average")
    axes.set(xlabel="layers run", ylabel="utterances (%)", title=str(rows[0].test_set))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=150)
    return True


def draw_sizes(models: dict[str, dict[str, list[int]]], path: Path) -> None:
    """Sizes of models by layer, a panel for each kind of size, models side by side.

    Args:
        models: by name, of each kind the size of every layer
    """
    from matplotlib.ticker import MaxNLocator

    kinds = list(next(iter(models.values())))
    figure, panels = new_axes(4 * len(kinds), 3.6, len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        for place, (name, sizes) in enumerate(models.items()):
            width = 0.8 / len(models)
            places = [layer + (place + 0.5) * width - 0.4 for layer in range(len(sizes[kind]))]
            axes.bar(places, sizes[kind], width, label=name)
        axes.set_xlabel("layer")
        axes.set_title(kind)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center")
    figure.savefig(path, dpi=100)
