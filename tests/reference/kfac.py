"""The naive twin of one layer's K-FAC: numpy, float64, coordinates [h − μ; 1], every average written out as the sum it
stands for."""

from typing import NamedTuple

from lens_rnn.fitting import kfac as rule

import numpy as np


class Batch(NamedTuple):
    """What a step knows of one layer: means over its tokens."""

    loss: float
    weights: np.ndarray
    """E[g hᵀ] (d, d)."""
    biases: np.ndarray
    """E[g] (d)."""
    fisher: np.ndarray
    """E[s sᵀ] (d, d)."""

    def is_finite(self) -> bool:
        return all(np.isfinite(part).all() for part in self)


class Layer:
    """The translator V = [W, b + W μ] (d, d + 1) of one layer, and all that has happened to it."""

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        covariance: np.ndarray,
        spread: float,
        learning_rate: float,
    ):
        self.mean, self.spread, self.learning_rate = mean, spread, learning_rate
        self.v = np.column_stack([weight, bias + weight @ mean])
        d = len(mean)
        self.a = np.zeros((d + 1, d + 1))  # A of [h − μ; 1]
        self.a[:d, :d], self.a[d, d] = damped(covariance, rule.DAMPING), 1.0
        self.stood: list[Batch] = []  # batches after which a step was taken
        self.signals: list[
            tuple[float, float]
        ] = []  # (signal, ⟨G, D⟩) of each step that was judged, the first an assumption
        self.damping = rule.DAMPING
        self.before = self.v  # V before the last step
        self.direction, self.power, self.length = np.zeros_like(self.v), 0.0, 0.0
        self.f = np.zeros((d, d))  # F as of the last refresh
        self.level = self.deviation = 0.0
        self.lowest = np.inf  # moving average of the loss

    @property
    def weight(self) -> np.ndarray:
        return self.v[:, :-1]

    @property
    def bias(self) -> np.ndarray:
        return self.v[:, -1] - self.weight @ self.mean

    def step(self, batch: Batch) -> None:
        if not batch.is_finite() or batch.loss > self.limit():
            self.take_back(batch.loss)
            return
        gradient = np.column_stack(
            [batch.weights - np.outer(batch.biases, self.mean), batch.biases]
        )  # E[g [h − μ; 1]ᵀ]
        if self.length:
            slope = (gradient * self.direction).sum()
            self.signals.append((slope + self.length * self.power, self.power))
            self.damping = max(rule.DAMPING, 0.9 * self.damping)
        self.stood.append(batch)
        self.follow(batch.loss)
        steps = len(self.stood) - 1
        if steps < rule.REFRESH or steps % rule.REFRESH == 0:
            total = sum(weighted([b.fisher for b in self.stood], rule.FISHER_DECAY))
            self.f = damped(total / sum(weighted([1.0] * len(self.stood), rule.FISHER_DECAY)), self.damping)
        self.direction = np.linalg.solve(self.f, gradient) @ np.linalg.inv(self.a)
        self.power = (gradient * self.direction).sum()
        self.length = self.best_length(batch.loss)
        self.before, self.v = self.v, self.v - self.length * self.direction

    def best_length(self, loss: float) -> float:
        if self.power <= 0:
            return 0.0
        if not self.signals:
            self.signals.append((rule.FIRST_LENGTH / rule.SIGNAL_FACTOR * self.power, self.power))
        signal, power = (moving([pair[i] for pair in self.signals], rule.SIGNAL_DECAY) for i in (0, 1))
        wanted = self.learning_rate * min(1.0, max(rule.LEAST_LENGTH, rule.SIGNAL_FACTOR * signal / power))
        moved = np.trace(self.direction @ self.a @ self.direction.T)  # E‖D [h − μ; 1]‖²
        most = np.sqrt(2 * rule.MOST_KL * loss / self.power), rule.MOST_MOVE * np.sqrt(self.spread / moved)
        return min(wanted, *most)

    def follow(self, loss: float) -> None:
        """Moving averages of the loss and of how far it is from there. Where the limit rose to let this loss in, they
        go on there."""
        level = loss if len(self.stood) == 1 else max(self.level, self.lowest)
        self.deviation = rule.LEVEL_DECAY * self.deviation + (1 - rule.LEVEL_DECAY) * abs(loss - level)
        self.level = rule.LEVEL_DECAY * level + (1 - rule.LEVEL_DECAY) * loss
        self.lowest = min(self.lowest, self.level)

    def limit(self) -> float:
        if not self.stood:
            return np.inf
        return self.lowest + max(rule.MARGIN * self.lowest, rule.DEVIATIONS * self.deviation)

    def take_back(self, loss: float) -> None:
        if self.length:
            self.v, self.length = self.before, 0.0
            self.signals = [(0.25 * signal, power) for signal, power in self.signals]
            self.damping = min(rule.HIGHEST_DAMPING, 4 * self.damping)
            self.f = 4 * self.f
        if np.isfinite(loss) and self.stood:
            self.lowest += 0.1 * (min(loss, 10 * self.lowest) - self.lowest)


def damped(matrix: np.ndarray, damping: float) -> np.ndarray:
    return matrix + damping * np.diag(np.diag(matrix))


def weighted(values: list, decay: float) -> list:
    """The terms of a moving average that began at zero."""
    return [(1 - decay) * decay ** (len(values) - 1 - i) * value for i, value in enumerate(values)]


def moving(values: list[float], decay: float) -> float:
    """A moving average that began at its first value."""
    return decay ** (len(values) - 1) * values[0] + sum(weighted(values, decay)[1:])
