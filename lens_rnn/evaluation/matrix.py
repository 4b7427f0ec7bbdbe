"""Heat maps of layer transfer: what the translator of one layer (up) makes of the hidden states of another (across).

Both axes are the fraction of blocks applied. Colour grows like the logarithm above a tenth of a bit and like the value
below it, so that costs of 0.05 and of 50 are seen in one picture; it only gets darker, so it survives greyscale. Cells
below zero have a dot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lens_rnn.drawing import BLACK, PALE, new_figure
from lens_rnn.evaluation.canvas import FONT
from lens_rnn.evaluation.curves import UNITS, Curves, LayerTransfer

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

SOURCE_TITLE = "Hidden states of the layer at this fraction of blocks"
TRANSLATOR_TITLE = "Translator of the layer\nat this fraction of blocks"
KNEE = 0.1
"""Bits per byte up to which colour is proportional to the value."""
BELOW = -0.005
"""Bits per byte under which a cell gets a dot; what is nearer to zero is rounding."""
SHADES = ("#FFFFFF", "#BFE3F2", "#5FB2DD", "#1668A8", "#1B0B45")
TICKS = (0, 0.1, 0.3, 1, 3, 10, 30, 100)
SIZE_INCHES = (9.6, 4.7)


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One matrix: its title and values, (translators, sources)."""

    title: str
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TransferPicture:
    """The matrices of one result, on one scale of colour."""

    title: str
    transfer: LayerTransfer
    heats: Sequence[Heat]

    @property
    def highest(self) -> float:
        """The darkest value, at least one tick above 0, in bits per byte."""
        return max(TICKS[1], *(float(heat.values.max()) for heat in self.heats))

    @property
    def ticks(self) -> list[float]:
        return [tick for tick in TICKS if tick <= self.highest]

    def matplotlib(self) -> Figure:
        figure = new_figure(*SIZE_INCHES, self.title)
        axes = figure.subplots(1, len(self.heats), sharey=True, squeeze=False)[0]
        drawn = [self._draw(place, heat) for place, heat in zip(axes, self.heats, strict=True)]
        axes[0].set_ylabel(TRANSLATOR_TITLE, fontsize=10.5)
        figure.supxlabel(SOURCE_TITLE, fontsize=10.5)
        bar = figure.colorbar(drawn[0], ax=list(axes), ticks=shade(np.array(self.ticks)), pad=0.02, aspect=28)
        bar.ax.set_yticklabels([f"{tick:g}" for tick in self.ticks])
        bar.set_label(UNITS[0].upper() + UNITS[1:], fontsize=10.5)
        bar.outline.set_edgecolor(PALE)
        return figure

    def _draw(self, axes: Axes, heat: Heat) -> QuadMesh:
        across, up = self.transfer.source_depth, self.transfer.translator_depth
        mesh = axes.pcolormesh(
            _edges(across),
            _edges(up),
            shade(heat.values),
            cmap=LinearSegmentedColormap.from_list("transfer", SHADES),
            vmin=0,
            vmax=float(shade(np.array(self.highest))),
        )
        row, column = np.nonzero(heat.values < BELOW)
        cell = 72 * 0.38 * SIZE_INCHES[0] / max(heat.values.shape)  # points, about
        axes.scatter(across[column], up[row], s=(0.36 * cell) ** 2, color=BLACK, linewidths=0)
        axes.set_aspect("equal")
        axes.set_title(heat.title, fontsize=10, loc="left")
        axes.tick_params(labelsize=10, color=PALE)
        for spine in axes.spines.values():
            spine.set_color(PALE)
        return mesh

    def plotly(self) -> go.Figure:
        titles = [heat.title.replace("\n", "<br>") for heat in self.heats]
        figure = make_subplots(1, len(self.heats), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.06)
        across, up = self.transfer.source_depth, self.transfer.translator_depth
        for i, heat in enumerate(self.heats):
            row, column = np.nonzero(heat.values < BELOW)
            cells = go.Heatmap(
                x=across.tolist(),
                y=up.tolist(),
                z=np.round(shade(heat.values), 4).tolist(),
                customdata=np.round(heat.values, 4).tolist(),
                coloraxis="coloraxis",
                hovertemplate=f"translator of depth %{{y:.3f}} at depth %{{x:.3f}}: %{{customdata:.3f}} "
                f"{UNITS}<extra></extra>",
            )
            dots = go.Scatter(
                x=across[column].tolist(),
                y=up[row].tolist(),
                mode="markers",
                marker={"color": BLACK, "size": max(2.0, 110 / max(heat.values.shape))},
                hoverinfo="skip",
                showlegend=False,
            )
            figure.add_traces([cells, dots], rows=1, cols=i + 1)
        figure.update_xaxes(title=SOURCE_TITLE, showgrid=False, zeroline=False)
        figure.update_yaxes(title=TRANSLATOR_TITLE.replace("\n", "<br>"), col=1)
        figure.update_yaxes(showgrid=False, zeroline=False)
        colours = [[i / (len(SHADES) - 1), colour] for i, colour in enumerate(SHADES)]
        bar = {
            "title": UNITS,
            "tickvals": shade(np.array(self.ticks)).tolist(),
            "ticktext": [f"{tick:g}" for tick in self.ticks],
        }
        figure.update_layout(
            title={"text": f"<b>{self.title}</b>".replace("\n", "<br>"), "x": 0.02, "y": 0.97},
            margin={"l": 84, "r": 24, "t": 104, "b": 64},
            template="none",
            font=FONT,
            coloraxis={"colorscale": colours, "cmin": 0, "cmax": float(shade(np.array(self.highest))), "colorbar": bar},
        )
        return figure


def transfer_picture(curves: Curves, transfer: LayerTransfer) -> TransferPicture:
    """The two matrices of one result: what another layer's translator costs in cross-entropy, and how far it moves the
    prediction."""
    dotted = "\n(dot: better than the layer's own)" if np.any(transfer.penalty < BELOW) else "\n"
    heats = [
        Heat(title=f"Cross-entropy above the layer's own translator{dotted}", values=transfer.penalty),
        Heat(title="KL from the prediction of the layer's own translator\n", values=transfer.kl),
    ]
    broken = f" (broken: {curves.broken})" if curves.broken else ""
    return TransferPicture(title=f"Layer transfer: {curves.name}{broken}", transfer=transfer, heats=heats)


def shade(values: np.ndarray) -> np.ndarray:
    """The place of values in bits per byte on the scale of colour, 0 for what is not above 0. Any shape."""
    return np.asarray(np.arcsinh(np.maximum(values, 0) / KNEE))


def _edges(centres: np.ndarray) -> np.ndarray:
    """(cells + 1,) Borders of cells around increasing centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])
