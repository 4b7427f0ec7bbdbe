"""What intervals of means cover: of populations whose mean is known, and of the demonstration's own questions.

python benchmarks/interval_coverage.py
python benchmarks/interval_coverage.py --model checkpoints/tiny-mamba
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.data import DataConfig, open_source
from lens_rnn.errors import ConfigError
from lens_rnn.intervals import Estimate, estimate, mean_estimate, row_weights, share_estimate
from lens_rnn.models import load_model
from lens_rnn.ranges import SEED, check_ranges, number, whole
from lens_rnn.steering import (
    Edit,
    NextWordConfig,
    Question,
    VectorConfig,
    fit_vectors,
    next_word_contrast,
    score_answers,
)
from lens_rnn.steering.evaluation import TARGETS, beyond_controls

import numpy as np
from tqdm import tqdm

from common import report

Sampler = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""Values (kinds, rows) and clusters (rows) of a sample of so many clusters."""
TRUTH = 100_000
"""Clusters whose mean is taken for that of the population."""
TRUTH_DRAWS = 5_000
"""Samples whose mean is taken for that of the demonstration's population."""
CONTROLS = 5


@dataclass(frozen=True, kw_only=True)
class Config:
    """How often 95 % intervals hold the mean."""

    repetitions: Annotated[int, whole(1)] = 2000
    """Samples of each population: of 95 % their share has a standard error of 0.5 percentage points."""
    clusters: Annotated[tuple[int, ...], whole(2)] = (10, 20, 40)
    """Of a sample."""
    model: str | None = None
    """Folder of a demo model: steered at the layers below, its answers at all places that made no vector are the
    population in place of the made ones, and samples have the demonstration's size."""
    residual_layer: Annotated[int, whole()] = 6
    """Where the residual stream is steered."""
    state_layer: Annotated[int, whole()] = 5
    """Where the state is steered, and where both are."""
    multiplier: Annotated[float, number(above=0)] = 3.0
    """The vectors' multiplier, in both signs."""
    questions: Annotated[int, whole(2)] = 50
    """Of the demonstration, for a model."""
    seed: Annotated[int, SEED] = 0
    """Of the samples."""
    output: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.clusters:
            raise ConfigError("clusters is empty; name at least one number of them")


# --- populations ------------------------------------------------------------------------------------------------------


def rows_of(random: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal values (rows), half of whose variance is their cluster's, and clusters of one or two rows."""
    of_row = np.repeat(np.arange(clusters), random.integers(1, 3, clusters))
    shared = random.normal(size=clusters)[of_row]
    return np.sqrt(0.5) * (shared + random.normal(size=len(of_row))), of_row


def transformed(change: Callable[[np.ndarray], np.ndarray]) -> Sampler:
    """Values that are some function of a normal one."""

    def sample(random: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray]:
        z, of_row = rows_of(random, clusters)
        return change(z)[None], of_row

    return sample


def exceptional(share: float) -> Sampler:
    """Ranges of 1, but anything in some clusters."""

    def sample(random: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray]:
        z, of_row = rows_of(random, clusters)
        other = (random.random(clusters) < share)[of_row]
        return np.where(other, random.uniform(-1, 1, len(z)), 0.998)[None], of_row

    return sample


def beside_controls(*means: float) -> Sampler:
    """Ranges of mean 0.5, and below them those of controls of some means, which have much in common."""

    def sample(random: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = random.integers(1, 3, clusters)
        of_row = np.repeat(np.arange(clusters), sizes)
        common, own = random.normal(size=(1, clusters)), random.normal(size=(len(means) + 1, clusters))
        noise = random.normal(size=(len(means) + 1, len(of_row)))
        return np.array([0.5, *means])[:, None] + 0.3 * ((common + own)[:, of_row] + noise), of_row

    return sample


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- intervals --------------------------------------------------------------------------------------------------------


def of_rows(values: np.ndarray, _: np.ndarray) -> Estimate:
    """A way that does not hold, for comparison: percentiles, and every row by itself."""
    weights = row_weights(values.shape[1])
    return estimate(values[0].mean(), weights @ values[0] / weights.sum(1))


def of_clusters(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    return mean_estimate(values[0], clusters)


def within(least: float, most: float) -> Callable[[np.ndarray, np.ndarray], Estimate]:
    return lambda values, clusters: mean_estimate(values[0], clusters, possible=(least, most))


def beyond(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    return beyond_controls(values[0], values[1:], clusters)


def beyond_the_largest(values: np.ndarray, _: np.ndarray) -> Estimate:
    """Another that does not: the largest control taken anew in each resample."""
    weights = row_weights(values.shape[1]) / values.shape[1]
    means = values.mean(1)
    return estimate(means[0] - np.abs(means[1:]).max(), weights @ values[0] - np.abs(weights @ values[1:].T).max(1))


def distance_of(values: np.ndarray) -> float:
    """From the largest control."""
    means = values.mean(1)
    return float(means[0] - np.abs(means[1:]).max())


@dataclass(frozen=True)
class Case:
    """An interval, and what it is tried on."""

    interval: str
    population: str
    sample: Sampler
    of_sample: Callable[[np.ndarray, np.ndarray], Estimate]
    truth: float


def made_cases(seed: int) -> Iterator[Case]:
    """Populations made up, for each kind of interval."""
    random = np.random.default_rng(seed)
    shares: list[tuple[str, Sampler]] = [
        ("shares about 0.6", transformed(lambda z: sigmoid(2 * z + 0.5))),
        ("shares about 0.96", transformed(lambda z: sigmoid(1.5 * z + 4))),
        ("shares about 0.99", transformed(lambda z: sigmoid(2 * z + 6))),
    ]
    ranges = [
        ("ranges about 0.1", transformed(lambda z: np.tanh(0.5 * z + 0.1))),
        ("ranges about 0.9", transformed(lambda z: 2 * sigmoid(2 * z + 4) - 1)),
        ("ranges of 1, 3 % other", exceptional(0.03)),
        ("ranges of 1, 20 % other", exceptional(0.2)),
    ]
    others = [("symmetric", transformed(lambda z: z)), ("skewed (lognormal)", transformed(np.exp))]
    for kind, of_sample, populations in (
        ("log-odds, change of log-odds", of_clusters, others),
        ("share, nonsense", within(0, 1), shares),
        ("range", within(-1, 1), ranges),
        ("(rows, percentiles)", of_rows, [others[0], ranges[1]]),
    ):
        for population, sample in populations:
            yield Case(kind, population, sample, of_sample, float(sample(random, TRUTH)[0].mean()))
    for name, controls in (
        ("five alike, of no effect", (0.0,) * CONTROLS),
        ("five alike, of 0.5", (0.5,) * CONTROLS),
        ("one of 0.3, four of none", (0.3, *(0.0,) * (CONTROLS - 1))),
    ):
        truth = 0.5 - max(controls)
        yield Case("beyond controls", name, beside_controls(*controls), beyond, truth)
        yield Case("(beyond the largest)", name, beside_controls(*controls), beyond_the_largest, truth)


def hits_cases() -> Iterator[Case]:
    """Accuracies of independent questions."""
    for p in (0.25, 0.5, 0.9, 0.98):

        def sample(random: np.random.Generator, questions: int, p: float = p) -> tuple[np.ndarray, np.ndarray]:
            return (random.random((1, questions)) < p).astype(float), np.arange(questions)

        yield Case("accuracy", f"{p} of questions", sample, lambda values, _: share_estimate(values[0]), p)


def demonstration_cases(config: Config) -> Iterator[Case]:
    """The demonstration's own questions: its range and what lies beyond controls, of documents drawn as it draws
    them."""
    adapter = load_model(str(config.model), device="cpu")
    everywhere = NextWordConfig(questions=10_000, places=1, seed=config.seed)
    contrast = next_word_contrast(open_source(DataConfig()), adapter.tokenizer, everywhere)
    fitted = fit_vectors(adapter, contrast.pairs[:400], VectorConfig(shuffles=CONTROLS, seed=config.seed))
    vectors = [fitted.vectors, *(fitted.vectors.random(config.seed + i) for i in range(CONTROLS)), *fitted.shuffled]
    questions = [*contrast.validation, *contrast.test]
    documents = places_by_document([contrast.validation, contrast.test])
    for target in TARGETS:
        layer = config.residual_layer if target == "residual" else config.state_layer
        edits, times = [Edit(each, target, layer) for each in vectors], (-config.multiplier, config.multiplier)
        with tqdm(total=len(questions), desc=target, unit="question") as bar:
            matching = score_answers(adapter, questions, edits, times, bar.update).matching
        ranges = matching[:, 1] - matching[:, 0]  # (vectors, questions)
        for kind, rows, of_sample in (
            ("range", [0], within(-1, 1)),
            ("beyond random", [*range(1 + CONTROLS)], beyond),
            ("beyond shuffled", [0, *range(1 + CONTROLS, 1 + 2 * CONTROLS)], beyond),
        ):
            sample = drawn_as_the_demonstration(ranges[rows], documents, config.questions // 2)
            random = np.random.default_rng(config.seed + 1)
            means = np.mean([sample(random, 0)[0].mean(1) for _ in range(TRUTH_DRAWS)], axis=0)
            truth = float(means[0]) if kind == "range" else distance_of(means[:, None])
            yield Case(kind, f"{target}, layer {layer}", sample, of_sample, truth)


def places_by_document(parts: Sequence[Sequence[Question]]) -> list[tuple[list[int], list[int]]]:
    """Of each document the numbers of its questions, before the one word and before the other."""
    documents: dict[str | None, tuple[list[int], list[int]]] = {}
    number = 0
    for part in parts:
        for i, question in enumerate(part):
            documents.setdefault(question.cluster, ([], []))[2 * i >= len(part)].append(number)
            number += 1
    return list(documents.values())


def drawn_as_the_demonstration(
    values: np.ndarray, documents: Sequence[tuple[list[int], list[int]]], wanted: int
) -> Sampler:
    """Documents drawn one by one, a place before each word of each, until so many are there before both."""

    def sample(random: np.random.Generator, _: int) -> tuple[np.ndarray, np.ndarray]:
        rows, clusters, missing = [], [], [wanted, wanted]
        for cluster in count():
            for side, places in enumerate(documents[int(random.integers(len(documents)))]):
                if places and missing[side]:
                    rows.append(places[random.integers(len(places))])
                    clusters.append(cluster)
                    missing[side] -= 1
            if not any(missing):
                break
        return values[:, rows], np.array(clusters)

    return sample


# --- the table --------------------------------------------------------------------------------------------------------


def covered(case: Case, clusters: int, repetitions: int, random: np.random.Generator) -> tuple[float, float, float]:
    """Shares of samples whose interval holds the truth, lies above it, and below it."""
    above = below = 0
    for _ in range(repetitions):
        limits = case.of_sample(*case.sample(random, clusters))
        above += limits.low > case.truth
        below += limits.high < case.truth
    return 1 - (above + below) / repetitions, above / repetitions, below / repetitions


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    made = config.model is None
    cases = [*made_cases(config.seed), *hits_cases()] if made else list(demonstration_cases(config))
    sizes = config.clusters if made else (config.questions,)
    unit = "clusters" if made else "questions"
    header = ["interval", "population", "truth", *(f"{size} {unit}" for size in sizes), "too high, too low"]
    rows = []
    for case in tqdm(cases, desc="simulating"):
        random = np.random.default_rng(config.seed)
        results = [covered(case, size, config.repetitions, random) for size in sizes]
        sides = f"{100 * results[-1][1]:.1f}, {100 * results[-1][2]:.1f} %"
        shares = [f"{100 * holding:.1f} %" for holding, *_ in results]
        rows.append([case.interval, case.population, f"{case.truth:.3f}", *shares, sides])
    notes = [f"{config.repetitions} samples each, seed {config.seed}; the last column is of the last size."]
    report(f"What 95 % intervals cover: {config.model or 'made populations'}", header, rows, notes, config.output)


if __name__ == "__main__":
    cli.run(main, Config)
