"""Probes: linear readings of features, with and without labels. Each is fitted by a function and gives a `LinearProbe`.

Features are x (rows, width), or contrast pairs (rows, variants, 2, width), the states after the false and after the
true answer.

    lr              logistic regression
    mean_diff       difference of the class means
    lda             linear discriminant analysis
    lr_pair, mean_diff_pair    the same on both states of a contrast pair
    ccs             contrast-consistent search, Burns et al. 2022, arXiv 2212.03827, eq. 1 to 3
    crc             contrastive representation clustering, top principal component of the difference; ibid., section 3.3
                    (there CRC-TPC)
    vinc            variance, invariance, negative covariance: EleutherAI's successor of CCS, whose directions solve an
                    eigenproblem

A direction found without labels has no sign. It is taken from the labels it was fitted beside (AUROC below one half
turns it), and told in `LinearProbe.turned`, as the papers do. What a direction gives that nobody looked for is measured
with `elk/controls.py`, by many, drawn in the coordinates that a probe of the kind seeks its own in: `Kind.drawn`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from lens_rnn.directions import divisor, linear_discriminant, logistic, mean_difference, standardised
from lens_rnn.elk.scores import auroc
from lens_rnn.errors import ConfigError, DataError

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

PENALTY = 1e-3
"""Weight of ½‖w‖² beside the mean loss of a logistic regression, on features of unit variance."""
CCS_TRIES = 10


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: log-odds(x) = weight · x + bias."""

    weight: np.ndarray
    """Of the shape of one row of x, float64."""
    bias: float
    turned: bool = False
    """Whether labels turned a direction that was found without them."""

    def log_odds(self, x: np.ndarray) -> np.ndarray:
        """(rows): how much rather true than false, of x (rows, …)."""
        if x.shape[1:] != self.weight.shape:
            raise DataError(
                f"a probe fitted on features of shape {self.weight.shape} cannot read features of shape {x.shape[1:]}"
            )
        return x.reshape(len(x), -1).astype(np.float64) @ self.weight.ravel() + self.bias

    @property
    def direction(self) -> np.ndarray:
        """The weight, of length 1."""
        return self.weight / max(float(np.linalg.norm(self.weight)), 1e-300)


Drawn = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From features x (rows, …) and directions of standard normal numbers (draws, numbers of a row), of which the first of
a draw are taken, to weights of the shape of a row of x each."""


class Kind(NamedTuple):
    """How a probe is fitted, and on what."""

    fit: Callable[[np.ndarray, np.ndarray, np.random.Generator], LinearProbe]
    pairs: bool
    """Whether it reads contrast pairs, or single states."""
    labels: bool
    """Whether it takes labels. What does not can also be fitted on both contexts mixed, and labels give its sign."""
    drawn: Drawn
    """Weights of directions at random, for its controls."""
    standard: bool = False
    """Whether it stands for those with labels, or without: its curves are drawn. That with labels, on last hidden
    states, gives floor and ceiling of the gap, and its log-odds are searched for anomalies."""


def fit_probe(name: str, x: np.ndarray, y: np.ndarray, seed: int = 0) -> LinearProbe:
    """Fit the probe of that name on x, see above, and labels y (rows), booleans.

    Raises ConfigError for an unknown name or the wrong kind of features, DataError where a class is absent or a feature
    is not finite.
    """
    if name not in PROBES:
        raise ConfigError(f"no probe {name!r}; choose from {', '.join(PROBES)}")
    kind, y = PROBES[name], np.asarray(y, dtype=bool)
    if (x.ndim == 4) != kind.pairs:
        reads = "contrast pairs" if kind.pairs else "single states"
        raise ConfigError(f"the probe {name} reads {reads}; features of shape {x.shape} are not")
    if y.all() or not y.any():
        raise DataError(f"a probe needs rows of both classes; all {len(y)} rows are {bool(y.any())}")
    if not np.isfinite(x).all():
        raise DataError(
            f"the features for the probe {name} are not all finite; the model overflows in its number format"
        )
    random = np.random.default_rng(seed)
    probe = kind.fit(x.astype(np.float64), y, random)
    if not kind.labels and auroc(y, probe.log_odds(x)) < 0.5:
        probe = replace(probe, weight=-probe.weight, bias=-probe.bias, turned=True)
    return probe


# --- with labels ------------------------------------------------------------------------------------------------------


def _lr(x: np.ndarray, y: np.ndarray, _: np.random.Generator) -> LinearProbe:
    return LinearProbe(*logistic(x, y, 1 / (PENALTY * len(x))))


def _mean_diff(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> LinearProbe:
    """Scale and bias by logistic regression on the direction's score (Platt)."""
    direction = mean_difference(x, y)
    scaled = _lr((x @ direction)[:, None], y, random)
    return LinearProbe(direction * scaled.weight[0], scaled.bias)


def _lda(x: np.ndarray, y: np.ndarray, _: np.random.Generator) -> LinearProbe:
    return LinearProbe(*linear_discriminant(x, y))


def _on_pairs(fit: Callable[[np.ndarray, np.ndarray, np.random.Generator], LinearProbe]) -> Callable[..., LinearProbe]:
    """The same probe on both states of a row's own prompt, end to end."""

    def fit_on_pairs(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> LinearProbe:
        probe = fit(x[:, 0].reshape(len(x), -1), y, random)
        return replace(probe, weight=_of_first_variant(probe.weight.reshape(x.shape[2:]), x))

    return fit_on_pairs


def _of_first_variant(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Weights (2, width) of a row's own prompt among weights (variants, 2, width), the others zero."""
    whole = np.zeros(x.shape[1:])
    whole[0] = weight
    return whole


# --- without labels ---------------------------------------------------------------------------------------------------


def _normed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (…, 2, width), those of each answer less their mean, all over a common deviation: which answer it was is no
    longer told."""
    axes = tuple(range(x.ndim - 2))
    mean = x.mean(axes)  # (2, width)
    centred = x - mean
    deviation = divisor(np.sqrt((centred**2).mean((*axes, x.ndim - 2))))  # (width)
    return centred / deviation, mean, deviation


def _difference(direction: np.ndarray, mean: np.ndarray, deviation: np.ndarray, x: np.ndarray) -> LinearProbe:
    """Half the difference of both answers' scores along a direction found on normed pairs, of a row's own prompt."""
    half = direction / deviation / 2
    return LinearProbe(_of_first_variant(np.stack([-half, half]), x), float(half @ (mean[0] - mean[1])))


def _ccs(x: np.ndarray, _: np.ndarray, random: np.random.Generator) -> LinearProbe:
    """Minimise (p₁ + p₀ − 1)² + min(p₀, p₁)² from several starts, and keep the best; the score is half the difference
    of the logits."""
    pairs, mean, deviation = _normed(x[:, 0])
    false, true = pairs[:, 0], pairs[:, 1]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = parameters[:-1], parameters[-1]
        p0, p1 = expit(false @ w + b), expit(true @ w + b)
        excess, lower = p0 + p1 - 1, np.minimum(p0, p1)
        g0 = 2 * (excess + np.where(p0 <= p1, lower, 0)) * p0 * (1 - p0) / len(p0)  # gradient at the logits
        g1 = 2 * (excess + np.where(p1 < p0, lower, 0)) * p1 * (1 - p1) / len(p1)
        value = (excess**2 + lower**2).mean() + PENALTY / 2 * w @ w
        return value, np.append(g0 @ false + g1 @ true + PENALTY * w, (g0 + g1).sum())

    starts = random.standard_normal((CCS_TRIES, pairs.shape[-1] + 1)) / np.sqrt(pairs.shape[-1])
    best = min(
        (minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}) for start in starts),
        key=lambda r: r.fun,
    )
    return _difference(best.x[:-1], mean, deviation, x)


def _crc(x: np.ndarray, _: np.ndarray, __: np.random.Generator) -> LinearProbe:
    pairs, mean, deviation = _normed(x[:, 0])
    difference = pairs[:, 1] - pairs[:, 0]
    return _difference(np.linalg.eigh(difference.T @ difference)[1][:, -1], mean, deviation, x)


def _vinc(x: np.ndarray, _: np.ndarray, __: np.random.Generator) -> LinearProbe:
    """The largest eigenvector of variance − invariance − covariance on normed pairs, all weighted 1: scores should
    differ between rows, agree between a row's prompts, and be opposite for its two answers. With one prompt a row the
    second term is zero. The score is the mean over prompts of half the difference."""
    pairs, mean, deviation = _normed(x)  # (rows, variants, 2, width)
    rows, variants = pairs.shape[:2]
    centroid = pairs.mean(1)  # (rows, 2, width)
    variance = sum(centroid[:, a].T @ centroid[:, a] for a in (0, 1)) / (2 * rows)
    cross = centroid[:, 0].T @ centroid[:, 1] / rows
    spread = (pairs - centroid[:, None]).reshape(-1, pairs.shape[-1])
    invariance = spread.T @ spread / (2 * rows * max(1, variants - 1))
    direction = np.linalg.eigh(variance - invariance - (cross + cross.T) / 2)[1][:, -1]
    half = direction / deviation / 2 / variants
    weight = np.broadcast_to(np.stack([-half, half]), x.shape[1:]).copy()
    return LinearProbe(weight, float(variants * half @ (mean[0] - mean[1])))


# --- without a search -------------------------------------------------------------------------------------------------


def drawn_single(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Directions on standardised columns."""
    return directions / standardised(x).deviation


def _drawn_ends(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """The same on both states of a row's own prompt, end to end."""
    ends = drawn_single(x[:, 0].reshape(len(x), -1), directions[:, : x[0, 0].size])
    return np.stack([_of_first_variant(weight.reshape(x.shape[2:]), x) for weight in ends])


def _drawn_difference(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Differences along directions on normed pairs, of a row's own prompt."""
    _, mean, deviation = _normed(x[:, 0])
    return np.stack([_difference(w, mean, deviation, x).weight for w in directions[:, : x.shape[-1]]])


def _drawn_mean_difference(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Their mean over a row's prompts."""
    _, _, deviation = _normed(x)
    half = (directions[:, : x.shape[-1]] / deviation)[:, None, None]  # (draws, 1, 1, width)
    return np.broadcast_to(np.concatenate([-half, half], 2), (len(directions), *x.shape[1:]))


PROBES: dict[str, Kind] = {
    "lr": Kind(_lr, pairs=False, labels=True, drawn=drawn_single, standard=True),
    "mean_diff": Kind(_mean_diff, pairs=False, labels=True, drawn=drawn_single),
    "lda": Kind(_lda, pairs=False, labels=True, drawn=drawn_single),
    "lr_pair": Kind(_on_pairs(_lr), pairs=True, labels=True, drawn=_drawn_ends),
    "mean_diff_pair": Kind(_on_pairs(_mean_diff), pairs=True, labels=True, drawn=_drawn_ends),
    "ccs": Kind(_ccs, pairs=True, labels=False, drawn=_drawn_difference),
    "crc": Kind(_crc, pairs=True, labels=False, drawn=_drawn_difference, standard=True),
    "vinc": Kind(_vinc, pairs=True, labels=False, drawn=_drawn_mean_difference),
}
"""All there are: transfers, pictures and the script take from here what they fit, on what, and what stands out."""
SUPERVISED, UNSUPERVISED = (
    next(name for name, kind in PROBES.items() if kind.standard and kind.labels is labels) for labels in (True, False)
)
"""The standard ones."""
READER = "reader"
"""The probe that is none: the feature is a log-odds already."""
