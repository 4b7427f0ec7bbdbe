"""Curves over depth as pictures: one result with its baselines, or any number overlaid; PNG by matplotlib, HTML by plotly.

A picture is first laid out as plain lines, then drawn by either library, so both show the same. The x axis is the fraction of blocks
applied, never a layer index, whose meaning differs between families. Solid is the tuned lens, dashed the logit lens. Nothing here knows a
model, and no global state of pyplot is touched.
"""

import logging
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lens_rnn.errors import DataError
from lens_rnn.evaluation.results import Curves

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

Lens = Literal["tuned", "logit", "both"]

X_TITLE = "Fraction of blocks applied"
Y_TITLE = "Cross-entropy (bits per byte)"
X_LIMITS = (-0.02, 1.02)
LOG_RATIO = 12
"""The y axis is logarithmic where the highest value is this many times the lowest."""
LEGEND_WIDTH = 24
"""Characters in a line of the legend, which stands beside the curves and takes their width."""
SIZE_INCHES = (8.0, 4.7)
DOTS_PER_INCH = 200  # 1600 pixels: sharp at the 800 that a README shows

BLUE, ORANGE, BLACK, GREY, PALE, GRID = "#0072B2", "#E69F00", "#1A1A1A", "#6E6E6E", "#B4B4B4", "#E4E4E4"
RAMPS = {  # light to dark for small to large; told apart by colour-blind eyes, and by marker in greyscale
    "mamba": ("#7FD0F2", "#0F7AC0", "#240A52"),
    "rwkv": ("#FAC552", "#DE630C", "#570A1E"),
    "gpt_neox": ("#98DAA6", "#14866A", "#052A36"),
}
OTHER_RAMP = ("#E3B4D8", "#B0559A", "#45123B")
DISTINCT = ("#0072B2", "#E69F00", "#007A5A", "#B8468B", "#56B4E9", "#7A2E00", "#1A1A1A", "#8C7A00")
FAMILY_MARKERS = {"mamba": "o", "rwkv": "s", "gpt_neox": "^"}
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x", "": "circle"}
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot"}


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line of a picture. Without points it is a key: it only explains a style in the legend."""

    label: str = ""
    group: str = ""
    x: np.ndarray = field(default_factory=lambda: np.empty(0))
    y: np.ndarray = field(default_factory=lambda: np.empty(0))
    colour: str = BLACK
    dash: str = "solid"
    width: float = 2.0
    marker: str = ""
    markers: int = 9
    """At most so many points of the line are marked: more would hide the lines beside it."""


@dataclass(frozen=True)
class _Picture:
    title: str
    lines: list[_Line]

    @property
    def limits(self) -> tuple[bool, float, float]:
        """Whether y is logarithmic, and its lowest and highest value."""
        values = np.concatenate([line.y for line in self.lines])
        low, high = float(values.min()), float(values.max())
        if low > 0 and high / low > LOG_RATIO:
            return True, low / 1.15, high * 1.15
        return False, min(0.0, low), high + 0.05 * (high - min(0.0, low))


def plot_layers_png(curves: Curves, path: str | Path, lens: Lens = "both") -> None:
    """Draw one result with the model, unigram and uniform baselines as horizontal lines."""
    _write_png(layers_figure(curves, lens), Path(path))
    _warn_of_broken([curves], path)


def plot_layers_html(curves: Curves, path: str | Path, lens: Lens = "both") -> None:
    """The same as a page to point at, which holds all it needs and works offline (about 5 MB)."""
    _write_html(_plotly_figure(_layers_picture(curves, lens)), Path(path))
    _warn_of_broken([curves], path)


def plot_comparison_png(results: Sequence[Curves], path: str | Path, lens: Lens = "both") -> None:
    """Overlay any number of results: one colour a model, from light to dark by size within a family where names tell the size."""
    _write_png(comparison_figure(results, lens), Path(path))
    _warn_of_broken(results, path)


def plot_comparison_html(results: Sequence[Curves], path: str | Path, lens: Lens = "both") -> None:
    """The same as a page to point at, which holds all it needs and works offline (about 5 MB)."""
    _write_html(_plotly_figure(_comparison_picture(results, lens)), Path(path))
    _warn_of_broken(results, path)


def layers_figure(curves: Curves, lens: Lens = "both") -> Figure:
    """What `plot_layers_png` writes, as a figure."""
    return _matplotlib_figure(_layers_picture(curves, lens))


def comparison_figure(results: Sequence[Curves], lens: Lens = "both") -> Figure:
    """What `plot_comparison_png` writes, as a figure."""
    return _matplotlib_figure(_comparison_picture(results, lens))


def _layers_picture(curves: Curves, lens: Lens) -> _Picture:
    looks = {"logit": (ORANGE, "dashed", 2.0, "s"), "tuned": (BLUE, "solid", 2.6, "o")}
    lines = []
    for name, ce in _chosen(curves, lens).items():
        colour, dash, width, marker = looks[name]
        x, y = curves.joined_to_model(ce)
        colour = PALE if curves.broken else colour
        label = f"{name.capitalize()} lens"
        lines.append(_Line(label=label, group=label, x=x, y=y, colour=colour, dash=dash, width=width, marker=marker, markers=32))
    if curves.uniform_ce is not None:
        lines.append(_level(f"Uniform: {curves.uniform_ce:.3g}", curves.uniform_ce, GREY, "dotted"))
    if curves.unigram_ce is not None:
        lines.append(_level(f"Unigram: {curves.unigram_ce:.3g}", curves.unigram_ce, GREY, "dashdot"))
    lines.append(_level(f"Model: {curves.model_ce:.3g}" + _broken_note(curves), curves.model_ce, BLACK, "solid"))
    return _Picture(textwrap.fill(curves.name, 60), lines)


def _comparison_picture(results: Sequence[Curves], lens: Lens) -> _Picture:
    if not results:
        raise DataError("there is no result to draw; name at least one")
    looks = {"tuned": ("solid", 2.2), "logit": ("dashed", 1.0 if lens == "both" else 1.6)}
    lines = []
    if lens == "both":
        for name, (dash, width) in looks.items():
            lines.append(_Line(label=f"{name.capitalize()} lens", group=name, colour=GREY, dash=dash, width=width))
    uniform = [curves.uniform_ce for curves in results if curves.uniform_ce is not None]
    if uniform and max(uniform) < 1.01 * min(uniform):  # it depends on vocabulary and text: one line is true only where they share it
        lines.append(_level(f"Uniform: {uniform[0]:.3g}", uniform[0], GREY, "dotted"))

    styles = _styles([curves for curves in results if not curves.broken])
    for curves in [*styles, *(curves for curves in results if curves.broken)]:
        colour, marker = styles.get(curves, (PALE, "X"))
        label = textwrap.fill(curves.name, LEGEND_WIDTH) + _broken_note(curves)
        chosen = _chosen(curves, lens)
        for name, ce in chosen.items():
            first = name == next(iter(chosen))  # a model has one entry in the legend, and markers on one of its lines
            x, y = curves.joined_to_model(ce)
            dash, width = looks[name]
            look = _Line(group=label, x=x, y=y, colour=colour, dash=dash, width=width)
            lines.append(replace(look, label=label, marker=marker) if first else look)
    return _Picture("Tuned and logit lens over depth" if lens == "both" else f"{lens.capitalize()} lens over depth", lines)


def _chosen(curves: Curves, lens: Lens) -> dict[str, np.ndarray]:
    """The cross-entropies to draw, (layers,) by the name of the lens, the more important first."""
    if lens == "tuned" and curves.tuned_ce is None:
        raise DataError(f"{curves.name} has no tuned lens; leave it out or draw the logit lens")
    there = {"tuned": curves.tuned_ce, "logit": curves.logit_ce}
    return {name: ce for name, ce in there.items() if ce is not None and lens in (name, "both")}


def _level(label: str, value: float, colour: str, dash: str) -> _Line:
    return _Line(label=label, group=label, x=np.array(X_LIMITS), y=np.full(2, value), colour=colour, dash=dash, width=1.3)


def _broken_note(curves: Curves) -> str:
    return f"\n(broken: {curves.broken})".replace(" >", "\n>") if curves.broken else ""


def _warn_of_broken(results: Sequence[Curves], path: str | Path) -> None:
    for curves in results:
        if curves.broken:
            message = "%s: %s is a broken run (%s bits per byte) and is drawn in grey"
            logging.getLogger(__name__).warning(message, path, curves.name, curves.broken)


def _styles(results: list[Curves]) -> dict[Curves, tuple[str, str]]:
    """Colour and marker of each result, in the order of the legend."""
    members = {curves.family: [c for c in results if c.family == curves.family] for curves in results}
    # Shades say which model is larger, so they are used only where that is known. Two lenses of one model get different colours instead.
    if any(len({c.parameters for c in group} - {None}) < len(group) for group in members.values() if len(group) > 1):
        markers = list(SYMBOLS)[:-1]
        return {curves: (DISTINCT[i % len(DISTINCT)], markers[i % len(markers)]) for i, curves in enumerate(results)}
    styles = {}
    for family, group in members.items():
        ramp = LinearSegmentedColormap.from_list("ramp", RAMPS.get(family or "", OTHER_RAMP))
        for i, curves in enumerate(sorted(group, key=lambda c: c.parameters or 0)):
            shade = i / (len(group) - 1) if len(group) > 1 else 0.5
            styles[curves] = (to_hex(ramp(shade)), FAMILY_MARKERS.get(family or "", "D"))
    return styles


def _matplotlib_figure(picture: _Picture) -> Figure:
    width, height = SIZE_INCHES
    legend_lines = sum(line.label.count("\n") + 1 for line in picture.lines if line.label)
    figure = Figure(figsize=(width, max(height, 0.4 + 0.2 * legend_lines)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, line in enumerate(picture.lines):
        axes.plot(
            line.x,
            line.y,
            label=line.label or "_",  # matplotlib leaves such a line out of the legend
            color=line.colour,
            linestyle=line.dash,
            linewidth=line.width,
            marker=line.marker,
            markersize=3.2 + line.width,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markevery=max(1, -(-len(line.x) // line.markers)),
            zorder=(3 if line.dash == "solid" else 2) - 0.01 * i,
        )
    _dress(axes, picture)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=9.5, handlelength=2.4, labelspacing=0.45)
    for text in (axes.title, *legend.get_texts()):
        text.set_parse_math(False)  # a dollar sign in a name is a dollar sign
    return figure


def _dress(axes: Axes, picture: _Picture) -> None:
    """Titles, ticks, limits, grid."""
    logarithmic, low, high = picture.limits
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(low, high)
    axes.set_xlim(*X_LIMITS)
    axes.set_xlabel(X_TITLE, fontsize=11)
    axes.set_ylabel(Y_TITLE, fontsize=11)
    axes.set_title(picture.title, fontsize=12, fontweight="bold", loc="left")
    axes.tick_params(labelsize=10, color=PALE)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PALE)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between the limits."""
    ticks = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _plotly_figure(picture: _Picture) -> go.Figure:
    figure = go.Figure()
    for line in picture.lines:
        name = (line.label or line.group).replace("\n", "<br>")
        figure.add_scatter(
            x=line.x.tolist() or [None],
            y=line.y.tolist() or [None],
            name=name,
            legendgroup=line.group,
            showlegend=bool(line.label),
            mode="lines+markers" if line.marker else "lines",
            line={"color": line.colour, "dash": DASHES[line.dash], "width": line.width},
            marker={"symbol": SYMBOLS[line.marker], "size": 7, "maxdisplayed": line.markers},
            hovertemplate="depth %{x:.3f}: %{y:.3f} bits per byte",
        )
    logarithmic, low, high = picture.limits
    look = {"gridcolor": GRID, "linecolor": PALE, "zeroline": False}
    span: dict[str, object] = {"range": [low, high]}
    if logarithmic:
        span = {"type": "log", "range": np.log10([low, high]).tolist(), "tickvals": _log_ticks(low, high)}
    figure.update_layout(
        title={"text": f"<b>{picture.title}</b>".replace("\n", "<br>"), "x": 0.02, "y": 0.97},
        margin={"l": 72, "r": 24, "t": 56, "b": 64},
        template="none",
        font={"family": "Helvetica, Arial, sans-serif", "size": 15, "color": BLACK},
        xaxis={"title": X_TITLE, "range": list(X_LIMITS), **look},
        yaxis={"title": Y_TITLE, **look, **span},
        legend={"tracegroupgap": 0, "font": {"size": 13}},
    )
    return figure


def _write_png(figure: Figure, path: Path) -> None:
    # Without its version stamp the same curves give the same bytes.
    _write(path, lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None}))


def _write_html(figure: go.Figure, path: Path) -> None:
    _write(path, lambda file: figure.write_html(file, include_plotlyjs=True, div_id="lens-rnn-curves", default_height="94vh"))


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename: what a reader finds is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
