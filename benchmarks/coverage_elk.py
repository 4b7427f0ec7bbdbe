"""Whether what eval/elk.py prints as 95 % intervals holds the truth so often, where the truth is known.

python benchmarks/coverage_elk.py
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.directions import mean_difference
from lens_rnn.elk.generators import generate
from lens_rnn.elk.probes import LinearProbe
from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.reading import ProbeScores
from lens_rnn.elk.scores import area, auroc, auroc_estimate, ratio_estimate
from lens_rnn.elk.selection import earliest_informative, folds, validated
from lens_rnn.elk.subsets import TRANSFERS, home, members, questions
from lens_rnn.elk.transfer import score_transfers
from lens_rnn.ranges import SEED, number, whole

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from common import report

WIDTH = 4
SCALES = {"alike": (1.0, 1.0), "positives wider": (3.0, 1.0), "negatives wider": (1.0, 3.0)}
"""Standard deviations of positives' and negatives' scores."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Coverage of the intervals of AUROCs and recovered gaps."""

    layers: Annotated[tuple[int, ...], whole(1)] = (8, 24, 64)
    """Layers of noise from which one is chosen."""
    questions: Annotated[int, whole(1)] = 160
    """Questions to fit on, and as many to report on, in the simulations of noise."""
    noise_runs: Annotated[int, whole(1)] = 200
    """Simulations of noise, for each number of layers."""
    areas: Annotated[tuple[float, ...], number(0.5, below=1)] = (0.5, 0.7, 0.9, 0.97)
    """True AUROCs."""
    sizes: tuple[str, ...] = ("4+4", "4+12", "12+36", "44+131", "175+175", "350+1050")
    """Positives and negatives scored. As in eval/elk.py's default: BH and AH 44+131, A and B 175+175, all 350+1050."""
    gap_questions: Annotated[tuple[int, ...], whole(1)] = (64, 160, 700)
    """Questions of the simulations of recovered gaps."""
    runs: Annotated[int, whole(1)] = 1000
    """Simulations of each AUROC and each gap."""
    seed: Annotated[int, SEED] = 0
    """Of everything."""
    output: Path | None = None
    """JSON file for the figures."""


class Tally:
    """How often intervals held the truth."""

    def __init__(self) -> None:
        self.held: dict[object, list[bool]] = {}

    def add(self, case: object, low: float, high: float, truth: float) -> None:
        self.held.setdefault(case, []).append(low - 1e-12 <= truth <= high + 1e-12)

    def cells(self) -> list[str]:
        """The lowest coverage of a case, and the mean."""
        shares = [float(np.mean(held)) for held in self.held.values()]
        return [str(len(shares)), f"{min(shares):.3f}", f"{np.mean(shares):.3f}"] if shares else ["0", "", ""]


def noise(layers: int, config: Config, random: np.random.Generator) -> tuple[Tally, Tally]:
    """One layer of noise, chosen on fitting rows and, for comparison, on the rows that are reported, in all
    transfers."""
    data = generate("comparison", {"validation": config.questions, "test": config.questions})
    fit, test = data.rows("validation"), data.rows("test")
    honest, lucky, own = Tally(), Tally(), labels(test)
    for _ in tqdm(range(config.noise_runs), desc=f"{layers} layers"):
        seen, unseen = (random.standard_normal((layers, len(rows), WIDTH)) for rows in (fit, test))
        reported: dict[str, list[ProbeScores]] = {"honest": [], "lucky": []}
        for subset in TRANSFERS:
            chosen, odds = read_noise(subset, fit, seen, unseen)
            at_home = home(test, subset)
            luckiest = earliest_informative([auroc(own[at_home], of_layer[at_home]) for of_layer in odds])
            for name, layer in (("honest", chosen), ("lucky", luckiest)):
                # the one that is reported, alone: curves over all layers are the rest of the work
                alone = ProbeScores("noise", "noise", subset, (1.0,), odds[[layer]], (False,), (0.5,), {})
                reported[name].append(alone)
        for tally, scores in ((honest, reported["honest"]), (lucky, reported["lucky"])):
            for r in score_transfers(scores, test):
                tally.add((r.train, r.test), r.auroc.low, r.auroc.high, 0.5)
    return honest, lucky


def labels(rows: Sequence[QuirkyRow]) -> np.ndarray:
    """What the context's character says."""
    return np.array([row.label for row in rows])


def read_noise(subset: str, fit: Sequence[QuirkyRow], seen: np.ndarray, unseen: np.ndarray) -> tuple[int, np.ndarray]:
    """The layer chosen, and what a probe of each says of test rows, (layers, rows): a difference of means; without
    labels, and where nothing is fitted, the first column."""
    if subset in ("all", "none"):
        y, at_home = labels(fit), home(fit, subset)
        signs = np.array([1.0 if auroc(y, x[:, 0]) >= 0.5 or subset == "none" else -1.0 for x in seen])
        areas = [auroc(y[at_home], sign * x[at_home, 0]) for sign, x in zip(signs, seen, strict=True)]
        return earliest_informative(areas), signs[:, None] * unseen[..., 0]
    among = members(fit, subset)
    rows = [row for row, chosen in zip(fit, among, strict=True) if chosen]
    y, at_home = labels(rows), home(rows, subset)
    fold = folds(questions(rows), np.array([2 * row.alice_label + row.bob_label for row in rows]))
    areas = [validated(plain, x[among], y, fold, at_home) for x in seen]
    odds = [plain(x[among], y).log_odds(read) for x, read in zip(seen, unseen, strict=True)]
    return earliest_informative(areas), np.stack(odds)


def plain(x: np.ndarray, y: np.ndarray) -> LinearProbe:
    """Difference of the means without scale and bias, of which no AUROC knows."""
    return LinearProbe(mean_difference(x, y), 0.0)


def single(size: str, config: Config, random: np.random.Generator) -> Tally:
    """AUROCs of so many rows, each its own cluster, and in pairs that have half of their variance in common."""
    positives, negatives = map(int, size.split("+"))
    positive, tally = np.repeat([True, False], [positives, negatives]), Tally()
    for truth in config.areas:
        for name, (wide, narrow) in SCALES.items():
            shift, scale = math.hypot(wide, narrow) * norm.ppf(truth), np.where(positive, wide, narrow)
            for _ in range(config.runs):
                scores = shift * positive + scale * random.standard_normal(len(positive))
                tally.add((truth, name), *auroc_estimate(positive, scores)[1:], truth)
        pairs = np.arange(len(positive)) // 2
        for _ in range(config.runs if positives >= 12 else 0):
            common = random.standard_normal(len(positive))[pairs]
            scores = math.sqrt(2) * norm.ppf(truth) * positive + (common + random.standard_normal(len(pairs))) / 2**0.5
            tally.add((truth, "pairs"), *auroc_estimate(positive, scores, pairs)[1:], truth)
    return tally


PULLS = {"probe": (1.5, 0.8), "floor": (0.3, 2.5), "ceiling": (3.5, 0.3)}
"""How far scores go with the truth, and with what Bob says."""


def gaps(count: int, config: Config, random: np.random.Generator) -> Iterator[tuple[str, Tally, float]]:
    """Recovered gaps of so many questions on all rows and on hard ones, and how often there is no interval. Floor and
    probe read Bob's rows, the ceiling Alice's of the same questions, with half of the variance in common."""
    test = generate("comparison", {"test": count}, config.seed).rows("test")
    truth, bob = (np.array([getattr(row, name) for row in test]) for name in ("alice_label", "bob_label"))
    number = questions(test)
    for subsets in (("B", "B", "A"), ("BH", "BH", "AH")):
        parts = [(members(test, s), *PULLS[name]) for s, name in zip(subsets, PULLS, strict=True)]
        exact = [true_area(truth[among], bob[among], *pulls) for among, *pulls in parts]
        expected, tally, none = (exact[0] - exact[1]) / (exact[2] - exact[1]), Tally(), 0
        for _ in range(config.runs):
            common = random.standard_normal(number.max() + 1)[number]
            areas = []
            for among, to_truth, to_bob in parts:
                noise_of_part = (common + random.standard_normal(len(test))) / math.sqrt(2)
                scores = to_truth * truth + to_bob * bob + noise_of_part
                areas.append(area(truth[among], scores[among], number[among], number.max() + 1))
            _, low, high = ratio_estimate(*areas)
            if np.isfinite(low):
                tally.add(subsets[0], low, high, expected)
            else:
                none += 1
        yield subsets[0], tally, none / config.runs


def true_area(truth: np.ndarray, bob: np.ndarray, to_truth: float, to_bob: float) -> float:
    """AUROC of normal scores of variance 1 around what truth and Bob make of them."""
    centre = to_truth * truth + to_bob * bob
    return float(norm.cdf((centre[truth][:, None] - centre[~truth]) / math.sqrt(2)).mean())


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    random, rows = np.random.default_rng(config.seed), []
    for layers in config.layers:
        honest, lucky = noise(layers, config, random)
        rows.append([f"AUROC, one of {layers} layers of noise", "transfer", *honest.cells()])
        rows.append([f"the same, layer chosen on the rows reported ({layers})", "transfer", *lucky.cells()])
    for size in tqdm(config.sizes, desc="AUROCs"):
        rows.append([f"AUROC, {size} rows", "truth and distribution", *single(size, config, random).cells()])
    for count in tqdm(config.gap_questions, desc="gaps"):
        for test, tally, none in gaps(count, config, random):
            name = f"gap recovered, {test}, {count} questions (no interval: {none:.1%})"
            rows.append([name, "", *tally.cells()])
    notes = [
        f"{config.noise_runs:,} simulations of noise with {config.questions} questions to fit on and as many to report "
        f"on, {config.runs:,} of each AUROC and gap, seed {config.seed}; true AUROCs "
        f"{', '.join(map(str, config.areas))}.",
        f"Simulation error of one case: {math.sqrt(0.05 * 0.95 / config.noise_runs):.3f} (noise), "
        f"{math.sqrt(0.05 * 0.95 / config.runs):.3f}; the lowest of several cases is lower by chance.",
    ]
    header = ["nominal 95 % interval", "a case is a", "cases", "lowest coverage", "mean coverage"]
    report("Coverage of ELK's intervals", header, rows, notes, config.output)


if __name__ == "__main__":
    cli.run(main, Config)
