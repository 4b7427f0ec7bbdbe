"""Naive twins of lens_rnn.elk, in plain loops and float64."""

import numpy as np
import torch
from torch import Tensor


def delong(labels: np.ndarray, scores: np.ndarray) -> float:
    """Variance of an AUROC, DeLong, DeLong & Clarke-Pearson 1988, eq. 5, of structural components pair by pair."""
    positives, negatives, v10, v01 = _components(labels, scores)
    return float(np.var(v10, ddof=1) / len(positives) + np.var(v01, ddof=1) / len(negatives))


def obuchowski(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> float:
    """The same of rows in clusters, Obuchowski 1997: components summed by cluster, and their covariance."""
    positives, negatives, v10, v01 = _components(labels, scores)
    area, total = v10.mean(), 0.0
    of_positives, of_negatives = clusters[positives], clusters[negatives]
    i10, i01 = len(set(of_positives)), len(set(of_negatives))
    cross = 0.0
    for cluster in set(clusters):
        a = (v10[of_positives == cluster] - area).sum() / len(positives)
        b = (v01[of_negatives == cluster] - area).sum() / len(negatives)
        total += i10 / (i10 - 1) * a**2 + i01 / (i01 - 1) * b**2
        cross += np.sqrt(i10 / (i10 - 1) * i01 / (i01 - 1)) * a * b  # he has I ÷ (I − 1), I all clusters
    return float(total + 2 * cross)


def _components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
    won = np.array([[(scores[p] > scores[n]) + (scores[p] == scores[n]) / 2 for n in negatives] for p in positives])
    return positives, negatives, won.mean(1), won.mean(0)


def ccs_loss(w: Tensor, b: Tensor, false: Tensor, true: Tensor) -> Tensor:
    """Burns et al. 2022, eq. 1 to 3: consistency and confidence."""
    p0, p1 = torch.sigmoid(false @ w + b), torch.sigmoid(true @ w + b)
    return ((p1 - (1 - p0)) ** 2).mean() + (torch.minimum(p0, p1) ** 2).mean()


def vinc_matrix(pairs: np.ndarray) -> np.ndarray:
    """Variance − invariance − covariance of normed pairs (rows, variants, 2, width), summed row by row."""
    rows, variants, _, width = pairs.shape
    total = np.zeros((width, width))
    for row in pairs:
        false, true = row[:, 0].mean(0), row[:, 1].mean(0)
        total += (np.outer(false, false) + np.outer(true, true)) / 2 / rows
        total -= (np.outer(false, true) + np.outer(true, false)) / 2 / rows
        for variant in row:
            for state, mean in ((variant[0], false), (variant[1], true)):
                total -= np.outer(state - mean, state - mean) / 2 / rows / max(1, variants - 1)
    return total
