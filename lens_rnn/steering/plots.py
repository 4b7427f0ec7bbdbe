"""A steering experiment as a picture: effect against multiplier and layer, targets beside their controls, and the
lens's view."""

from collections.abc import Mapping
from pathlib import Path

from lens_rnn.drawing import BLACK, GREY, PALE, new_figure, save_png
from lens_rnn.evaluation.canvas import X_LIMITS
from lens_rnn.models import ModelAdapter
from lens_rnn.steering.evaluation import Target
from lens_rnn.steering.experiment import Experiment
from lens_rnn.steering.lens_view import LatentEffect
from lens_rnn.steering.report import CHANGE

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS: Mapping[Target, str] = {"residual": "#0072B2", "state": "#E69F00", "both": "#007A5A"}
MARKERS: Mapping[Target, str] = {"residual": "o", "state": "s", "both": "^"}
CONTROL_MARKERS = {"random": "x", "shuffled": "+"}


def plot_experiment(
    experiment: Experiment, adapter: ModelAdapter, path: Path, latent: Mapping[Target, LatentEffect] | None = None
) -> None:
    """Write the PNG. latent: what the lens reads at +multiplier, its last multiplier, for a fourth panel."""
    save_png(experiment_figure(experiment, adapter, latent or {}), path)


def experiment_figure(experiment: Experiment, adapter: ModelAdapter, latent: Mapping[Target, LatentEffect]) -> Figure:
    """Three panels, or four with the lens's view. Bands and bars have 95 % intervals over the clusters of the test
    questions."""
    shape = (2, 2) if latent else (1, 3)
    questions = len(experiment.contrast.test)
    title = f"Steering {Path(adapter.name).name}: {experiment.contrast.name}, {questions} test questions"
    width, height = (9.6, 7.4) if latent else (13, 3.9)
    figure = new_figure(width, height, title)
    places = figure.subplots(*shape).flatten()
    _against_multiplier(places[0], experiment)
    _against_layer(places[1], experiment, adapter)
    _beside_controls(places[2], experiment)
    if latent:
        _latent(places[3], experiment, latent)
    for axes in places:
        axes.grid(color=PALE, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
    places[0].legend(frameon=False, fontsize=9)
    return figure


def _against_multiplier(axes: Axes, experiment: Experiment) -> None:
    """Change of the matching share from unsteered, at each target's chosen layer."""
    order = np.argsort(experiment.config.multipliers)
    multipliers = np.array(experiment.config.multipliers)[order]
    zero = experiment.config.multipliers.index(0)
    for target, outcome in experiment.outcomes.items():
        matching = experiment.test[experiment.edits.index(outcome.edit)].matching  # (multipliers, questions)
        changes = [experiment.test.mean(row - matching[zero], CHANGE) for row in matching[order]]
        axes.plot(
            multipliers, [c.value for c in changes], MARKERS[target] + "-", color=COLOURS[target], ms=4, label=target
        )
        axes.fill_between(
            multipliers,
            [c.low for c in changes],
            [c.high for c in changes],
            color=COLOURS[target],
            alpha=0.18,
            linewidth=0,
        )
    axes.axhline(0, color=GREY, linewidth=0.8)
    _say(axes, "At the layer that validation chose", "multiplier", "change of the matching answer's share")


def _against_layer(axes: Axes, experiment: Experiment, adapter: ModelAdapter) -> None:
    """Range of the matching share at each layer, at the target's chosen multiplier."""
    for target, outcome in experiment.outcomes.items():
        low, high = (experiment.config.multipliers.index(m) for m in (-outcome.multiplier, outcome.multiplier))
        rows = [e for e, edit in enumerate(experiment.edits) if edit.target == target]
        depths = [adapter.depth(experiment.edits[e].layer) for e in rows]
        shares = experiment.test.matching
        ranges = [experiment.test.mean(shares[e, high] - shares[e, low], CHANGE) for e in rows]
        axes.plot(depths, [r.value for r in ranges], MARKERS[target] + "-", color=COLOURS[target], ms=4)
        axes.fill_between(
            depths, [r.low for r in ranges], [r.high for r in ranges], color=COLOURS[target], alpha=0.18, linewidth=0
        )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(*X_LIMITS)
    _say(
        axes,
        "By layer steered, at the multiplier that validation chose",
        "fraction of blocks applied",
        "range of the matching answer's share",
    )


def _beside_controls(axes: Axes, experiment: Experiment) -> None:
    """Range of each target with its interval, and each control's."""
    for i, (target, outcome) in enumerate(experiment.outcomes.items()):
        spread = outcome.test.mean(outcome.ranges, CHANGE)
        limits = [[spread.value - spread.low], [spread.high - spread.value]]
        axes.bar(i, spread.value, 0.55, color=COLOURS[target], alpha=0.85)
        axes.errorbar(i, spread.value, limits, color=BLACK, capsize=4, linewidth=1.2)
        for side, (name, scores) in enumerate(outcome.controls.items()):
            ranges = (scores.matching[:, 1] - scores.matching[:, 0]).mean(-1)
            at = np.full(len(ranges), i + (0.36, 0.44)[side])
            axes.plot(
                at,
                ranges,
                CONTROL_MARKERS[name],
                color=BLACK,
                ms=5,
                label={"random": "random vectors", "shuffled": "shuffled labels"}[name] if i == 0 else None,
            )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(
        range(len(experiment.outcomes)),
        [f"{t}\nlayer {o.edit.layer}, ±{o.multiplier:g}" for t, o in experiment.outcomes.items()],
    )
    axes.legend(frameon=False, fontsize=9)
    _say(axes, "Beside controls of the same norm", "", "range of the matching answer's share")


def _latent(axes: Axes, experiment: Experiment, latent: Mapping[Target, LatentEffect]) -> None:
    """Change of the lens's log-odds at +multiplier, the last one that was read."""
    for target, effect in latent.items():
        rows = list(map(experiment.test.mean, effect.log_odds[:, -1]))
        axes.plot(effect.depths, [r.value for r in rows], MARKERS[target] + "-", color=COLOURS[target], ms=4)
        axes.fill_between(
            effect.depths, [r.low for r in rows], [r.high for r in rows], color=COLOURS[target], alpha=0.18, linewidth=0
        )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(*X_LIMITS)
    _say(
        axes,
        "What the tuned lens reads, by layer, at +multiplier",
        "fraction of blocks applied",
        "change of the log-odds, in nats",
    )


def _say(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
