"""Results of transfers as pictures: curves over layers, and a table in colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class Band(NamedTuple):
    """Between which values nine in ten random directions are, over layers."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: str


@dataclass(frozen=True, kw_only=True)
class Areas(Picture):
    """Panels whose y axis is that of an AUROC, with bands behind the lines."""

    bands: Sequence[Sequence[Band]]
    """Of each panel."""

    @property
    def limits(self) -> tuple[bool, float, float]:
        return False, 0.0, 1.03

    def matplotlib(self) -> Figure:
        """The lines, and under them the bands."""
        figure = super().matplotlib()
        for axes, bands in zip(figure.axes, self.bands, strict=False):
            for band in bands:
                axes.fill_between(band.x, band.low, band.high, color=band.colour, alpha=0.09, linewidth=0, zorder=1)
        return figure


def curves_picture(results: Sequence[Result], title: str) -> Picture:
    """AUROC over layers: one panel a transfer, one line a feature, of the standard probe with labels; trained on all,
    of that without. Behind it, in its colour, what nine in ten random directions read."""
    panels, bands = [], []
    for train, test in PANELS:
        probe = UNSUPERVISED if train == "all" else SUPERVISED
        shown = [r for r in results if r.test == test and ((r.train, r.probe) == (train, probe) or r.probe == READER)]
        lines = [
            Line(
                label=LABELS[r.feature],
                x=np.array(r.depths),
                y=np.array(r.curve),
                colour=COLOURS[r.feature],
                marker="o",
            )
            for r in shown
        ]
        bands.append([_band(r) for r in shown if r.controls])
        chance = Line(
            label="chance", x=np.array([0.0, 1.0]), y=np.array([0.5, 0.5]), colour=GREY, dash="dotted", width=1.2
        )
        panels.append(Panel(title=f"{train} → {test}, {probe}", lines=[*lines, chance]))
    title = f"{title}; shaded: 90 % of random directions"
    return Areas(title=title, y_title="AUROC against the truth", units="", panels=panels, bands=bands)


def _band(result: Result) -> Band:
    low, high = (np.array([getattr(at, end) for at in result.controls]) for end in ("low", "high"))
    return Band(np.array(result.depths), low, high, COLOURS[result.feature])


def plot_curves(results: Sequence[Result], path: Path, title: str) -> None:
    """Write the curves as PNG."""
    save_picture(curves_picture(results, title), path)


def heat_figure(results: Sequence[Result], title: str) -> Figure:
    """AUROC at the earliest informative layer: probes down, transfers across; bold where the interval is above 95 % of
    random directions."""
    names = list(dict.fromkeys((r.feature, r.probe) for r in results))
    transfers = list(dict.fromkeys((r.train, r.test) for r in results if r.probe != READER))
    values, clear = np.full((len(names), len(transfers)), np.nan), set()
    for r in results:
        for column, (train, test) in enumerate(transfers):
            if r.test == test and r.train in (train, "none"):
                row = names.index((r.feature, r.probe))
                values[row, column] = r.auroc.value
                clear |= {(row, column)} if r.clears else set()
    figure = new_figure(2.4 + 0.62 * len(transfers), 1.4 + 0.26 * len(names))
    axes = figure.add_subplot()
    cells = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap="RdBu", vmin=0, vmax=1, edgecolors="white", linewidth=0.6
    )
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value - 0.5) > 0.33 else BLACK
            weight = "bold" if (row, column) in clear else "normal"
            place = (column + 0.5, row + 0.5)
            axes.text(*place, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour, weight=weight)
    axes.set_xticks(np.arange(len(transfers)) + 0.5, [f"{train} →\n{test}" for train, test in transfers], fontsize=8)
    axes.set_yticks(np.arange(len(names)) + 0.5, [f"{feature}  {probe}" for feature, probe in names], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", parse_math=False)
    bar = figure.colorbar(cells, ax=axes, pad=0.015, fraction=0.035, aspect=25)
    bar.set_label("AUROC against the truth; bold: above 95 % of random directions", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def plot_heat(results: Sequence[Result], path: Path, title: str) -> None:
    """Write the table in colours as PNG."""
    save_png(heat_figure(results, title), path)
