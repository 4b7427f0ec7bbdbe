"""Relevance as pictures: a strip of tokens over a map of layers × tokens."""

from collections.abc import Sequence

from lens_rnn.drawing import LESS_TO_MORE, drawable, label_bar, new_figure, page_bar, page_look
from lens_rnn.views.axes import MOST_CELLS, group_starts, hover_labels, name_axis, name_page_axis, undress
from lens_rnn.views.relevance import Relevance
from lens_rnn.views.strip import CHARACTER_INCHES, COLUMNS, LINE_INCHES, Strip, rooted

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

_BAR = "Relevance (logits)"
_ROOTS = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)  # places on the scale of colour that the bar names


def relevance_strip(relevance: Relevance, names: Sequence[str]) -> Strip:
    """The tokens' relevance, on the scale of `layer_map`. names (tokens): the tokens, as text."""
    return Strip(tuple(names), relevance.tokens.numpy(), _far(layer_map(relevance)))


def relevance_png(relevance: Relevance, names: Sequence[str], title: str) -> Figure:
    """The strip of tokens, the last one that is read framed, over relevance by layer and token."""
    strip = relevance_strip(relevance, names)
    lines, tokens = len(strip.lines()), len(strip.texts)
    heights = [LINE_INCHES * lines, max(1.3, 0.2 * (len(relevance.layers) + 1))]
    figure = new_figure(COLUMNS * CHARACTER_INCHES + 1.5, sum(heights) + 1.7, drawable(title), 10.5)
    top, below = figure.subplots(2, 1, height_ratios=heights)
    strip.draw(top, relevance.explained.position)
    matrix = layer_map(relevance)
    colours, places = LinearSegmentedColormap.from_list("relevance", LESS_TO_MORE), rooted(matrix, _far(matrix))
    image = below.imshow(places, cmap=colours, vmin=-1, vmax=1, aspect="auto", origin="lower", interpolation="none")
    undress(below)
    name_axis(below, strip.texts, "x")
    every = max(1, -(-len(matrix) // 16))
    below.set_yticks(range(0, len(matrix), every), layer_names(relevance)[::every], fontsize=7.5)
    below.set_xlabel("Token" if tokens <= MOST_CELLS else "First token of a group", fontsize=9)
    bar = figure.colorbar(image, ax=[below], pad=0.015, fraction=0.03, aspect=24)
    label_bar(bar, _BAR, _ROOTS, _root_names(matrix))
    return figure


def relevance_html(relevance: Relevance, names: Sequence[str], title: str) -> go.Figure:
    """Relevance by layer and token. names (tokens): the tokens, as text. `Strip.html` has the strip."""
    matrix = layer_map(relevance)
    labels = hover_labels(names)
    figure = go.Figure()
    figure.add_heatmap(
        z=rooted(matrix, _far(matrix)).tolist(),
        customdata=matrix.tolist(),
        y=layer_names(relevance),
        text=[labels] * len(matrix),
        hovertemplate="%{y}, token %{text}<br>relevance %{customdata:+.4f}<extra></extra>",
        zmin=-1,
        zmax=1,
        colorscale=list(LESS_TO_MORE),
        colorbar=page_bar(_BAR, _ROOTS, _root_names(matrix)),
        xgap=1 if len(labels) <= 100 else 0,
    )
    figure.update_layout(
        width=min(1400, max(640, 220 + 22 * len(labels))),
        height=240 + 24 * len(matrix),
        margin={"l": 96, "r": 100, "t": 56, "b": 110},
        **page_look(title),
    )
    name_page_axis(figure.update_xaxes, names, "Token", -90)
    figure.update_yaxes(showgrid=False, zeroline=False, ticks="")
    return figure


def layer_map(relevance: Relevance) -> np.ndarray:
    """(1 + layers, tokens): the embeddings, then each layer; sums of groups where there are more than axes.MOST_CELLS
    tokens."""
    matrix = np.concatenate([relevance.tokens.numpy()[None], relevance.by_layer.numpy()])
    return np.add.reduceat(matrix, group_starts(matrix.shape[1]), axis=1)


def layer_names(relevance: Relevance) -> list[str]:
    """Of the rows of `layer_map`."""
    return ["embeddings", *(f"layer {layer}" for layer in relevance.layers)]


def _far(matrix: np.ndarray) -> float:
    """What has the strongest colour."""
    return float(np.abs(matrix).max()) or 1.0


def _root_names(matrix: np.ndarray) -> list[str]:
    return [f"{np.sign(place) * place**2 * _far(matrix):+.2g}" if place else "0" for place in _ROOTS]
