"""Directions that tell two classes of states apart: difference of the means, linear discriminant, logistic regression.

Steering and ELK share the formulas and choose differently. Steering streams the states of pairs, several labellings at
once, so that nothing piles up whatever the model: its covariance is shrunk by a fixed share towards the mean of its
diagonal, and a singular one is refused. Probes hold their rows, standardise them, and shrink as far as Ledoit and Wolf
say, which takes all rows at once (fourth moments), class by class; their features may have columns that do not vary,
and what has no variance is left out. Steering needs a direction only; probes need a bias, too.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

_TINY = 1e-6  # of the largest: columns that vary less are left alone


class Affine(NamedTuple):
    """A score weight · x + bias, the higher the more x is of the positive class."""

    weight: np.ndarray
    """(width)"""
    bias: float


class Standard(NamedTuple):
    """Rows x (rows, width) as values of mean 0 and variance 1 in each column."""

    values: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def unfolded(self, weight: np.ndarray, bias: float) -> Affine:
        """The score of unchanged rows that does what weight and bias do on the values."""
        weight = weight / self.deviation
        return Affine(weight, float(bias - weight @ self.mean))


def standardised(x: np.ndarray) -> Standard:
    """x (rows, width) by columns."""
    mean, deviation = x.mean(0), divisor(x.std(0))
    return Standard((x - mean) / deviation, mean, deviation)


def divisor(deviation: np.ndarray) -> np.ndarray:
    """What columns are divided by: their deviation (width), or 1 where it is next to nothing beside the largest."""
    return np.where(deviation > _TINY * max(deviation.max(), 1e-300), deviation, 1.0)


def mean_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """μ₊ − μ₋ (width) of x (rows, width), y (rows) booleans (Marks & Tegmark 2023, arXiv 2310.06824)."""
    return np.asarray(x[y].mean(0) - x[~y].mean(0))


def logistic(x: np.ndarray, y: np.ndarray, c: float) -> Affine:
    """Log-odds by logistic regression on standardised columns, ½‖w‖² beside c times the summed loss."""
    standard = standardised(x)
    model = LogisticRegression(C=c, max_iter=1000).fit(standard.values, y)
    return standard.unfolded(model.coef_[0], float(model.intercept_[0]))


def linear_discriminant(x: np.ndarray, y: np.ndarray) -> Affine:
    """Log-odds of two Gaussians of one covariance: the classes' mean, each shrunk as Ledoit and Wolf say, on columns
    standardised twice, over all rows and in the class."""
    standard = standardised(x)
    classes = [standard.values[~y], standard.values[y]]
    within = sum(len(rows) / len(x) * _ledoit_wolf(rows) for rows in classes)
    weight = discriminant(mean_difference(standard.values, y), np.asarray(within), refuse_singular=False)
    centre = (classes[0].mean(0) + classes[1].mean(0)) / 2
    return standard.unfolded(weight, float(np.log(len(classes[1]) / len(classes[0])) - weight @ centre))


def _ledoit_wolf(rows: np.ndarray) -> np.ndarray:
    scaler = StandardScaler()
    covariance = ledoit_wolf(scaler.fit_transform(rows))[0]
    return np.asarray(scaler.scale_[:, None] * covariance * scaler.scale_)


def shrunk(covariance: np.ndarray, share: float) -> np.ndarray:
    """(1 − s) S + s tr(S)/d: covariance (d, d), or its diagonal (d), drawn towards its mean diagonal by a share s."""
    if covariance.ndim == 1:
        return (1 - share) * covariance + share * covariance.mean()
    return (1 - share) * covariance + share * covariance.diagonal().mean() * np.eye(len(covariance))


def discriminant(difference: np.ndarray, covariance: np.ndarray, *, refuse_singular: bool = True) -> np.ndarray:
    """Σ⁻¹ (μ₊ − μ₋), (d), of Σ (d, d) or its diagonal (d).

    refuse_singular: raise LinAlgError if Σ is not positive definite; else, of a whole Σ, the pseudo-inverse is taken.
    """
    if not np.isfinite(covariance).all():
        raise np.linalg.LinAlgError("a variance is not finite")
    if covariance.ndim == 1:
        if not (covariance > 0).all():
            raise np.linalg.LinAlgError("a variance is 0")
        return difference / covariance
    try:
        return np.asarray(linalg.cho_solve(linalg.cho_factor(covariance), difference))
    except np.linalg.LinAlgError:
        if refuse_singular:
            raise
        return np.asarray(linalg.lstsq(covariance, difference)[0])


class PairSums:
    """What directions need of the states of pairs, streamed in float64: sums on either side, for several labellings at
    once, and the scatter, which is the same for all.

    size: numbers in a state. scatter: "whole", "diagonal", or None where no covariance is asked for.
    """

    def __init__(self, size: int, labellings: int, scatter: str | None = None):
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.differences = torch.zeros(labellings, size, dtype=torch.float64)
        shape = (size, size) if scatter == "whole" else (size,)
        self.scatter = torch.zeros(shape, dtype=torch.float64) if scatter else None

    def add(self, positive: Tensor, negative: Tensor, signs: Tensor) -> None:
        """Take in some pairs, positive and negative (n, size), and which of them each labelling exchanges, signs
        (labellings, n) of ±1."""
        a, b = positive.double(), negative.double()
        self.count += len(a)
        self.total += a.sum(0) + b.sum(0)
        self.differences += signs.double() @ (a - b)
        if self.scatter is not None:
            self.scatter += a.T @ a + b.T @ b if self.scatter.ndim == 2 else (a * a + b * b).sum(0)

    def difference(self, labelling: int) -> np.ndarray:
        """μ₊ − μ₋ (size) of one labelling."""
        return np.asarray((self.differences[labelling] / self.count).numpy())

    def within(self, labelling: int) -> np.ndarray:
        """The mean of the two classes' covariances, E[x xᵀ] − c cᵀ − (μ₊ − μ₋)(μ₊ − μ₋)ᵀ ÷ 4 with c the mean of all,
        or its diagonal. Raises ValueError where no scatter was asked for."""
        if self.scatter is None:
            raise ValueError("no scatter was summed")
        second, centre = self.scatter / (2 * self.count), self.total / (2 * self.count)
        difference = torch.from_numpy(self.difference(labelling))
        if self.scatter.ndim == 1:
            return np.asarray((second - centre**2 - difference**2 / 4).clamp(min=0).numpy())
        return np.asarray((second - torch.outer(centre, centre) - torch.outer(difference, difference) / 4).numpy())
