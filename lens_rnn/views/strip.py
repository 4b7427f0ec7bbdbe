"""A text as a heat strip: each token on a ground coloured by a number. As a PNG by matplotlib, as HTML of spans.

Colour goes with the root of the number, of either sign, so that a twentieth of the strongest is still seen.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lens_rnn.drawing import BLACK, FONTS, LESS_TO_MORE, MONOSPACED, drawable, ink_on
from lens_rnn.evaluation.tokens import visible

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.patches import Rectangle

COLUMNS = 96
"""Characters in a line of the picture."""
_WIDEST = 24  # characters of one token
_FONT_SIZE = 8.0
CHARACTER_INCHES, LINE_INCHES = 0.602 * _FONT_SIZE / 72, 0.21  # DejaVu Sans Mono is 0.602 em wide
_PLAIN = MappingProxyType({"edgecolor": "white", "linewidth": 0.6})
_COLOURS = LinearSegmentedColormap.from_list("relevance", LESS_TO_MORE)


@dataclass(frozen=True, eq=False)
class Strip:
    """Tokens and their numbers: blue takes away, red adds."""

    texts: tuple[str, ...]
    values: np.ndarray
    """(tokens)."""
    far: float
    """What has the strongest colour."""

    def colour(self, place: int) -> str:
        """#rrggbb of a token's ground."""
        return to_hex(_COLOURS(0.5 + 0.5 * float(rooted(self.values[place], self.far))))

    def words(self) -> list[str]:
        """Tokens as they are shown: a space in them is a space, what else is invisible is shown."""
        return [re.sub("␣(?!×)", " ", visible(text, _WIDEST)) for text in self.texts]

    def lines(self, columns: int = COLUMNS) -> list[list[int]]:
        """Places of the tokens, line by line: broken after a line end, and where a line is full."""
        lines: list[list[int]] = [[]]
        used = 0
        for place, (text, word) in enumerate(zip(self.texts, self.words(), strict=True)):
            if lines[-1] and used + len(word) > columns:
                lines.append([])
                used = 0
            lines[-1].append(place)
            used += len(word)
            if "\n" in text:
                lines.append([])
                used = 0
        return lines if lines[-1] or len(lines) == 1 else lines[:-1]

    def draw(self, axes: Axes, mark: int | None = None, columns: int = COLUMNS) -> None:
        """Draw it into axes of columns × CHARACTER_INCHES by lines × LINE_INCHES. mark: a token to frame."""
        words, lines = self.words(), self.lines(columns)
        for row, line in enumerate(lines):
            left = 0
            for place in line:
                width, ground = len(words[place]), self.colour(place)
                frame: Mapping[str, Any] = (
                    {"edgecolor": BLACK, "linewidth": 1.2, "zorder": 3} if place == mark else _PLAIN
                )
                axes.add_patch(Rectangle((left, row + 0.06), width, 0.88, facecolor=ground, **frame))
                axes.text(
                    left + width / 2,
                    row + 0.52,
                    drawable(words[place]),
                    ha="center",
                    va="center",
                    fontsize=_FONT_SIZE,
                    family=FONTS,
                    color=ink_on(ground),
                    parse_math=False,  # a dollar sign in a token is a dollar sign
                    zorder=4,
                )
                left += width
        axes.set_xlim(-0.2, columns + 0.2)
        axes.set_ylim(len(lines), 0)
        axes.axis("off")

    def html(self, title: str, mark: int | None = None) -> str:
        """A heading and a <div>; a token that is pointed at says its number. mark: a token to frame."""
        spans = []
        for place, (text, word) in enumerate(zip(self.texts, self.words(), strict=True)):
            ground = self.colour(place)
            frame = f"outline:2px solid {BLACK};" if place == mark else ""
            label = html.escape(f"token {place}, {visible(text)}: {self.values[place]:+.4f}", quote=True)
            style = f"background:{ground};color:{ink_on(ground)};{frame}padding:2px 0;border-radius:2px"
            spans.append(
                f'<span style="{style}" title="{label}">{html.escape(word)}</span>' + ("<br>" if "\n" in text else "")
            )
        heading = f'<h3 style="margin:0 0 12px">{html.escape(title)}</h3>'
        return f'{heading}<div style="font:14px/1.9 {MONOSPACED};white-space:pre-wrap">{"".join(spans)}</div>'


def rooted(values: np.ndarray, far: float) -> np.ndarray:
    """The place of values on the scale of colour, −1 to 1: the root of their share of `far`, with their sign. Any
    shape."""
    return np.sign(values) * np.sqrt(np.abs(values) / far)
