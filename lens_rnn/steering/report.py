"""A steering experiment as files: steering.json, and steering.csv with every layer and multiplier."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.intervals import FEW_CLUSTERS, Estimate, share_estimate
from lens_rnn.lens import Lens
from lens_rnn.models import ModelAdapter
from lens_rnn.reports import read_report, to_json, write_report
from lens_rnn.steering.clusters import clusters_of
from lens_rnn.steering.evaluation import Scores, Target
from lens_rnn.steering.experiment import Experiment, Outcome
from lens_rnn.steering.lens_view import LatentEffect, latent_effect, mean_hidden, read_vector, top_tokens

FORMAT = 2
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)
"""What a share can be, and a difference of two."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Means over questions; the first three at −multiplier, 0 and +multiplier."""

    matching: tuple[Estimate, ...]
    nonsense: tuple[Estimate, ...]
    log_odds: tuple[Estimate, ...]
    range: Estimate
    """Matching at +multiplier less at −multiplier."""

    @classmethod
    def of(cls, scores: Scores) -> "Shares":
        """Of log_p (3, questions, 2)."""
        return cls(
            matching=tuple(scores.mean(values, SHARE) for values in scores.matching),
            nonsense=tuple(scores.mean(values, SHARE) for values in scores.nonsense),
            log_odds=tuple(map(scores.mean, scores.log_odds)),
            range=scores.mean(scores.matching[2] - scores.matching[0], CHANGE),
        )


@dataclass(frozen=True, kw_only=True)
class ControlReport:
    """Vectors that should have no effect."""

    ranges: tuple[float, ...]
    effect_beyond: Estimate
    """How far the range lies beyond the largest of these: the limits as `least_mean_estimate` says."""


@dataclass(frozen=True, kw_only=True)
class LatentReport:
    """What the lens reads downstream, as means over the questions: (rows, multipliers)."""

    layers: tuple[int | str, ...]
    """Of each row; the last is "model"."""
    depths: tuple[float, ...]
    multipliers: tuple[float, ...]
    log_odds_change: tuple[tuple[float, ...], ...]
    kl: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class VectorReading:
    """The tokens that the residual vector of a layer promotes and suppresses, read through the lens."""

    layer: int
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    answers: Mapping[str, float]
    """Logits that a step along it adds: "matching", "other", of the first question."""


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What steering one target does, at the layer and multiplier that validation chose."""

    layer: int
    depth: float
    multiplier: float
    keeps_mass: bool
    test: Shares
    controls: Mapping[str, ControlReport]
    significant: bool
    """Whether the effect is beyond every control: all lower limits are above 0. Wrong in at most 2.5 % of cases."""
    options_swapped: Shares | None
    accuracy: Mapping[str, tuple[Estimate, ...]]
    """Of questions of knowledge, by sample, at −multiplier, 0 and +multiplier."""
    latent: LatentReport | None = None
    vector_reading: VectorReading | None = None


@dataclass(frozen=True, kw_only=True)
class SteeringReport:
    """steering.json."""

    contrast: str
    model: str
    pairs: int
    questions: Mapping[str, int]
    """How many, for validation and test."""
    clusters: Mapping[str, int]
    """How many documents or stems these are of; intervals count them."""
    left_out: tuple[str, ...]
    """Questions of the test set that the pairs or the validation questions ask too."""
    vectors: Mapping[str, Any]
    """What it takes to make them again."""
    multipliers: tuple[float, ...]
    targets: Mapping[str, TargetReport]
    lens: str | None

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_report(path, to_json(self), FORMAT)

    @classmethod
    def read(cls, path: Path) -> "SteeringReport":
        """Raises ArtifactError for a file that is no such report."""
        return read_report(path, cls, FORMAT, _arranged)


def _arranged(content: dict[str, Any]) -> dict[str, Any]:
    """A report as it is now: one of format 1 took each question for independent, and judged by nonsense."""
    if "clusters" in content:
        return content
    targets = {name: {**target, "keeps_mass": target["within_nonsense"]} for name, target in content["targets"].items()}
    return {**content, "targets": targets, "clusters": content["questions"], "left_out": ()}


def through_the_lens(experiment: Experiment, adapter: ModelAdapter, lens: Lens) -> dict[Target, LatentEffect]:
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
    lens: Lens | None = None,
    latent: Mapping[Target, LatentEffect] | None = None,
    lens_name: str | None = None,
) -> SteeringReport:
    """What each target does on the test questions, with 95 % intervals, beside its controls; and what a lens sees of
    it."""
    targets: dict[str, TargetReport] = {}
    for target, outcome in experiment.outcomes.items():
        controls = {name: _control(outcome, name) for name in outcome.controls}
        targets[target] = TargetReport(
            layer=outcome.edit.layer,
            depth=adapter.depth(outcome.edit.layer),
            multiplier=outcome.multiplier,
            keeps_mass=outcome.keeps_mass,
            test=Shares.of(outcome.test),
            controls=controls,
            significant=all(control.effect_beyond.low > 0 for control in controls.values()),
            options_swapped=None if outcome.swapped is None else Shares.of(outcome.swapped),
            accuracy={
                name: tuple(share_estimate(row > 0) for row in scores.log_odds)
                for name, scores in outcome.capability.items()
            },
            latent=_latent(latent[target], outcome) if latent and target in latent else None,
            vector_reading=(
                _vector_reading(experiment, adapter, lens, outcome.edit.layer) if lens and target != "state" else None
            ),
        )
    contrast = experiment.contrast
    return SteeringReport(
        contrast=contrast.name,
        model=adapter.name,
        pairs=len(contrast.pairs),
        questions={"validation": len(contrast.validation), "test": len(contrast.test)},
        clusters={
            "validation": len(set(clusters_of(contrast.validation).tolist())),
            "test": len(set(clusters_of(contrast.test).tolist())),
        },
        left_out=tuple(contrast.left_out),
        vectors=dict(experiment.vectors.about),
        multipliers=experiment.config.multipliers,
        targets=targets,
        lens=lens_name,
    )


def _control(outcome: Outcome, name: str) -> ControlReport:
    matching = outcome.controls[name].matching
    ranges = (matching[:, 1] - matching[:, 0]).mean(-1)
    return ControlReport(ranges=tuple(ranges.tolist()), effect_beyond=outcome.beyond(name))


def _latent(effect: LatentEffect, outcome: Outcome) -> LatentReport:
    return LatentReport(
        layers=(*effect.layers, "model"),
        depths=tuple(effect.depths.tolist()),
        multipliers=(-outcome.multiplier, outcome.multiplier),
        log_odds_change=tuple(map(tuple, effect.log_odds.mean(-1).tolist())),
        kl=tuple(map(tuple, effect.kl.mean(-1).tolist())),
    )


def _vector_reading(experiment: Experiment, adapter: ModelAdapter, lens: Lens, layer: int) -> VectorReading:
    questions = experiment.contrast.test
    reading = read_vector(lens, experiment.vectors.residual(layer), layer, mean_hidden(adapter, questions, layer))
    promoted, suppressed = top_tokens(reading)
    read, question = token_reader(adapter.tokenizer), questions[0]
    return VectorReading(
        layer=layer,
        promoted=tuple(map(read, promoted)),
        suppressed=tuple(map(read, suppressed)),
        answers={"matching": float(reading[question.matching]), "other": float(reading[question.other])},
    )


_COLUMNS = ("split", "target", "layer", "depth", "multiplier", "matching", "matching_low", "matching_high", "nonsense")


def table(experiment: Experiment, adapter: ModelAdapter) -> str:
    """steering.csv: a row for every split, target, layer and multiplier; means over the questions."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*_COLUMNS, "log_odds"])
    for split, scores in (("validation", experiment.validation), ("test", experiment.test)):
        for e, edit in enumerate(experiment.edits):
            for m, multiplier in enumerate(experiment.config.multipliers):
                cell = scores[e, m]
                where = [split, edit.target, edit.layer, adapter.depth(edit.layer), multiplier]
                rows.writerow([*where, *cell.mean(cell.matching, SHARE), cell.nonsense.mean(), cell.log_odds.mean()])
    return text.getvalue()


def brief(report: SteeringReport) -> str:
    """A line for each target: what a person wants to know first; and what to know of the questions."""
    questions, clusters = report.questions["test"], report.clusters["test"]
    of_them = "" if clusters == questions else f", which are {clusters} independent clusters"
    lines = [f"{report.contrast}: share of the matching answer on {questions} test questions{of_them}"]
    for name, target in report.targets.items():
        low, middle, high = (share.value for share in target.test.matching)
        spread = target.test.range
        verdict = "beyond every control" if target.significant else "not beyond its controls"
        lines.append(
            f"  {name:8} layer {target.layer}, ±{target.multiplier:g}: {low:.3f} ← {middle:.3f} → {high:.3f}, "
            f"range {spread.value:+.3f} [{spread.low:+.3f}, {spread.high:+.3f}], {verdict}"
        )
        if not target.keeps_mass:
            lines.append(f"  {name:8} no layer and multiplier leaves enough probability on both answers (--least-mass)")
    if report.left_out:
        lines.append(
            f"  {len(report.left_out)} test questions are left out: vectors, or layer and multiplier, come from "
            "questions that ask the same"
        )
    if clusters < FEW_CLUSTERS:
        lines.append(
            f"  {clusters} clusters are few: below {FEW_CLUSTERS}, intervals can cover less than their 95 %; give more "
            "documents, or more questions"
        )
    return "\n".join(lines)
