"""A steering experiment as files: steering.json, and steering.csv with every layer and multiplier."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.lens import TunedLens
from lens_rnn.models import ModelAdapter
from lens_rnn.steering.evaluation import Interval, Scores, Target, mean_interval
from lens_rnn.steering.experiment import Experiment, Outcome
from lens_rnn.steering.lens_view import LatentEffect, latent_effect, mean_hidden, read_vector, top_tokens


def through_the_lens(experiment: Experiment, adapter: ModelAdapter, lens: TunedLens) -> dict[Target, LatentEffect]:
    """What each target's chosen edit does to latent predictions on the test questions, at −multiplier and
    +multiplier."""
    return {
        target: latent_effect(
            adapter, lens, experiment.contrast.test, outcome.edit, (-outcome.multiplier, outcome.multiplier)
        )
        for target, outcome in experiment.outcomes.items()
    }


def summary(
    experiment: Experiment,
    adapter: ModelAdapter,
    lens: TunedLens | None = None,
    latent: Mapping[Target, LatentEffect] | None = None,
) -> dict[str, Any]:
    """JSON-ready: what each target does on the test questions, with 95 % intervals, beside its controls; and what a
    lens sees of it."""
    targets = {target: _summary(outcome, adapter) for target, outcome in experiment.outcomes.items()}
    for target, outcome in experiment.outcomes.items():
        if latent and target in latent:
            targets[target]["latent"] = _latent(latent[target], outcome)
        if lens and target != "state":
            targets[target]["vector_reading"] = _vector_reading(experiment, adapter, lens, outcome.edit.layer)
    return {
        "contrast": experiment.contrast.name,
        "model": adapter.name,
        "pairs": len(experiment.contrast.pairs),
        "questions": {"validation": len(experiment.contrast.validation), "test": len(experiment.contrast.test)},
        "vectors": dict(experiment.vectors.about),
        "multipliers": list(experiment.config.multipliers),
        "targets": targets,
    }


def _summary(outcome: Outcome, adapter: ModelAdapter) -> dict[str, Any]:
    def shares(scores: Scores) -> dict[str, Any]:
        """Means and intervals at −multiplier, 0 and +multiplier."""
        return {
            name: [_json(mean_interval(values)) for values in getattr(scores, name)]
            for name in ("matching", "nonsense", "log_odds")
        } | {"range": _json(mean_interval(scores.matching[2] - scores.matching[0]))}

    controls = {
        name: {
            "ranges": (scores.matching[:, 1] - scores.matching[:, 0]).mean(-1).tolist(),
            "effect_beyond": _json(outcome.beyond(name)),
        }
        for name, scores in outcome.controls.items()
    }
    accuracy = {
        name: [_json(mean_interval((row > 0).astype(float))) for row in scores.log_odds]
        for name, scores in outcome.capability.items()
    }
    return {
        "layer": outcome.edit.layer,
        "depth": adapter.depth(outcome.edit.layer),
        "multiplier": outcome.multiplier,
        "within_nonsense": outcome.within_nonsense,
        "test": shares(outcome.test),
        "controls": controls,
        "significant": all(control["effect_beyond"]["low"] > 0 for control in controls.values()),
        "options_swapped": None if outcome.swapped is None else shares(outcome.swapped),
        "accuracy": accuracy,
    }


def _json(interval: Interval) -> dict[str, float]:
    return interval._asdict()


def table(experiment: Experiment, adapter: ModelAdapter) -> str:
    """steering.csv: a row for every split, target, layer and multiplier; means over the questions."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        [
            "split",
            "target",
            "layer",
            "depth",
            "multiplier",
            "matching",
            "matching_low",
            "matching_high",
            "nonsense",
            "log_odds",
        ]
    )
    for split, scores in (("validation", experiment.validation), ("test", experiment.test)):
        for e, edit in enumerate(experiment.edits):
            for m, multiplier in enumerate(experiment.config.multipliers):
                one = scores[e, m]
                matching = mean_interval(one.matching, draws=500)
                where = [split, edit.target, edit.layer, adapter.depth(edit.layer), multiplier]
                rows.writerow([*where, *matching, one.nonsense.mean(), one.log_odds.mean()])
    return text.getvalue()


def brief(experiment: Experiment) -> str:
    """A line for each target: what a person wants to know first."""
    lines = [
        f"{experiment.contrast.name}: share of the matching answer on {len(experiment.contrast.test)} test questions"
    ]
    for target, outcome in experiment.outcomes.items():
        low, middle, high = outcome.test.matching.mean(-1)
        spread = mean_interval(outcome.ranges)
        beyond = [outcome.beyond(control) for control in outcome.controls]
        verdict = "beyond every control" if all(one.low > 0 for one in beyond) else "not beyond its controls"
        lines.append(
            f"  {target:8} layer {outcome.edit.layer}, ±{outcome.multiplier:g}: {low:.3f} ← {middle:.3f} → {high:.3f}, "
            f"range {spread.value:+.3f} [{spread.low:+.3f}, {spread.high:+.3f}], {verdict}"
        )
    return "\n".join(lines)


def _latent(effect: LatentEffect, outcome: Outcome) -> dict[str, Any]:
    """What the lens reads downstream, as means over the questions."""
    return {
        "layers": [*effect.layers, "model"],
        "depths": effect.depths.tolist(),
        "multipliers": [-outcome.multiplier, outcome.multiplier],
        "log_odds_change": effect.log_odds.mean(-1).tolist(),
        "kl": effect.kl.mean(-1).tolist(),
    }


def _vector_reading(experiment: Experiment, adapter: ModelAdapter, lens: TunedLens, layer: int) -> dict[str, Any]:
    """The tokens that the residual vector of a layer promotes and suppresses, read through the lens."""
    questions = experiment.contrast.test
    reading = read_vector(lens, experiment.vectors.residual(layer), layer, mean_hidden(adapter, questions, layer))
    up, down = top_tokens(reading)
    read, question = token_reader(adapter.tokenizer), questions[0]
    return {
        "layer": layer,
        "promoted": [read(i) for i in up],
        "suppressed": [read(i) for i in down],
        "answers": {"matching": float(reading[question.matching]), "other": float(reading[question.other])},
    }
