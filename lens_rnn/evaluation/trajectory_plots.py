"""Prediction trajectories as heat maps: PNG by matplotlib, HTML by plotly.

Tokens run to the right, layers upwards by the fraction of blocks applied, the model on top. A cell shows the likeliest
token, and by its colour a statistic: the darker, the surer. Long texts have narrow cells without words. The page says
more of a cell that is pointed at.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log, log10
from pathlib import Path

from lens_rnn.evaluation.tokens import visible
from lens_rnn.evaluation.trajectory import NO_TARGET, STATISTICS, Trajectory, named
from lens_rnn.files import write_atomically, write_text

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

Reader = Callable[[int], str]
"""From a token id to its text, as `tokens.token_reader` makes one."""

X_TITLE, Y_TITLE = "Token read", "Fraction of blocks applied"
MOST_WORDS = 48
"""With more tokens than this, cells hold no words."""
MOST_ROW_LABELS = 17
CELL_WIDTH, TICK_WIDTH, HOVER_WIDTH = 8, 12, 40
"""Characters of a token in a cell, at the axis, and where it is pointed at."""
HOVER_TOP = 5
"""Tokens named where a cell is pointed at."""
DOTS_PER_INCH = 200

SURE_TO_UNSURE = ("#08306B", "#1663AA", "#5FA8D3", "#B3D5E9", "#E1ECF7", "#F8FBFE")
LESS_TO_MORE = ("#08519C", "#6BAED6", "#F4F4F4", "#FB9A68", "#B5330A")
INK, GREY, NOTHING = "#1A1A1A", "#6E6E6E", "#E0DCD2"
FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]  # matplotlib brings both
MONOSPACED = "DejaVu Sans Mono, Menlo, Consolas, monospace"


@dataclass(frozen=True)
class _Picture:
    """What either library draws."""

    title: str
    bar: str
    """What the colours say."""
    colour: np.ndarray
    """(rows, tokens): a place between the limits, NaN where there is nothing to show."""
    limits: tuple[float, float]
    ticks: dict[float, str]
    """Places of the bar and their names; empty where the number says it."""
    ramp: tuple[str, ...]
    cells: list[list[str]]
    """(rows, tokens): the likeliest token."""
    columns: list[str]
    """(tokens): the token read."""
    rows: list[str]
    """(rows): its depth, and "model" for the last."""

    @property
    def has_words(self) -> bool:
        return len(self.columns) <= MOST_WORDS

    @property
    def row_places(self) -> list[int]:
        """Rows that are named at the axis: so many that the names stay apart, and always the model."""
        last = len(self.rows) - 1
        step = max(1, -(-last // MOST_ROW_LABELS))
        return [*range(0, last - step + 1, step), last]


def plot_trajectory_html(
    trajectory: Trajectory,
    text: Reader,
    path: str | Path,
    statistic: str = "entropy",
    *,
    title: str = "",
    minus: Trajectory | None = None,
) -> None:
    """Write `html_figure` as a page that holds all it needs and works offline (about 5 MB)."""
    figure = html_figure(trajectory, text, statistic, title=title, minus=minus)
    page = figure.to_html(include_plotlyjs=True, div_id="lens-rnn-trajectory", config={"displaylogo": False})
    write_text(Path(path), page)


def plot_trajectory_png(
    trajectory: Trajectory,
    text: Reader,
    path: str | Path,
    statistic: str = "entropy",
    *,
    title: str = "",
    minus: Trajectory | None = None,
) -> None:
    """Write `png_figure`."""
    figure = png_figure(trajectory, text, statistic, title=title, minus=minus)
    # Without its version stamp the same trajectory gives the same bytes.
    write_atomically(
        Path(path), lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    )


def html_figure(
    trajectory: Trajectory,
    text: Reader,
    statistic: str = "entropy",
    *,
    title: str = "",
    minus: Trajectory | None = None,
) -> go.Figure:
    """A trajectory as a plotly heat map that names the likeliest tokens and all statistics of the cell that is pointed
    at.

    minus: another trajectory; then the colours say how much larger the statistic is here.
    Raises ConfigError for an unknown statistic, DataError where the two differ in shape.
    """
    picture = _picture(trajectory, text, statistic, title, minus)
    n_rows, n_tokens = trajectory.shape
    bar = {"title": {"text": _safe(picture.bar), "side": "right"}, "thickness": 14, "outlinewidth": 0, "len": 1.0}
    if picture.ticks:
        bar |= {"tickvals": list(picture.ticks), "ticktext": list(picture.ticks.values())}
    words = (
        {"text": [[_safe(cell) for cell in row] for row in picture.cells], "texttemplate": "%{text}"}
        if picture.has_words
        else {}
    )
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if np.isnan(x) else float(x) for x in row] for row in picture.colour],
        zmin=picture.limits[0],
        zmax=picture.limits[1],
        colorscale=list(picture.ramp),
        colorbar=bar,
        customdata=_hover(trajectory, text),
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=True,
        xgap=1,
        ygap=1,
        textfont={"size": 12, "family": MONOSPACED},
        **words,
    )
    across, up = (64, 30) if picture.has_words else (11, 26)
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "fixedrange": False}
    figure.update_layout(
        title={"text": f"<b>{_safe(picture.title)}</b>", "x": 0, "xref": "paper", "font": {"size": 16}},
        template="none",
        plot_bgcolor=NOTHING,
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        hoverlabel={
            "align": "left",
            "bgcolor": "white",
            "bordercolor": GREY,
            "font": {"family": "monospace", "size": 13, "color": INK},
        },
        width=max(640, 190 + across * n_tokens),
        height=max(320, 190 + up * n_rows),
        margin={"l": 76, "r": 100, "t": 56, "b": 64 if picture.has_words else 120},
        xaxis=axis
        | {"title": X_TITLE, "tickvals": list(range(n_tokens)), "ticktext": [_safe(c) for c in picture.columns]},
        yaxis=axis
        | {"title": Y_TITLE, "tickvals": picture.row_places, "ticktext": [picture.rows[i] for i in picture.row_places]},
    )
    size, angle = (12, 0) if picture.has_words else (9, -90)
    figure.update_xaxes(tickangle=angle, tickfont={"size": size, "family": MONOSPACED})
    figure.add_hline(n_rows - 1.5, line={"color": "white", "width": 4})
    return figure


def png_figure(
    trajectory: Trajectory,
    text: Reader,
    statistic: str = "entropy",
    *,
    title: str = "",
    minus: Trajectory | None = None,
) -> Figure:
    """A trajectory as a matplotlib figure. Arguments and errors as for `html_figure`."""
    picture = _picture(trajectory, text, statistic, title, minus)
    n_rows, n_tokens = trajectory.shape
    across, up = (0.56, 0.26) if picture.has_words else (min(0.12, 20 / n_tokens), 0.2)
    figure = Figure(
        figsize=(max(5.5, 1.9 + across * n_tokens), max(2.6, 1.5 + up * n_rows)),
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = LinearSegmentedColormap.from_list("ramp", picture.ramp).with_extremes(bad=NOTHING)
    low, high = picture.limits
    width = 0.6 if picture.has_words else 0.15
    shown = np.ma.masked_invalid(picture.colour)
    cells = axes.pcolormesh(shown, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=width)
    bar = figure.colorbar(cells, ax=axes, pad=0.012, fraction=0.04, aspect=18)
    bar.set_label(picture.bar, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=GREY)
    if picture.ticks:
        bar.set_ticks(list(picture.ticks), labels=list(picture.ticks.values()))
    if picture.has_words:
        _write_words(axes, picture, colours)
    _dress(axes, picture, every=max(1, round(0.115 / across)))
    return figure


def _write_words(axes: Axes, picture: _Picture, colours: Colormap) -> None:
    low, high = picture.limits
    for row, words in enumerate(picture.cells):
        for token, word in enumerate(words):
            place = (picture.colour[row, token] - low) / (high - low)
            red, green, blue, _ = colours(place)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(
                token + 0.5,
                row + 0.47,
                _drawable(word),
                ha="center",
                va="center",
                fontsize=6.5,
                family=FONTS,
                color="white" if dark else INK,
                parse_math=False,  # a dollar sign in a token is a dollar sign
            )


def _dress(axes: Axes, picture: _Picture, every: int) -> None:
    """Title, ticks, and a line below the model; `every` so many tokens are named at the axis that they stay apart."""
    n_rows, places = len(picture.rows), range(0, len(picture.columns), every)
    labels = [_drawable(picture.columns[i]) for i in places]
    size, angle = (6.5, 0) if picture.has_words else (6, 90)
    axes.set_xticks([i + 0.5 for i in places], labels, rotation=angle, fontsize=size, family=FONTS)
    axes.set_yticks([i + 0.5 for i in picture.row_places], [picture.rows[i] for i in picture.row_places], fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_xlabel(X_TITLE, fontsize=9)
    axes.set_ylabel(Y_TITLE, fontsize=9)
    axes.set_title(_drawable(picture.title), fontsize=10, fontweight="bold", loc="left", parse_math=False)
    axes.tick_params(length=0)
    axes.axhline(n_rows - 1, color="white", linewidth=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _picture(trajectory: Trajectory, text: Reader, statistic: str, title: str, minus: Trajectory | None) -> _Picture:
    about = named(statistic)
    if minus is not None:
        colour = trajectory.minus(minus, statistic)
        far = _largest(np.abs(colour))
        look: dict = {"limits": (-far, far), "ticks": {}, "ramp": LESS_TO_MORE}
        bar = f"Difference in {about.title[0].lower()}{about.title[1:]} ({about.unit})"
    else:
        colour, look = _colours(trajectory, trajectory.values(statistic), about.unit)
        bar = about.title if about.unit in about.title.lower() else f"{about.title} ({about.unit})"
    return _Picture(
        title=title or about.title,
        bar=bar,
        colour=colour,
        cells=[[visible(text(i), CELL_WIDTH) for i in row] for row in trajectory.top_ids[..., 0].tolist()],
        columns=[
            visible(text(i), TICK_WIDTH if trajectory.shape[1] > MOST_WORDS else CELL_WIDTH)
            for i in trajectory.input_ids.tolist()
        ],
        rows=[*(f"{depth:.2f}" for depth in trajectory.depths[:-1]), "model"],
        **look,
    )


def _colours(trajectory: Trajectory, values: np.ndarray, unit: str) -> tuple[np.ndarray, dict]:
    """Values as places between limits, and the looks that go with their unit."""
    vocab_size = trajectory.vocab_size
    if unit == "rank":
        named_ranks = [0, *(10**power for power in range(9) if 10**power < vocab_size)]
        ticks = {log10(1 + rank): f"{rank:,}" for rank in named_ranks}
        return np.log10(1 + values), {"limits": (0.0, log10(vocab_size)), "ticks": ticks, "ramp": SURE_TO_UNSURE}
    if unit == "probability":
        return values, {"limits": (0.0, 1.0), "ticks": {}, "ramp": SURE_TO_UNSURE[::-1]}
    # Whoever knows nothing is ln(vocabulary) nats off; a prediction that is worse still looks no different.
    return values, {"limits": (0.0, min(_largest(values), log(vocab_size))), "ticks": {}, "ramp": SURE_TO_UNSURE}


def _largest(values: np.ndarray) -> float:
    """The largest number among values, or 1 if that is 0 or there is none."""
    return float(np.nanmax(values, initial=0.0)) or 1.0


def _hover(trajectory: Trajectory, text: Reader) -> list[list[str]]:
    """(rows, tokens): what is said of each cell, as plotly's HTML."""
    said = partial(visible, width=HOVER_WIDTH)
    statistics = [
        (about.title, " nats" if about.unit == "nats" else "", about.of(trajectory)) for about in STATISTICS.values()
    ]
    heads = []
    for place, (token, target) in enumerate(
        zip(trajectory.input_ids.tolist(), trajectory.targets.tolist(), strict=True)
    ):
        wanted = "" if target == NO_TARGET else f"<br>target {_safe(said(text(target)))}"
        heads.append(f"after token {place}, {_safe(said(text(token)))}{wanted}<br>")
    rows = []
    for row, name in enumerate(trajectory.names):
        cells = []
        for token, head in enumerate(heads):
            ids, probabilities = (
                top[row, token, :HOVER_TOP].tolist() for top in (trajectory.top_ids, trajectory.top_probabilities)
            )
            tops = "".join(
                f"<br>{100 * p:5.1f} %  {_safe(said(text(i)))}" for i, p in zip(ids, probabilities, strict=True)
            )
            figures = "".join(
                f"<br>{title}: {value[row, token]:.4g}{unit}"
                for title, unit, value in statistics
                if not np.isnan(value[row, token])
            )
            cells.append(f"<b>{name}</b> {head}{tops}<br>{figures}")
        rows.append(cells)
    return rows


def _safe(text: str) -> str:
    """`text` for plotly, which takes < for the start of a tag and may take $ for the start of a formula."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def _drawable(text: str) -> str:
    """`text` with � for what no font of the picture has."""
    fonts = [get_font(findfont(FontProperties(family=family))) for family in FONTS]
    return "".join(c if any(font.get_char_index(ord(c)) for font in fonts) else "�" for c in text)
