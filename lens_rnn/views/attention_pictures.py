"""Hidden attention as pictures: token × token matrices, several side by side in a PNG, one at a time on a page."""

from collections.abc import Mapping, Sequence

from lens_rnn.drawing import SURE_TO_UNSURE, drawable, label_bar, new_figure, page_bar, page_look
from lens_rnn.views.attention import HiddenAttention, rollout, shares
from lens_rnn.views.axes import group_starts, hover_labels, name_axis, name_page_axis, undress

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

READ, READS = "Token that is read", "Token that reads"
MOST_PANELS = 8
"""Layers in one picture of a PNG, beside the rollout."""
_MOST_PANEL_NAMES = 24
_BAR = "Share of the row"
_SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)  # that the bar names; colour goes with their roots
_TICKS, _TICK_NAMES = np.sqrt(_SHARES).tolist(), [f"{tick:g}" for tick in _SHARES]
_WHITE_TO_BLUE = ("#FFFFFF", *SURE_TO_UNSURE[::-1][1:])


def attention_panels(attention: HiddenAttention) -> dict[str, np.ndarray]:
    """What is drawn, by title: each layer's matrix as shares of its rows, then the rollout where all layers are there
    and have no signs.

    (tokens, tokens) each, in groups of tokens where there are more than axes.MOST_CELLS; NaN above the diagonal.
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
    shown = {key: panels[key] for key in np.array([*panels])[chosen].tolist()}
    shown |= {} if through is None else {"rollout": through}
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(1.3 + 3.3 * columns, 0.9 + 3.4 * rows, drawable(title), 10.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    colours = LinearSegmentedColormap.from_list("share", _WHITE_TO_BLUE)
    for place, (name, matrix) in zip(axes.flat, shown.items(), strict=False):
        image = place.imshow(np.sqrt(matrix), cmap=colours, vmin=0, vmax=1)
        place.set_title(name, fontsize=9, loc="left", pad=3)
        undress(place)
        place.set(xticks=[], yticks=[])
    for place in axes.flat[len(shown) :]:
        place.axis("off")
    for place in axes[-1]:
        name_axis(place, names, "x", _MOST_PANEL_NAMES)
    for place in axes[:, 0]:
        name_axis(place, names, "y", _MOST_PANEL_NAMES)
    figure.supxlabel(READ, fontsize=9)
    figure.supylabel(READS, fontsize=9)
    bar = figure.colorbar(image, ax=axes.ravel().tolist(), pad=0.015, fraction=0.03, aspect=24)
    label_bar(bar, _BAR, _TICKS, _TICK_NAMES)
    return figure


def attention_html(attention: HiddenAttention, names: Sequence[str], title: str) -> go.Figure:
    """All layers and the rollout, one at a time, with a slider. names (tokens): the tokens, as text."""
    return panels_html(attention_panels(attention), names, title)


def panels_html(panels: Mapping[str, np.ndarray], names: Sequence[str], title: str) -> go.Figure:
    """Matrices of `attention_panels`, by title: the last one, and a slider where there are several. names (tokens): the
    tokens, as text."""
    labels = hover_labels(names)
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
            colorbar=page_bar(_BAR, _TICKS, _TICK_NAMES),
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
        **page_look(title),
    )
    name_page_axis(figure.update_xaxes, names, READ, -90)
    name_page_axis(figure.update_yaxes, names, READS, 0, autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


def _grouped(matrix: np.ndarray) -> np.ndarray:
    """(groups, groups) of shares (tokens, tokens): what the tokens of a row group read from a column group, on
    average."""
    starts = group_starts(len(matrix))
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    means = sums / np.diff([*starts, len(matrix)])[:, None]
    return np.where(np.tri(len(starts), dtype=bool), means, np.nan)


def _nulled(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(x) else round(float(x), 5) for x in row] for row in matrix]
