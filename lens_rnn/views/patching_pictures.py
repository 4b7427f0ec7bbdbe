"""Maps of patching: layers up, tokens across, one map a kind, side by side on one scale."""

from collections.abc import Sequence

from lens_rnn.drawing import drawable, label_bar, new_figure, page_bar, page_look
from lens_rnn.views.axes import hover_labels, name_axis, name_page_axis, undress
from lens_rnn.views.patching import RESIDUAL, Patching

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

_COLOURS = "RdBu"
_TICKS, _TICK_NAMES = [-1.0, -0.5, 0.0, 0.5, 1.0], ["−1", "−0.5", "0", "0.5", "1"]
_BAR = "share of the logit difference recovered, or lost"
_MOST_NAMES = 28
_UP = {RESIDUAL: "hidden state of layer"}
_UP_STATE = "state of block"


def patching_png(patching: Patching, names: Sequence[str], title: str) -> Figure:
    """names (tokens): the tokens of the clean text, as text."""
    kinds = [*patching.shares]
    width = max(3.2, 0.16 * min(len(names), 60) + 1.2)
    figure = new_figure(1.2 + width * len(kinds), 1.6 + 0.28 * min(len(patching.depth), 40), drawable(title), 10.5)
    row = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(row, kinds, strict=True):
        image = axes.imshow(patching.mean(kind), cmap=_COLOURS, vmin=-1, vmax=1, aspect="auto", origin="lower")
        axes.set_facecolor("0.9")
        axes.set_title(kind, fontsize=9, loc="left", pad=3)
        axes.set_ylabel(_UP.get(kind, _UP_STATE), fontsize=8)
        undress(axes)
        layers = len(patching.depth)
        axes.set_yticks(range(0, layers, -(-layers // 12)))
        axes.tick_params(labelsize=7)
        name_axis(axes, names, "x", _MOST_NAMES)
    bar = figure.colorbar(image, ax=row.tolist(), pad=0.015, fraction=0.05, aspect=24)
    label_bar(bar, _BAR, _TICKS, _TICK_NAMES)
    return figure


def patching_html(patching: Patching, names: Sequence[str], title: str) -> go.Figure:
    """The same as a page that says the share, and its interval where there are several pairs, under the pointer."""
    kinds = [*patching.shares]
    figure = make_subplots(1, len(kinds), subplot_titles=kinds, horizontal_spacing=0.08)
    labels = hover_labels(names)
    for column, kind in enumerate(kinds, 1):
        means = patching.mean(kind)
        figure.add_heatmap(
            z=[[None if np.isnan(x) else round(float(x), 4) for x in line] for line in means],
            text=[labels] * len(means),
            hovertext=_intervals(patching, kind),
            hovertemplate="%{text}<br>layer %{y}<br>share %{z:.3f} %{hovertext}<extra></extra>",
            hoverongaps=False,
            zmin=-1,
            zmax=1,
            colorscale=_COLOURS,
            colorbar=page_bar(_BAR, _TICKS, _TICK_NAMES),
            showscale=column == len(kinds),
            row=1,
            col=column,
        )
        place = {"row": 1, "col": column}
        name_page_axis(lambda place=place, **look: figure.update_xaxes(**place, **look), names, "token", -90)
        figure.update_yaxes(title=_UP.get(kind, _UP_STATE), showgrid=False, zeroline=False, **place)
    figure.update_layout(
        width=min(2400, 200 + len(kinds) * max(320, 16 * len(labels))),
        height=260 + 24 * min(len(patching.depth), 40),
        **page_look(title),
    )
    return figure


def _intervals(patching: Patching, kind: str) -> list[list[str]]:
    shares = patching.shares[kind]
    if len(shares) < 2:
        return [[""] * shares.shape[2]] * shares.shape[1]
    return [[_words(patching, kind, k, t) for t in range(shares.shape[2])] for k in range(shares.shape[1])]


def _words(patching: Patching, kind: str, layer: int, token: int) -> str:
    if np.isnan(patching.shares[kind][:, layer, token]).any():
        return ""
    estimate = patching.estimate(kind, layer, token)
    return f"({estimate.low:.3f} to {estimate.high:.3f})"
