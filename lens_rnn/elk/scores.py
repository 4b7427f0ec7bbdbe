"""The area under the ROC curve, of rows that count as often as they are drawn."""

from lens_rnn.intervals import Estimate, estimate, row_weights

import numpy as np


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half (Mann–Whitney). NaN if a class is absent."""
    return float(weighted_auroc(labels, scores, np.ones((1, len(labels))))[0])


def auroc_estimate(labels: np.ndarray, scores: np.ndarray) -> Estimate:
    """AUROC, and its interval over resampled rows; draws that lack a class are left out."""
    return estimate(auroc(labels, scores), weighted_auroc(labels, scores, row_weights(len(labels))))


def weighted_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC (draws) of rows that count `weights` (draws, rows) times; NaN where a draw lacks a class."""
    order = np.argsort(scores, kind="stable")
    sorted_scores, positive, weights = scores[order], np.asarray(labels, dtype=bool)[order], weights[:, order]
    # negatives before each place
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights * ~positive, axis=1)], axis=1)
    first = np.searchsorted(sorted_scores, sorted_scores, "left")
    last = np.searchsorted(sorted_scores, sorted_scores, "right")
    won = (weights * positive * (below[:, first] + below[:, last]) / 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(won / ((weights * positive).sum(1) * below[:, -1]))
