"""Axes of tokens, as the pictures of views share them: long texts in groups, names that stay apart."""

from collections.abc import Callable, Sequence
from typing import Any

from lens_rnn.drawing import FONTS, MONOSPACED, drawable, markup
from lens_rnn.evaluation.tokens import visible

import numpy as np
from matplotlib.axes import Axes

MOST_CELLS = 256
"""Rows of a matrix in a picture: longer texts are shown in groups of tokens."""
MOST_NAMES = 44
"""Tokens that are named at an axis."""
_NAME_WIDTH = 10  # characters
_LABEL_WIDTH = 40


def group_starts(tokens: int) -> np.ndarray:
    """First token of each group: every token is its own while there are at most MOST_CELLS."""
    return np.arange(0, tokens, -(-tokens // MOST_CELLS))


def hover_labels(names: Sequence[str]) -> list[str]:
    """What a page calls each group of the tokens `names`: the place and text of its first."""
    return [f"{i}: {markup(visible(names[i], _LABEL_WIDTH))}" for i in group_starts(len(names))]


def name_axis(axes: Axes, names: Sequence[str], which: str, most: int = MOST_NAMES) -> None:
    """Write tokens at the x or y axis, at most so many."""
    places, words = _named(names, most)
    turned = {"rotation": 90} if which == "x" else {}
    getattr(axes, f"set_{which}ticks")(places, [drawable(word) for word in words], fontsize=6, family=FONTS, **turned)
    for label in getattr(axes, f"get_{which}ticklabels")():
        label.set_parse_math(False)


def name_page_axis(update: Callable[..., Any], names: Sequence[str], title: str, angle: int, **more: Any) -> None:
    """`name_axis` for plotly: `update` is a figure's update_xaxes or update_yaxes."""
    places, words = _named(names, MOST_NAMES)
    font = {"size": 11, "family": MONOSPACED}
    update(title=title, tickvals=places, ticktext=[markup(word) for word in words], tickangle=angle, tickfont=font)
    update(showgrid=False, zeroline=False, ticks="", **more)


def undress(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _named(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Cells of an axis that are named, at most so many, and their names."""
    starts = group_starts(len(names))
    cells = range(0, len(starts), -(-len(starts) // most))
    return [*cells], [visible(names[starts[cell]], _NAME_WIDTH) for cell in cells]
