"""What a page shows, as text for the browser: heat maps in JSON, the likeliest tokens of a cell in HTML."""

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape

from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.tokens import visible
from lens_rnn.evaluation.trajectory import NO_TARGET, Trajectory, named
from lens_rnn.evaluation.trajectory_plots import html_figure
from lens_rnn.viewer.cache import LOGIT, ViewerCache, cut
from lens_rnn.viewer.settings import Cell, Settings

TOKEN_WIDTH = 24
"""Characters of a token in a table."""
SIDES = ("text", "second text")


def heat_map(cache: ViewerCache, settings: Settings, side: int) -> str:
    """The picture of one of `settings.texts`, as JSON that heat_map.js draws. Raises LensRNNError where the settings
    cannot be used."""
    whole = cache.trajectory(settings.model, settings.lens, settings.texts[side], settings.stride)
    span = settings.span(whole.shape[1], SIDES[side])
    figure = html_figure(
        cut(whole, span),
        cache.text(settings.model),
        settings.statistic,
        title=f"{named(settings.statistic).title}: {settings.model}, {settings.lens}",
        first=span.start,
    )
    chosen = settings.chosen
    picture = {
        "figure": json.loads(figure.to_json()),
        "query": replace(settings, cell="").query(),
        "side": side,
        "first": span.start,
        "cell": [chosen.row, chosen.token] if chosen and chosen.side == side else None,
    }
    figure.data = []  # a figure is a circle of references, and what it holds would wait long to be collected
    return json.dumps(picture).replace("<", "\\u003c")  # a token may be a tag


def cell_tables(cache: ViewerCache, settings: Settings) -> str:
    """The likeliest tokens of the chosen cell, as the logit lens, a tuned lens and the model read them, side by side in
    HTML.

    Raises ConfigError if no cell is chosen, or one outside the picture.
    """
    chosen, tuned = settings.chosen, _tuned(cache, settings)
    if chosen is None:
        raise ConfigError("no cell is chosen; click one")
    if chosen.side >= len(settings.texts):
        raise ConfigError("the chosen cell is in a second text, and there is none; click another")
    text = cache.text(settings.model)
    lenses = [LOGIT, tuned] if tuned else [LOGIT]
    read = {
        lens: cache.trajectory(settings.model, lens, settings.texts[chosen.side], settings.stride) for lens in lenses
    }
    logit = read[LOGIT]
    rows, tokens = logit.shape
    if chosen.row >= rows or chosen.token not in settings.span(tokens, SIDES[chosen.side]):
        raise ConfigError(
            f"the chosen cell, row {chosen.row} and token {chosen.token}, is not in the picture; click another"
        )
    is_model = chosen.row == rows - 1
    columns = {"Model": _table(logit, rows - 1, chosen.token, text)}
    if not is_model:
        absent = "<p>This model has no tuned lens here.</p>"
        tables = {lens: _table(trajectory, chosen.row, chosen.token, text) for lens, trajectory in read.items()}
        columns = {"Logit lens": tables[LOGIT], "Tuned lens": tables.get(tuned, absent), **columns}
    body = "".join(f"<section><h4>{title}</h4>{column}</section>" for title, column in columns.items())
    return f"<h3>{_where(settings, logit, chosen, text)}</h3><div class='columns'>{body}</div>"


def _tuned(cache: ViewerCache, settings: Settings) -> str:
    """The tuned lens to show beside the logit lens: the chosen one, else the model's first; empty where it has none."""
    lenses = cache.choice(settings.model).lenses
    return settings.lens if settings.lens in lenses else next(iter(lenses), "")


def _where(settings: Settings, trajectory: Trajectory, cell: Cell, text: Callable[[int], str]) -> str:
    """A cell in words, HTML."""
    target = int(trajectory.targets[cell.token])
    name, depth = trajectory.names[cell.row], trajectory.depths[cell.row]
    place = "At the model's output" if name == "model" else f"At {name}, {depth:.2f} of the blocks applied"
    which = f" of the {SIDES[cell.side]}" if len(settings.texts) > 1 else ""
    ends = "where the text ends" if target == NO_TARGET else f"next comes {_code(text(target))}"
    return f"{place}, after token {cell.token}{which}, {_code(text(int(trajectory.input_ids[cell.token])))}; {ends}"


def _table(trajectory: Trajectory, row: int, token: int, text: Callable[[int], str]) -> str:
    """The likeliest tokens of one cell; the one that comes next in the text is marked."""
    ids, probabilities = trajectory.top_ids[row, token].tolist(), trajectory.top_probabilities[row, token].tolist()
    target, mark = int(trajectory.targets[token]), " class='next'"
    lines = "".join(
        f"<tr{mark if i == target else ''}><td>{_code(text(i))}</td><td>{100 * p:.2f}</td></tr>"
        for i, p in zip(ids, probabilities, strict=True)
    )
    return f"<table><thead><tr><th>Token</th><th>%</th></tr></thead><tbody>{lines}</tbody></table>"


def _code(token: str) -> str:
    return f"<code>{escape(visible(token, TOKEN_WIDTH))}</code>"
