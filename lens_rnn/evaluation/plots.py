"""Curves over depth as pictures: one result with its baselines, or any number overlaid or side by side.

A picture is laid out here as plain lines and drawn by `canvas`. Solid is the tuned lens, dashed the logit lens. Nothing
here knows a model.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Literal

from lens_rnn.drawing import BLACK, GREY, PALE
from lens_rnn.errors import DataError
from lens_rnn.evaluation.canvas import X_LIMITS, Line, Panel, Picture
from lens_rnn.evaluation.curves import PER_TOKEN, Curves
from lens_rnn.looks import look_of

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex

Lens = Literal["tuned", "logit", "both"]

LEGEND_WIDTH = 24
"""Characters in a line of the legend, which stands beside the curves and takes their width."""
PANEL_WIDTH = 32
"""Characters in a line of a panel's title."""

BLUE, ORANGE = "#0072B2", "#E69F00"
DISTINCT = ("#0072B2", "#E69F00", "#007A5A", "#B8468B", "#56B4E9", "#7A2E00", "#1A1A1A", "#8C7A00")
DISTINCT_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def layers_picture(curves: Curves, lens: Lens = "both") -> Picture:
    """One result, with the model, unigram and uniform baselines as horizontal lines."""
    looks = {"logit": (ORANGE, "dashed", 2.0, "s"), "tuned": (BLUE, "solid", 2.6, "o")}
    lines = []
    for name, ce in _chosen(curves, lens).items():
        colour, dash, width, marker = looks[name]
        x, y = curves.joined_to_model(ce)
        colour = PALE if curves.broken else colour
        label = f"{name.capitalize()} lens"
        lines.append(
            Line(label=label, group=label, x=x, y=y, colour=colour, dash=dash, width=width, marker=marker, markers=32)
        )
    for number, (name, ce) in enumerate(curves.others.items(), start=2):
        there, label = np.isfinite(ce), f"{name.capitalize()} lens"
        colour, marker = DISTINCT[number % len(DISTINCT)], DISTINCT_MARKERS[number % len(DISTINCT_MARKERS)]
        look = Line(label=label, group=label, x=curves.depth[there], y=ce[there], colour=colour)
        lines.append(replace(look, dash="solid", width=2.0, marker=marker, markers=32))
    if curves.uniform_ce is not None:
        lines.append(_level(f"Uniform: {curves.uniform_ce:.3g}", curves.uniform_ce, GREY, "dotted"))
    if curves.unigram_ce is not None:
        lines.append(_level(f"Unigram: {curves.unigram_ce:.3g}", curves.unigram_ce, GREY, "dashdot"))
    lines.append(_level(f"Model: {curves.model_ce:.3g}" + _broken_note(curves), curves.model_ce, BLACK, "solid"))
    return _picture(textwrap.fill(curves.name, 60), [Panel(lines=lines)], curves)


def comparison_picture(results: Sequence[Curves], lens: Lens = "both", title: str = "") -> Picture:
    """Any number of results on the same axes: one colour a model, from light to dark by size within a family where
    names tell the size.

    Raises DataError where there is none, or one lacks the lens that is asked for.
    """
    if not results:
        raise DataError("there is no result to draw; name at least one")
    looks = {"tuned": ("solid", 2.2), "logit": ("dashed", 1.0 if lens == "both" else 1.6)}
    lines = []
    if lens == "both":
        for name, (dash, width) in looks.items():
            lines.append(Line(label=f"{name.capitalize()} lens", group=name, colour=GREY, dash=dash, width=width))
    lines += _uniform([curves.uniform_ce for curves in results if curves.uniform_ce is not None])

    styles = _styles([curves for curves in results if not curves.broken])
    for curves in [*styles, *(curves for curves in results if curves.broken)]:
        colour, marker = styles.get(curves, (PALE, "X"))
        label = textwrap.fill(curves.name, LEGEND_WIDTH) + _broken_note(curves)
        chosen = _chosen(curves, lens)
        for name, ce in chosen.items():
            first = name == next(iter(chosen))  # a model has one entry in the legend, and markers on one of its lines
            x, y = curves.joined_to_model(ce)
            dash, width = looks[name]
            look = Line(group=label, x=x, y=y, colour=colour, dash=dash, width=width)
            lines.append(replace(look, label=label, marker=marker) if first else look)
    title = title or ("Tuned and logit lens over depth" if lens == "both" else f"{lens.capitalize()} lens over depth")
    return _picture(title, [Panel(lines=lines)], results[0])


def panels_picture(results: Sequence[Curves], title: str) -> Picture:
    """Tuned against logit lens, a panel a result on shared axes, with crosses at the layers where the tuned lens is the
    worse one.

    Raises DataError where there is no result.
    """
    if not results:
        raise DataError("there is no result to draw; name at least one")
    panels = []
    for curves in results:
        lines = [
            Line(
                label=f"{name.capitalize()} lens",
                group=name,
                x=x,
                y=y,
                colour=PALE if curves.broken else {"tuned": BLUE, "logit": ORANGE}[name],
                dash={"tuned": "solid", "logit": "dashed"}[name],
            )
            for name, (x, y) in ((name, curves.joined_to_model(ce)) for name, ce in _chosen(curves, "both").items())
        ]
        worse = curves.tuned_worse_than_logit
        if curves.tuned_ce is not None and len(worse):
            points = {"x": curves.depth[worse], "y": curves.tuned_ce[worse]}
            lines.append(
                Line(
                    label="Tuned worse\nthan logit",
                    group="worse",
                    **points,
                    dash="none",
                    marker="X",
                    markers=len(worse),
                )
            )
        if curves.uniform_ce is not None:
            lines.append(_level("Uniform", curves.uniform_ce, GREY, "dotted"))
        lines.append(_level("Model", curves.model_ce, BLACK, "solid"))
        title_of_panel = f"{curves.name} (broken: {curves.broken})" if curves.broken else curves.name
        panels.append(Panel(title=textwrap.fill(title_of_panel, PANEL_WIDTH), lines=lines))
    if len(panels) == 1:  # one panel has the picture's title, which then says whose it is
        return _picture(f"{title}\n{panels[0].title}", [Panel(lines=panels[0].lines)], results[0])
    return _picture(title, panels, results[0])


def _picture(title: str, panels: list[Panel], curves: Curves) -> Picture:
    """A picture in the units of its results."""
    quantity = "Log perplexity" if curves.units == PER_TOKEN else "Cross-entropy"
    return Picture(title=title, y_title=f"{quantity} ({curves.units})", units=curves.units, panels=panels)


def _chosen(curves: Curves, lens: Lens) -> dict[str, np.ndarray]:
    """The cross-entropies to draw, (layers,) by the name of the lens, the more important first."""
    if lens == "tuned" and curves.tuned_ce is None:
        raise DataError(f"{curves.name} has no tuned lens; leave it out or draw the logit lens")
    there = {"tuned": curves.tuned_ce, "logit": curves.logit_ce}
    return {name: ce for name, ce in there.items() if ce is not None and lens in (name, "both")}


def _level(label: str, value: float, colour: str, dash: str) -> Line:
    return Line(
        label=label, group=label, x=np.array(X_LIMITS), y=np.full(2, value), colour=colour, dash=dash, width=1.3
    )


def _uniform(levels: list[float]) -> list[Line]:
    """The uniform baseline, which depends on vocabulary and text: one line where the results share it, else the lowest
    and the highest."""
    if not levels:
        return []
    low, high = min(levels), max(levels)
    if high < 1.01 * low:
        return [_level(f"Uniform: {levels[0]:.3g}", levels[0], GREY, "dotted")]
    lowest = _level(f"Uniform: {low:.3g} to {high:.3g}", low, GREY, "dotted")
    return [lowest, replace(lowest, label="", y=np.full(2, high))]


def _broken_note(curves: Curves) -> str:
    return f"\n(broken: {curves.broken})".replace(" >", "\n>") if curves.broken else ""


def _styles(results: list[Curves]) -> dict[Curves, tuple[str, str]]:
    """Colour and marker of each result, in the order of the legend."""
    members = {curves.family: [c for c in results if c.family == curves.family] for curves in results}
    # Shades say which model is larger, so they are used only where that is known. Two lenses of one model get different
    # colours instead.
    if any(len({c.parameters for c in group} - {None}) < len(group) for group in members.values() if len(group) > 1):
        pairs = zip(cycle(DISTINCT), cycle(DISTINCT_MARKERS), strict=False)
        return dict(zip(results, pairs, strict=False))
    styles = {}
    for family, group in members.items():
        look = look_of(family)
        ramp = LinearSegmentedColormap.from_list("ramp", look.ramp)
        for i, curves in enumerate(sorted(group, key=lambda c: c.parameters or 0)):
            shade = i / (len(group) - 1) if len(group) > 1 else look.lone_shade
            styles[curves] = (to_hex(ramp(shade)), look.marker)
    return styles
