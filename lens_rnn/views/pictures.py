"""Views as pictures: token × token matrices of hidden attention, and relevance as a strip of tokens over a map of
layers × tokens.

PNG by matplotlib, HTML by plotly; a page holds all it needs and works offline (about 5 MB).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_rnn.evaluation.tokens import visible
from lens_rnn.evaluation.trajectory_plots import (
    DOTS_PER_INCH,
    FONTS,
    GREY,
    INK,
    LESS_TO_MORE,
    MONOSPACED,
    SURE_TO_UNSURE,
    _drawable,
    _safe,
)
from lens_rnn.files import write_atomically, write_text
from lens_rnn.views.attention import HiddenAttention, rollout, shares
from lens_rnn.views.relevance import Relevance
from lens_rnn.views.strip import CHARACTER_INCHES, COLUMNS, LINE_INCHES, Strip, rooted

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

READ, READS = "Token that is read", "Token that reads"
MOST_PANELS = 8
"""Layers in one picture of a PNG, beside the rollout."""
MOST_CELLS = 256
"""Rows of a matrix in a picture: longer texts are shown in groups of tokens."""
MOST_NAMES = 44
"""Tokens that are named at an axis."""
_NAME = 10  # characters of a name
_SHARE_TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
_ROOTS = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)  # places on the scale of relevance that are named
_WHITE_TO_BLUE = ("#FFFFFF", *SURE_TO_UNSURE[::-1][1:])
_DIV = "lens-rnn-views"


# --- hidden attention -------------------------------------------------------------------------------------------------


def attention_panels(attention: HiddenAttention) -> dict[str, np.ndarray]:
    """What is drawn, by title: each layer's matrix as shares of its rows, then the rollout where all layers are there
    and have no signs.

    (tokens, tokens) each, in groups of tokens where there are more than MOST_CELLS; NaN above the diagonal.
    """
    matrices = attention.matrices.abs()
    panels = {title: shares(matrix) for title, matrix in zip(attention.titles, matrices, strict=True)}
    if attention.is_whole and not attention.signed:
        panels["rollout"] = rollout(attention.matrices)
    return {title: _grouped(matrix.numpy()) for title, matrix in panels.items()}


def attention_png(attention: HiddenAttention, names: Sequence[str], title: str) -> Figure:
    """Up to MOST_PANELS layers, evenly chosen, and the rollout. names (tokens): the tokens, as text."""
    panels = attention_panels(attention)
    through = panels.pop("rollout", None)
    chosen = np.unique(np.linspace(0, len(panels) - 1, min(len(panels), MOST_PANELS)).round().astype(int))
    shown = {key: panels[key] for key in np.array([*panels])[chosen].tolist()} | (
        {} if through is None else {"rollout": through}
    )
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.3 + 3.3 * columns, 0.9 + 3.4 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, (name, matrix) in zip(axes.flat, shown.items(), strict=False):
        image = place.imshow(
            np.sqrt(matrix), cmap=LinearSegmentedColormap.from_list("share", _WHITE_TO_BLUE), vmin=0, vmax=1
        )
        place.set_title(name, fontsize=9, loc="left", pad=3)
        _plain(place)
        place.set(xticks=[], yticks=[])
    for place in axes.flat[len(shown) :]:
        place.axis("off")
    for place in axes[-1]:
        _name_axis(place, names, "x", 24)
    for place in axes[:, 0]:
        _name_axis(place, names, "y", 24)
    figure.supxlabel(READ, fontsize=9)
    figure.supylabel(READS, fontsize=9)
    _bar(
        figure,
        image,
        axes.ravel().tolist(),
        "Share of the row",
        np.sqrt(_SHARE_TICKS).tolist(),
        [f"{tick:g}" for tick in _SHARE_TICKS],
    )
    figure.suptitle(_drawable(title), fontsize=10.5, fontweight="bold", x=0.01, ha="left").set_parse_math(False)
    return figure


def attention_html(attention: HiddenAttention, names: Sequence[str], title: str) -> go.Figure:
    """All layers and the rollout, one at a time, with a slider. names (tokens): the tokens, as text."""
    return panels_html(attention_panels(attention), names, title)


def panels_html(panels: Mapping[str, np.ndarray], names: Sequence[str], title: str) -> go.Figure:
    """Matrices of `attention_panels`, by title: the last one, and a slider where there are several. names (tokens): the
    tokens, as text."""
    labels = [f"{i}: {_safe(visible(names[i], 40))}" for i in _starts(len(names))]
    figure = go.Figure()
    for place, matrix in enumerate(panels.values()):
        figure.add_heatmap(
            z=_nulled(np.sqrt(matrix)),
            customdata=_nulled(matrix),
            text=[labels] * len(labels),
            hovertext=[[label] * len(labels) for label in labels],
            hovertemplate="%{hovertext}<br>reads %{text}<br>share %{customdata:.4f}<extra></extra>",
            hoverongaps=False,
            zmin=0,
            zmax=1,
            colorscale=list(_WHITE_TO_BLUE),
            colorbar={"title": {"text": "Share of the row", "side": "right"}, "thickness": 14, "outlinewidth": 0}
            | {"tickvals": np.sqrt(_SHARE_TICKS).tolist(), "ticktext": [f"{tick:g}" for tick in _SHARE_TICKS]},
            visible=place == len(panels) - 1,
        )
    steps = [
        {"label": name, "method": "restyle", "args": [{"visible": [i == place for i in range(len(panels))]}]}
        for place, name in enumerate(panels)
    ]
    side = min(900, max(560, 17 * len(labels)))
    slider = {"active": len(panels) - 1, "steps": steps, "currentvalue": {"prefix": ""}, "y": -0.13, "pad": {"t": 40}}
    figure.update_layout(
        sliders=[slider] if len(panels) > 1 else [],
        width=side + 240,
        height=side + (270 if len(panels) > 1 else 170),
        margin={"l": 110, "r": 100, "t": 56, "b": 60},
        **_page_look(title),
    )
    _plotly_axis(figure.update_xaxes, names, READ, -90)
    _plotly_axis(figure.update_yaxes, names, READS, 0, autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


# --- relevance --------------------------------------------------------------------------------------------------------


def relevance_strip(found: Relevance, names: Sequence[str]) -> Strip:
    """The tokens' relevance, on the scale of `layer_map`. names (tokens): the tokens, as text."""
    return Strip(tuple(names), found.tokens.numpy(), _far(layer_map(found)))


def relevance_png(found: Relevance, names: Sequence[str], title: str) -> Figure:
    """The strip of tokens, the last one that is read framed, over relevance by layer and token."""
    strip = relevance_strip(found, names)
    lines, tokens = len(strip.lines()), len(strip.texts)
    heights = [LINE_INCHES * lines, max(1.3, 0.2 * (len(found.layers) + 1))]
    figure = Figure(
        figsize=(COLUMNS * CHARACTER_INCHES + 1.5, sum(heights) + 1.7), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    top, below = figure.subplots(2, 1, height_ratios=heights)
    strip.draw(top, found.explained.position)
    matrix = layer_map(found)
    colours, rooted_map = LinearSegmentedColormap.from_list("relevance", LESS_TO_MORE), rooted(matrix, _far(matrix))
    image = below.imshow(rooted_map, cmap=colours, vmin=-1, vmax=1, aspect="auto", origin="lower", interpolation="none")
    _plain(below)
    _name_axis(below, strip.texts, "x", MOST_NAMES)
    every = max(1, -(-len(matrix) // 16))
    below.set_yticks(range(0, len(matrix), every), layer_names(found)[::every], fontsize=7.5)
    below.set_xlabel("Token" if tokens <= MOST_CELLS else "First token of a group", fontsize=9)
    _bar(figure, image, [below], "Relevance (logits)", _ROOTS, _root_names(matrix))
    figure.suptitle(_drawable(title), fontsize=10.5, fontweight="bold", x=0.01, ha="left").set_parse_math(False)
    return figure


def relevance_html(found: Relevance, names: Sequence[str], title: str) -> go.Figure:
    """Relevance by layer and token. names (tokens): the tokens, as text. `Strip.html` has the strip."""
    matrix = layer_map(found)
    labels = [f"{i}: {_safe(visible(names[i], 40))}" for i in _starts(len(names))]
    figure = go.Figure()
    figure.add_heatmap(
        z=rooted(matrix, _far(matrix)).tolist(),
        customdata=matrix.tolist(),
        y=layer_names(found),
        text=[labels] * len(matrix),
        hovertemplate="%{y}, token %{text}<br>relevance %{customdata:+.4f}<extra></extra>",
        zmin=-1,
        zmax=1,
        colorscale=list(LESS_TO_MORE),
        colorbar={"title": {"text": "Relevance (logits)", "side": "right"}, "thickness": 14, "outlinewidth": 0}
        | {"tickvals": [*_ROOTS], "ticktext": _root_names(matrix)},
        xgap=1 if len(labels) <= 100 else 0,
    )
    figure.update_layout(
        width=min(1400, max(640, 220 + 22 * len(labels))),
        height=240 + 24 * len(matrix),
        margin={"l": 96, "r": 100, "t": 56, "b": 110},
        **_page_look(title),
    )
    _plotly_axis(figure.update_xaxes, names, "Token", -90)
    figure.update_yaxes(showgrid=False, zeroline=False, ticks="")
    return figure


def layer_map(found: Relevance) -> np.ndarray:
    """(1 + layers, tokens): the embeddings, then each layer; sums of groups where there are more than MOST_CELLS
    tokens."""
    matrix = np.concatenate([found.tokens.numpy()[None], found.by_layer.numpy()])
    return np.add.reduceat(matrix, _starts(matrix.shape[1]), axis=1)


def layer_names(found: Relevance) -> list[str]:
    """Of the rows of `layer_map`."""
    return ["embeddings", *(f"layer {layer}" for layer in found.layers)]


def _far(matrix: np.ndarray) -> float:
    """What has the strongest colour."""
    return float(np.abs(matrix).max()) or 1.0


def _root_names(matrix: np.ndarray) -> list[str]:
    return [f"{np.sign(place) * place**2 * _far(matrix):+.2g}" if place else "0" for place in _ROOTS]


# --- files ------------------------------------------------------------------------------------------------------------


def save_png(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure; the same figure gives the same bytes."""
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    )


def save_page(figure: go.Figure, path: Path, above: str = "") -> None:
    """Write a plotly figure as a page, under some HTML."""
    body = figure.to_html(include_plotlyjs=True, full_html=False, div_id=_DIV, config={"displaylogo": False})
    font = "font-family:Helvetica,Arial,sans-serif;margin:24px"
    page = f'<!DOCTYPE html><html><head><meta charset="utf-8"></head><body style="{font}">{above}{body}</body></html>'
    write_text(path, page)


# --- parts ------------------------------------------------------------------------------------------------------------


def _starts(tokens: int) -> np.ndarray:
    """First token of each group: every token is its own while there are at most MOST_CELLS."""
    return np.arange(0, tokens, -(-tokens // MOST_CELLS))


def _grouped(matrix: np.ndarray) -> np.ndarray:
    """(groups, groups) of shares (tokens, tokens): what the tokens of a row group read from a column group, on
    average."""
    starts = _starts(len(matrix))
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    means = sums / np.diff([*starts, len(matrix)])[:, None]
    return np.where(np.tri(len(starts), dtype=bool), means, np.nan)


def _nulled(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(x) else round(float(x), 5) for x in row] for row in matrix]


def _named(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Cells of an axis that are named, at most so many, and their names."""
    starts = _starts(len(names))
    cells = range(0, len(starts), -(-len(starts) // most))
    return [*cells], [visible(names[starts[cell]], _NAME) for cell in cells]


def _name_axis(axes: Axes, names: Sequence[str], which: str, most: int) -> None:
    places, said = _named(names, most)
    turned = {"rotation": 90} if which == "x" else {}
    getattr(axes, f"set_{which}ticks")(places, [_drawable(word) for word in said], fontsize=6, family=FONTS, **turned)
    for label in getattr(axes, f"get_{which}ticklabels")():
        label.set_parse_math(False)


def _plotly_axis(update: Callable[..., Any], names: Sequence[str], title: str, angle: int, **more: Any) -> None:
    places, said = _named(names, MOST_NAMES)
    font = {"size": 11, "family": MONOSPACED}
    update(
        title=title, tickvals=places, ticktext=[_safe(word) for word in said], tickangle=angle, tickfont=font, **more
    )
    update(showgrid=False, zeroline=False, ticks="")


def _plain(axes: Axes) -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bar(
    figure: Figure, image: AxesImage, axes: list[Axes], title: str, ticks: Sequence[float], labels: list[str]
) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.03, aspect=24)
    bar.set_label(title, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=GREY)
    bar.set_ticks([*ticks], labels=labels)


def _page_look(title: str) -> dict[str, Any]:
    return {
        "title": {"text": f"<b>{_safe(title)}</b>", "x": 0, "xref": "paper", "font": {"size": 16}},
        "template": "none",
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "hoverlabel": {
            "align": "left",
            "bgcolor": "white",
            "bordercolor": GREY,
            "font": {"family": "monospace", "color": INK},
        },
    }
