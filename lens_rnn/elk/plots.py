"""Results of transfers as pictures: curves over layers, and a table in colours."""

from collections.abc import Sequence
from pathlib import Path

from lens_rnn.drawing import BLACK, GREY, new_figure, save_picture, save_png
from lens_rnn.elk.probes import READER, SUPERVISED, UNSUPERVISED
from lens_rnn.elk.transfer import Result
from lens_rnn.evaluation.canvas import Line, Panel, Picture

import numpy as np
from matplotlib.figure import Figure

PANELS = (("A", "A"), ("AE", "AE"), ("AE", "BH"), ("A", "B"), ("B", "B"), ("all", "BH"))
COLOURS = {
    "raw": "#0072B2",
    "translated": "#D55E00",
    "lens_log_odds": BLACK,
    "state": "#009E73",
    "state_heads": "#CC79A7",
}
LABELS = {
    "raw": "hidden state",
    "translated": "translated",
    "lens_log_odds": "lens log-odds,\nno training",
    "state": "recurrent state,\nprojected",
    "state_heads": "recurrent state,\nheads",
}


class _Areas(Picture):
    """Panels whose y axis is that of an AUROC."""

    @property
    def limits(self) -> tuple[bool, float, float]:
        return False, 0.0, 1.03


def curves_picture(results: Sequence[Result], title: str) -> Picture:
    """AUROC over layers: one panel a transfer, one line a feature, of the standard probe with labels; trained on all,
    of that without."""
    panels = []
    for train, test in PANELS:
        probe = UNSUPERVISED if train == "all" else SUPERVISED
        lines = [
            Line(
                label=LABELS[r.feature],
                x=np.array(r.depths),
                y=np.array(r.curve),
                colour=COLOURS[r.feature],
                marker="o",
            )
            for r in results
            if r.test == test and ((r.train, r.probe) == (train, probe) or r.probe == READER)
        ]
        chance = Line(
            label="chance", x=np.array([0.0, 1.0]), y=np.array([0.5, 0.5]), colour=GREY, dash="dotted", width=1.2
        )
        panels.append(Panel(title=f"{train} → {test}, {probe}", lines=[*lines, chance]))
    return _Areas(title=title, y_title="AUROC against the truth", units="", panels=panels)


def plot_curves(results: Sequence[Result], path: Path, title: str) -> None:
    """Write the curves as PNG."""
    save_picture(curves_picture(results, title), path)


def heat_figure(results: Sequence[Result], title: str) -> Figure:
    """AUROC at the earliest informative layer: probes down, transfers across."""
    names = list(dict.fromkeys((r.feature, r.probe) for r in results))
    transfers = list(dict.fromkeys((r.train, r.test) for r in results if r.probe != READER))
    values = np.full((len(names), len(transfers)), np.nan)
    for r in results:
        for column, (train, test) in enumerate(transfers):
            if r.test == test and r.train in (train, "none"):
                values[names.index((r.feature, r.probe)), column] = r.auroc.value
    figure = new_figure(2.4 + 0.62 * len(transfers), 1.4 + 0.26 * len(names))
    axes = figure.add_subplot()
    cells = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap="RdBu", vmin=0, vmax=1, edgecolors="white", linewidth=0.6
    )
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value - 0.5) > 0.33 else BLACK
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(np.arange(len(transfers)) + 0.5, [f"{train} →\n{test}" for train, test in transfers], fontsize=8)
    axes.set_yticks(np.arange(len(names)) + 0.5, [f"{feature}  {probe}" for feature, probe in names], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", parse_math=False)
    bar = figure.colorbar(cells, ax=axes, pad=0.015, fraction=0.035, aspect=25)
    bar.set_label("AUROC against the truth", fontsize=9)
    bar.outline.set_visible(False)
    return figure


def plot_heat(results: Sequence[Result], path: Path, title: str) -> None:
    """Write the table in colours as PNG."""
    save_png(heat_figure(results, title), path)
