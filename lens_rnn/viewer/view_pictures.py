"""What the page's second tab shows, as text for the browser: hidden attention in JSON, relevance in HTML."""

import json
from dataclasses import replace
from html import escape
from typing import cast

from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.tokens import visible
from lens_rnn.viewer.cache import LOGIT, ViewerCache
from lens_rnn.viewer.pictures import TOKEN_WIDTH
from lens_rnn.viewer.settings import MEAN, ROLLOUT, Settings
from lens_rnn.views.attention_pictures import attention_panels, panels_html
from lens_rnn.views.relevance_pictures import relevance_strip

import numpy as np

STRONGEST = 10
"""Tokens in the table of the strongest, and likeliest tokens to pick from."""

Choices = list[tuple[str, str]]
"""What can be picked: its title, and the setting `token`."""
UNREAD: Choices = [("the likeliest", "")]


def matrix(cache: ViewerCache, settings: Settings) -> str:
    """Hidden attention as JSON that matrix.js draws. Raises LensRNNError where the settings cannot be used, or the
    model has none."""
    attention = cache.attention(settings.model, settings.text)
    panels = attention_panels(attention)
    through = panels.pop("rollout", None)  # of a hybrid with a block that mixes no tokens there is none
    panels = ({} if through is None else {ROLLOUT: through}) | {MEAN: np.mean([*panels.values()], axis=0)} | panels
    asked = MEAN if through is None and settings.attention == ROLLOUT else settings.attention
    name = asked if asked in panels else f"layer {int(asked)}"
    name = next(
        (title for title in panels if title.partition(",")[0] == name), name
    )  # a hybrid's have their kind behind a comma
    if name not in panels:
        last = attention.n_layers - 1
        raise ConfigError(
            f"{settings.model} has no {name}; choose from 0 to {last} for hidden attention, or {MEAN} or {ROLLOUT}"
        )
    names = cache.names(settings.model, settings.text)
    which = "mean over layers" if name == MEAN else name
    figure = panels_html({name: panels[name]}, names, f"Hidden attention: {settings.model}, {which}")
    picture = {
        "figure": json.loads(figure.to_json()),
        "query": replace(settings, cell="").query(),
        "names": [visible(token, TOKEN_WIDTH) for token in names],
    }
    figure.data = []  # a figure is a circle of references, and what it holds would wait long to be collected
    return json.dumps(picture).replace("<", "\\u003c")  # a token may be a tag


def relevance_html(cache: ViewerCache, settings: Settings) -> str:
    """The text as a heat strip, and its most relevant tokens. Raises as `matrix`."""
    explained = cache.relevance(settings.model, settings.lens, settings.text, settings.layer, settings.picked)
    names = cache.names(settings.model, settings.text)
    token = visible(cache.text(settings.model)(cast(int, explained.explained.token)), TOKEN_WIDTH)
    where = "" if settings.layer is None else f" at layer {settings.layer}, as {settings.lens} reads it,"
    strip = relevance_strip(explained, names).html(
        f"Where the logit of “{token}” after the text{where} comes from", len(names) - 1
    )
    tokens = explained.tokens.numpy()
    rows = "".join(
        f"<tr><td>{i}</td><td><code>{escape(visible(names[i], TOKEN_WIDTH))}</code></td><td>{tokens[i]:+.3f}</td></tr>"
        for i in np.argsort(-np.abs(tokens), kind="stable")[:STRONGEST]
    )
    whole = f"It is {explained.value:.3f}; the tokens make {tokens.sum():.3f} of it, biases the rest."
    caption = f"<p>Red adds to the logit, blue takes away. {whole}</p>"
    table = (
        f"<table><thead><tr><th>Place</th><th>Token</th><th>Relevance</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return f"<section>{strip}{caption}{table}</section>"


def tokens_to_pick(cache: ViewerCache, settings: Settings, explained: bool) -> Choices:
    """The likeliest tokens after the text, as the model says or the lens at the layer; where nothing is explained,
    only the one picked."""
    text, choices = cache.text(settings.model), [*UNREAD]
    if explained:
        lens, row = (LOGIT, "model") if settings.layer is None else (settings.lens, f"layer {settings.layer}")
        trajectory = cache.trajectory(settings.model, lens, settings.text, 1)
        first, *others = trajectory.top_ids[trajectory.names.index(row), -1, :STRONGEST].tolist()
        choices = [(f"{_word(text(first))} (the likeliest)", ""), *((_word(text(i)), str(i)) for i in others)]
    if settings.picked is not None and settings.token not in dict(choices).values():
        choices.append((_word(text(settings.picked)), settings.token))
    return choices


def _word(token: str) -> str:
    return visible(token, TOKEN_WIDTH)
