"""Naive twins of lens_rnn.elk, in plain loops and float64."""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor


def bootstrap(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> list[float]:
    """AUROC of each draw, its rows written out as often as they were drawn."""
    return [roc_auc_score(np.repeat(labels, draw), np.repeat(scores, draw)) for draw in counts.astype(int)]


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
