"""A steering experiment: vectors from pairs, layer and multiplier chosen on validation questions, the effect reported
on others, beside controls that have none. Protocol: Paulo, Marshall & Belrose 2024, arXiv 2404.05971, section 3, with
what it leaves open closed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from lens_rnn.errors import ConfigError
from lens_rnn.intervals import Estimate
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import SEED, check_ranges, number, whole
from lens_rnn.steering.contrasts import Contrast
from lens_rnn.steering.evaluation import TARGETS, Edit, Scores, Target, beyond_controls, edits_of, score_answers
from lens_rnn.steering.pairs import Question
from lens_rnn.steering.vectors import Fitted, Method, SteeringVectors, VectorConfig, fit_vectors

import numpy as np

MULTIPLIERS = (-3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.0)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What is tried, and how it is judged."""

    method: Method = "mean"
    """How a vector is made: mean, lda or logistic."""
    shrinkage: Annotated[float, number(0, 1)] = 0.1
    """Of the within-class covariance towards its mean diagonal, for lda."""
    targets: tuple[Target, ...] = TARGETS
    """What is steered: residual, state, both."""
    layers: Annotated[tuple[int, ...], whole()] = ()
    """Layers that are tried, one at a time. Default: all, but the residual stream not at a trivial layer, where it is
    the final norm's input."""
    multipliers: Annotated[tuple[float, ...], number()] = MULTIPLIERS
    """Tried at each layer: 0 and at least one value in both signs. Default: those of the paper."""
    controls: Annotated[int, whole(1)] = 5
    """Random vectors, and as many vectors from shuffled labels, that the effect is held against."""
    least_mass: Annotated[float, number(0, 1)] = 0.5
    """Share of the unsteered probability of both answers that must be left at the layer and multiplier chosen."""
    seed: Annotated[int, SEED] = 0
    """Of the controls and the bootstrap."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if unknown := [target for target in self.targets if target not in TARGETS]:
            raise ConfigError(f"target {unknown[0]!r} is unknown; choose from {', '.join(TARGETS)}")
        if not self.targets:
            raise ConfigError("targets is empty; name at least one of " + ", ".join(TARGETS))
        for name in ("targets", "layers", "multipliers"):
            values = getattr(self, name)
            if twice := [value for i, value in enumerate(values) if value in values[:i]]:
                raise ConfigError(f"{name} name {twice[0]} twice; name each once")
        if 0 not in self.multipliers or not self.strengths:
            raise ConfigError(f"multipliers are {self.multipliers}; they need 0, and a value in both signs")

    @property
    def vectors(self) -> VectorConfig:
        """How the vectors are made."""
        return VectorConfig(
            method=self.method,
            states=self.targets != ("residual",),
            shrinkage=self.shrinkage,
            shuffles=self.controls,
            seed=self.seed,
        )

    @property
    def strengths(self) -> tuple[float, ...]:
        """Multipliers above 0 that are there in both signs."""
        return tuple(m for m in sorted(set(self.multipliers)) if m > 0 and -m in self.multipliers)


class Outcome(NamedTuple):
    """What came of one target at the layer and multiplier that validation chose. Ranges are matching at +multiplier
    less at −multiplier."""

    edit: Edit
    multiplier: float
    keeps_mass: bool
    """Whether it leaves `least_mass`, on the validation questions; if no layer and multiplier did, the one that leaves
    most was taken."""
    test: Scores
    """log_p (3, questions, 2), at −multiplier, 0 and +multiplier."""
    controls: Mapping[str, Scores]
    """"random", "shuffled": log_p (controls, 2, questions, 2), at −multiplier and +multiplier."""
    swapped: Scores | None
    """As `test`, on the questions with their options exchanged."""
    capability: Mapping[str, Scores]
    """As `test`, on questions of knowledge."""

    @property
    def ranges(self) -> np.ndarray:
        """(questions)"""
        return self.test.matching[2] - self.test.matching[0]

    def beyond(self, control: str) -> Estimate:
        """How far the mean range lies beyond the largest of the control's."""
        matching = self.controls[control].matching
        return beyond_controls(self.ranges, matching[:, 1] - matching[:, 0], self.test.clusters)


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """All that was measured."""

    contrast: Contrast
    config: ExperimentConfig
    vectors: SteeringVectors
    edits: Sequence[Edit]
    """Every target at every layer."""
    validation: Scores
    """log_p (edits, multipliers, questions, 2)."""
    test: Scores
    outcomes: Mapping[Target, Outcome]


def run_experiment(
    adapter: ModelAdapter,
    contrast: Contrast,
    config: ExperimentConfig,
    capability: Mapping[str, Sequence[Question]] | None = None,
    on_question: Callable[[int], Any] | None = None,
) -> Experiment:
    """The whole of it. on_question is told the validation and test questions done.

    Raises what `fit_vectors` and `score_answers` raise.
    """
    fitted = fit_vectors(adapter, contrast.pairs, config.vectors, contrast.about)
    edits = edits_of(adapter, fitted.vectors, config.targets, config.layers)
    validation, test = (
        score_answers(adapter, q, edits, config.multipliers, on_question) for q in (contrast.validation, contrast.test)
    )
    outcomes = {}
    for target in config.targets:
        index, multiplier, keeps = choose(validation, edits, target, config)
        kept = [config.multipliers.index(m) for m in (-multiplier, 0, multiplier)]
        outcome = Outcome(edits[index], multiplier, keeps, test[index, kept], {}, None, {})
        outcomes[target] = _against_controls(adapter, contrast, fitted, outcome, capability or {}, config)
    return Experiment(
        contrast=contrast,
        config=config,
        vectors=fitted.vectors,
        edits=edits,
        validation=validation,
        test=test,
        outcomes=outcomes,
    )


def choose(
    validation: Scores, edits: Sequence[Edit], target: Target, config: ExperimentConfig
) -> tuple[int, float, bool]:
    """The edit of a target, by its index, and the multiplier with the largest range of matching on the validation
    questions, among those that leave `least_mass` on both answers, in both signs; and whether any did."""
    matching, mass = validation.matching.mean(-1), validation.mass.mean(-1)  # (edits, multipliers)
    at = {m: i for i, m in enumerate(config.multipliers)}
    tried = [
        (
            float(matching[e, at[m]] - matching[e, at[-m]]),
            float(min(mass[e, at[m]], mass[e, at[-m]]) / mass[e, at[0.0]]),
            e,
            m,
        )
        for e, edit in enumerate(edits)
        for m in config.strengths
        if edit.target == target
    ]
    sensible = [attempt for attempt in tried if attempt[1] >= config.least_mass]
    *_, index, multiplier = max(sensible) if sensible else max(tried, key=lambda attempt: attempt[1])
    return index, multiplier, bool(sensible)


def _against_controls(
    adapter: ModelAdapter,
    contrast: Contrast,
    fitted: Fitted,
    outcome: Outcome,
    capability: Mapping[str, Sequence[Question]],
    config: ExperimentConfig,
) -> Outcome:
    """The outcome with its controls, on the test questions, and with what else the same edit does."""
    edit, times = outcome.edit, (-outcome.multiplier, 0.0, outcome.multiplier)
    random = [fitted.vectors.random(config.seed + i) for i in range(config.controls)]
    edits = [edit._replace(vectors=vectors) for vectors in (*random, *fitted.shuffled)]
    scores = score_answers(adapter, contrast.test, edits, (times[0], times[2]))
    return outcome._replace(
        controls={"random": scores[: len(random)], "shuffled": scores[len(random) :]},
        swapped=score_answers(adapter, contrast.swapped, [edit], times)[0] if contrast.swapped else None,
        capability={name: score_answers(adapter, asked, [edit], times)[0] for name, asked in capability.items()},
    )
