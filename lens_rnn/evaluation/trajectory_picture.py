"""A prediction trajectory laid out for drawing: colours, words and ticks of its heat map, which both libraries show."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, log10

from lens_rnn.drawing import LESS_TO_MORE, SURE_TO_UNSURE, markup
from lens_rnn.evaluation.tokens import visible
from lens_rnn.evaluation.trajectory import NO_TARGET, STATISTICS, Trajectory, named

import numpy as np

Reader = Callable[[int], str]
"""From a token id to its text, as `tokens.token_reader` makes one."""

MOST_WORDS = 48
"""With more tokens than this, cells hold no words."""
MOST_ROW_LABELS = 17
CELL_WIDTH, TICK_WIDTH, HOVER_WIDTH = 8, 12, 40
"""Characters of a token in a cell, at the axis, and where it is pointed at."""
HOVER_TOP = 5
"""Tokens named where a cell is pointed at."""


@dataclass(frozen=True)
class TrajectoryPicture:
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


def trajectory_picture(
    trajectory: Trajectory, text: Reader, statistic: str, title: str, minus: Trajectory | None
) -> TrajectoryPicture:
    """The heat map of a statistic, or of how much larger it is than in another trajectory, `minus`."""
    about = named(statistic)
    if minus is not None:
        colour = trajectory.minus(minus, statistic)
        far = _largest(np.abs(colour))
        look: dict = {"limits": (-far, far), "ticks": {}, "ramp": LESS_TO_MORE}
        bar = f"Difference in {about.title[0].lower()}{about.title[1:]} ({about.unit})"
    else:
        colour, look = _colours(trajectory, trajectory.values(statistic), about.unit)
        bar = about.title if about.unit in about.title.lower() else f"{about.title} ({about.unit})"
    return TrajectoryPicture(
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


def hover_texts(trajectory: Trajectory, text: Reader, first: int) -> list[list[str]]:
    """(rows, tokens): what is said of each cell that is pointed at, as plotly's HTML. Tokens are counted from
    `first`."""

    def shown(token: int) -> str:
        return markup(visible(text(token), HOVER_WIDTH))

    statistics = [
        (about.title, " nats" if about.unit == "nats" else "", about.of(trajectory)) for about in STATISTICS.values()
    ]
    heads = []
    pairs = zip(trajectory.input_ids.tolist(), trajectory.targets.tolist(), strict=True)
    for place, (token, target) in enumerate(pairs, start=first):
        wanted = "" if target == NO_TARGET else f"<br>target {shown(target)}"
        heads.append(f"after token {place}, {shown(token)}{wanted}<br>")
    rows = []
    for row, name in enumerate(trajectory.names):
        cells = []
        for token, head in enumerate(heads):
            ids, probabilities = (
                top[row, token, :HOVER_TOP].tolist() for top in (trajectory.top_ids, trajectory.top_probabilities)
            )
            tops = "".join(f"<br>{100 * p:5.1f} %  {shown(i)}" for i, p in zip(ids, probabilities, strict=True))
            numbers = "".join(
                f"<br>{title}: {value[row, token]:.4g}{unit}"
                for title, unit, value in statistics
                if not np.isnan(value[row, token])
            )
            cells.append(f"<b>{name}</b> {head}{tops}<br>{numbers}")
        rows.append(cells)
    return rows
