"""Prediction trajectories as heat maps: PNG by matplotlib, HTML by plotly.

Tokens run to the right, layers upwards by the fraction of blocks applied, the model on top. A cell shows the likeliest
token, and by its colour a statistic: the darker, the surer. Long texts have narrow cells without words. The page says
more of a cell that is pointed at.
"""

from lens_rnn.drawing import FONTS, MONOSPACED, drawable, ink_on, label_bar, markup, new_figure, page_bar, page_look
from lens_rnn.evaluation.trajectory import Trajectory
from lens_rnn.evaluation.trajectory_picture import Reader, TrajectoryPicture, hover_texts, trajectory_picture

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

X_TITLE, Y_TITLE = "Token read", "Fraction of blocks applied"
NOTHING = "#E0DCD2"
"""The colour of a cell that has no number."""


def html_figure(
    trajectory: Trajectory,
    text: Reader,
    statistic: str = "entropy",
    *,
    title: str = "",
    minus: Trajectory | None = None,
    first: int = 0,
) -> go.Figure:
    """A trajectory as a plotly heat map that names the likeliest tokens and all statistics of the cell that is pointed
    at.

    minus: another trajectory; then the colours say how much larger the statistic is here. first: the place of the first
    token, of a part of a longer text.
    Raises ConfigError for an unknown statistic, DataError where the two differ in shape.
    """
    picture = trajectory_picture(trajectory, text, statistic, title, minus)
    n_rows, n_tokens = trajectory.shape
    words = (
        {"text": [[markup(cell) for cell in row] for row in picture.cells], "texttemplate": "%{text}"}
        if picture.has_words
        else {}
    )
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if np.isnan(x) else float(x) for x in row] for row in picture.colour],
        zmin=picture.limits[0],
        zmax=picture.limits[1],
        colorscale=list(picture.ramp),
        colorbar=page_bar(picture.bar, [*picture.ticks], [*picture.ticks.values()]),
        customdata=hover_texts(trajectory, text, first),
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
        **page_look(picture.title),
        plot_bgcolor=NOTHING,
        width=max(640, 190 + across * n_tokens),
        height=max(320, 190 + up * n_rows),
        margin={"l": 76, "r": 100, "t": 56, "b": 64 if picture.has_words else 120},
        xaxis=axis
        | {"title": X_TITLE, "tickvals": list(range(n_tokens)), "ticktext": [markup(c) for c in picture.columns]},
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
    picture = trajectory_picture(trajectory, text, statistic, title, minus)
    n_rows, n_tokens = trajectory.shape
    across, up = (0.56, 0.26) if picture.has_words else (min(0.12, 20 / n_tokens), 0.2)
    figure = new_figure(max(5.5, 1.9 + across * n_tokens), max(2.6, 1.5 + up * n_rows))
    axes = figure.add_subplot()
    colours = LinearSegmentedColormap.from_list("ramp", picture.ramp).with_extremes(bad=NOTHING)
    low, high = picture.limits
    width = 0.6 if picture.has_words else 0.15
    shown = np.ma.masked_invalid(picture.colour)
    cells = axes.pcolormesh(shown, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=width)
    bar = figure.colorbar(cells, ax=axes, pad=0.012, fraction=0.04, aspect=18)
    label_bar(bar, picture.bar, [*picture.ticks], [*picture.ticks.values()])
    if picture.has_words:
        _write_words(axes, picture, colours)
    _dress(axes, picture, every=max(1, round(0.115 / across)))
    return figure


def _write_words(axes: Axes, picture: TrajectoryPicture, colours: Colormap) -> None:
    low, high = picture.limits
    for row, words in enumerate(picture.cells):
        for token, word in enumerate(words):
            place = (picture.colour[row, token] - low) / (high - low)
            axes.text(
                token + 0.5,
                row + 0.47,
                drawable(word),
                ha="center",
                va="center",
                fontsize=6.5,
                family=FONTS,
                color=ink_on(colours(place)),
                parse_math=False,  # a dollar sign in a token is a dollar sign
            )


def _dress(axes: Axes, picture: TrajectoryPicture, every: int) -> None:
    """Title, ticks, and a line below the model; `every` so many tokens are named at the axis that they stay apart."""
    n_rows, places = len(picture.rows), range(0, len(picture.columns), every)
    labels = [drawable(picture.columns[i]) for i in places]
    size, angle = (6.5, 0) if picture.has_words else (6, 90)
    axes.set_xticks([i + 0.5 for i in places], labels, rotation=angle, fontsize=size, family=FONTS)
    axes.set_yticks([i + 0.5 for i in picture.row_places], [picture.rows[i] for i in picture.row_places], fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_xlabel(X_TITLE, fontsize=9)
    axes.set_ylabel(Y_TITLE, fontsize=9)
    axes.set_title(drawable(picture.title), fontsize=10, fontweight="bold", loc="left", parse_math=False)
    axes.tick_params(length=0)
    axes.axhline(n_rows - 1, color="white", linewidth=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
