"""Lines in panels, drawn twice the same: by matplotlib for a PNG, by plotly for a page to point at.

What is drawn is laid out as plain data first. The x axis is the fraction of blocks applied, never a layer index, whose
meaning differs between families. No global state of pyplot is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lens_rnn.drawing import BLACK, GRID, PALE, SANS, new_figure

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from plotly.subplots import make_subplots

X_TITLE = "Fraction of blocks applied"
X_LIMITS = (-0.02, 1.02)
LOG_RATIO = 12
"""The y axis is logarithmic where the highest value is this many times the lowest."""
SIZE_INCHES = (8.0, 4.7)
PANEL_INCHES = (2.75, 2.5)
LEGEND_INCHES = 2.2
COLUMNS = 3
"""Panels side by side at most."""

_SHAPES = (
    "o circle, s square, ^ triangle-up, v triangle-down, < triangle-left, > triangle-right, D diamond, d diamond-tall, "
    "P cross, X x, p pentagon, * star, h hexagon"
)
SYMBOLS = {"": "circle", **dict(pair.split() for pair in _SHAPES.split(", "))}
"""Markers of matplotlib, as plotly calls them."""
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot", "none": "solid"}
FONT = {"family": SANS, "size": 15, "color": BLACK}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel. Without points it is a key: it only explains a style in the legend."""

    label: str = ""
    group: str = ""
    x: np.ndarray = field(default_factory=lambda: np.empty(0))
    y: np.ndarray = field(default_factory=lambda: np.empty(0))
    colour: str = BLACK
    dash: str = "solid"
    """How the points are joined; "none" draws markers only."""
    width: float = 2.0
    marker: str = ""
    markers: int = 9
    """At most so many points of the line are marked: more would hide the lines beside it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over one pair of axes."""

    title: str = ""
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One panel, or several that share their axes and one legend."""

    title: str
    y_title: str
    units: str
    panels: Sequence[Panel]

    @property
    def limits(self) -> tuple[bool, float, float]:
        """Whether y is logarithmic, and its lowest and highest value."""
        values = np.concatenate([line.y for panel in self.panels for line in panel.lines])
        low, high = float(values.min()), float(values.max())
        if low > 0 and high / low > LOG_RATIO:
            return True, low / 1.15, high * 1.15
        return False, min(0.0, low), high + 0.05 * (high - min(0.0, low))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of panels."""
        columns = min(COLUMNS, len(self.panels))
        return -(-len(self.panels) // columns), columns

    def matplotlib(self) -> Figure:
        legend_lines = sum(label.count("\n") + 1 for label in _keys(self))
        rows, columns = self.grid
        width, height = SIZE_INCHES
        if len(self.panels) > 1:
            width, height = columns * PANEL_INCHES[0] + LEGEND_INCHES, rows * PANEL_INCHES[1] + 0.5
        over_all = self.title if len(self.panels) > 1 else ""
        figure = new_figure(width, max(height, 0.4 + 0.2 * legend_lines), over_all)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        handles: dict[str, Line2D] = {}
        for panel, place in zip(self.panels, axes, strict=False):
            for i, line in enumerate(panel.lines):
                handles.setdefault(line.label, _matplotlib_line(place, line, i))
            _dress(place, self)
            place.set_title(panel.title, fontsize=10, loc="left").set_parse_math(False)
        for place in axes[len(self.panels) :]:
            place.set_visible(False)
        for place in axes[max(0, len(self.panels) - columns) : len(self.panels)]:
            place.tick_params(labelbottom=True)  # the lowest of its column, even where the last row is not full
        _label(figure, axes[0], self)
        labels = [label for label in handles if label]
        legend = figure.legend(
            [handles[label] for label in labels],
            labels,
            loc="outside right upper",
            frameon=False,
            fontsize=9.5,
            handlelength=2.4,
            labelspacing=0.45,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return figure

    def plotly(self) -> go.Figure:
        rows, columns = self.grid
        titles = [panel.title.replace("\n", "<br>") for panel in self.panels]
        figure = make_subplots(
            rows,
            columns,
            shared_xaxes="all",
            shared_yaxes="all",
            subplot_titles=titles,
            vertical_spacing=0.3 / rows,
            horizontal_spacing=0.04,
        )
        explained: set[str] = set()
        for i, panel in enumerate(self.panels):
            for line in panel.lines:
                trace = _plotly_line(line, self.units, explain=bool(line.label) and line.label not in explained)
                figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
                explained.add(line.label)
        logarithmic, low, high = self.limits
        span: dict[str, object] = {"range": [low, high]}
        if logarithmic:
            span = {"type": "log", "range": np.log10([low, high]).tolist(), "tickvals": _log_ticks(low, high)}
        look = {"gridcolor": GRID, "linecolor": PALE, "zeroline": False}
        figure.update_annotations(font_size=14)
        figure.update_xaxes(range=list(X_LIMITS), showticklabels=True, **look)
        figure.update_xaxes(title=X_TITLE, row=rows)
        figure.update_yaxes(**look, **span)
        figure.update_yaxes(title=self.y_title, col=1, row=(rows + 1) // 2)
        figure.update_layout(
            title={"text": f"<b>{self.title}</b>".replace("\n", "<br>"), "x": 0.02, "y": 0.97},
            margin={"l": 72, "r": 24, "t": 56 if len(self.panels) == 1 else 88, "b": 64},
            template="none",
            font=FONT,
            height=None if rows == 1 else 160 + 240 * rows,
            legend={"tracegroupgap": 0, "font": {"size": 13}},
        )
        return figure


def _keys(picture: Picture) -> list[str]:
    """What the legend says, each once."""
    return list(dict.fromkeys(line.label for panel in picture.panels for line in panel.lines if line.label))


def _matplotlib_line(axes: Axes, line: Line, place: int) -> Line2D:
    drawn = axes.plot(
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
        zorder=(3 if line.dash == "solid" else 4 if line.dash == "none" else 2) - 0.01 * place,
    )
    return drawn[0]


def _dress(axes: Axes, picture: Picture) -> None:
    """Ticks, limits, grid."""
    logarithmic, low, high = picture.limits
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(low, high)
    axes.set_xlim(*X_LIMITS)
    axes.tick_params(labelsize=10, color=PALE)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PALE)


def _label(figure: Figure, first: Axes, picture: Picture) -> None:
    """Titles of the picture and its axes: of the one panel, or of all together."""
    if len(picture.panels) == 1:
        first.set_xlabel(X_TITLE, fontsize=11)
        first.set_ylabel(picture.y_title, fontsize=11)
        first.set_title(picture.title, fontsize=12, fontweight="bold", loc="left").set_parse_math(False)
    else:
        figure.supxlabel(X_TITLE, fontsize=11)
        figure.supylabel(picture.y_title, fontsize=11)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between the limits."""
    ticks = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _plotly_line(line: Line, units: str, explain: bool) -> go.Scatter:
    return go.Scatter(
        x=line.x.tolist() or [None],
        y=line.y.tolist() or [None],
        name=(line.label or line.group).replace("\n", "<br>"),
        legendgroup=line.group,
        showlegend=explain,
        mode="markers" if line.dash == "none" else "lines+markers" if line.marker else "lines",
        line={"color": line.colour, "dash": DASHES[line.dash], "width": line.width},
        marker={"symbol": SYMBOLS[line.marker], "size": 7, "maxdisplayed": line.markers},
        hovertemplate=f"depth %{{x:.3f}}: %{{y:.3f}} {units}",
    )
