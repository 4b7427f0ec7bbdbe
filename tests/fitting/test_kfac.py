"""K-FAC against its naive twin, and what it promises: Newton's step without noise, shorter ones with it, and no
divergence."""

import copy
import io
from itertools import pairwise
from typing import NamedTuple

from lens_rnn.fitting import kfac as rule
from lens_rnn.fitting.closed_form import Inputs
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.sums import StepSums
from tests.reference import kfac as naive

import numpy as np
import pytest
import torch

D = 6
SPREAD = 40.0  # of the final norm's input


class Quadratic(NamedTuple):
    """A layer whose loss is quadratic in its translator: floor + ½ E‖F^½ ((W − W*) h + b − b*)‖², with C and F
    exact."""

    mean: np.ndarray
    covariance: np.ndarray
    curvature: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    floor: float = 1.0

    def batch(
        self, weight: np.ndarray, bias: np.ndarray, noise: float = 0.0, random: np.random.Generator | None = None
    ) -> naive.Batch:
        """The sums of a step there. noise: tokens that the gradient is a mean over, inverted; 0 for the exact
        gradient."""
        off, off_bias = weight - self.weight, bias - self.bias
        at_mean = off @ self.mean + off_bias
        gradient = self.curvature @ off @ self.covariance  # E[g (h − μ)ᵀ]
        of_bias = self.curvature @ at_mean
        excess = 0.5 * (np.sum(self.curvature * (off @ self.covariance @ off.T)) + at_mean @ self.curvature @ at_mean)
        if random is not None:
            root, other = np.linalg.cholesky(self.curvature), np.linalg.cholesky(self.covariance)
            gradient = gradient + noise**0.5 * root @ random.normal(size=gradient.shape) @ other.T
            of_bias = of_bias + noise**0.5 * root @ random.normal(size=of_bias.shape)
        return naive.Batch(self.floor + excess, gradient + np.outer(of_bias, self.mean), of_bias, self.curvature)

    def excess(self, weight: np.ndarray, bias: np.ndarray) -> float:
        return self.batch(weight, bias).loss - self.floor


def quadratic(seed: int = 0, floor: float = 1.0, d: int = D) -> Quadratic:
    random = np.random.default_rng(seed)

    def positive(scale: float) -> np.ndarray:
        root = random.normal(size=(d, 3 * d))
        return scale * root @ root.T / (3 * d)

    mean = 3 * random.normal(size=d)
    return Quadratic(
        mean, positive(2.0), positive(0.05), 0.4 * random.normal(size=(d, d)), random.normal(size=d), floor
    )


class Runner:
    """KFAC over layers that are given as Quadratic, each at its own translator."""

    def __init__(
        self,
        problems: list[Quadratic],
        learning_rate: float = 1.0,
        dtype: torch.dtype = torch.float64,
        spread: float = SPREAD,
    ):
        self.problems, self.dtype = problems, dtype
        d = len(problems[0].bias)
        self.weights = torch.zeros(len(problems), d, d, dtype=dtype)
        self.biases = torch.zeros(len(problems), d, dtype=dtype)
        self.kfac = KFAC(self.weights, self.biases, learning_rate)
        for k, problem in enumerate(problems):
            mean, covariance = torch.from_numpy(problem.mean), torch.from_numpy(problem.covariance)
            self.kfac.begin(k, Inputs(mean, covariance, spread))

    def at(self, k: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return self.weights[k].double().numpy().copy(), self.biases[k].double().numpy().copy()

    def batches(self, noise: float = 0.0, random: np.random.Generator | None = None) -> list[naive.Batch]:
        return [problem.batch(*self.at(k), noise, random) for k, problem in enumerate(self.problems)]

    def step(self, batches: list[naive.Batch] | None = None) -> None:
        batches = self.batches() if batches is None else batches
        losses, *tensors = (torch.from_numpy(np.stack(part)).to(self.dtype) for part in zip(*batches, strict=True))
        sums = StepSums(*self.biases.shape, self.biases.device, fisher=True)
        sums.losses, (sums.weights, sums.biases, sums.fisher) = losses, tensors
        self.kfac.step(sums)

    def excess(self, k: int = 0) -> float:
        return self.problems[k].excess(*self.at(k))

    @property
    def layer(self) -> rule._Layer:
        return self.kfac.owned[0]

    def is_finite(self) -> bool:
        numbers = [
            getattr(layer, name)
            for layer in self.kfac.owned.values()
            for name in layer._NUMBERS
            if name not in ("level", "lowest")
        ]
        tensors = [getattr(layer, name) for layer in self.kfac.owned.values() for name in layer._TENSORS]
        return bool(np.isfinite(numbers).all()) and all(
            bool(t.isfinite().all()) for t in (*tensors, self.weights, self.biases)
        )


def broken(batch: naive.Batch, part: str, value: float) -> naive.Batch:
    """A batch with one bad entry in one of its parts."""
    if part == "loss":
        return batch._replace(loss=value)
    array = getattr(batch, part).copy()
    array.flat[D - 1] = value
    return batch._replace(**{part: array})


# --- the twin ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)], ids=str)
@pytest.mark.parametrize("learning_rate", [1.0, 0.3, 8.0])
def test_steps_equal_the_naive_twin(learning_rate: float, dtype: torch.dtype, tolerance: float) -> None:
    """Three layers, 24 noisy steps with other Fisher samples each, among them a spike of the loss, one that stays, NaN,
    and, in the last layer, losses that differ so much from batch to batch that twice the lowest level is nothing
    unusual."""
    problems, random = [quadratic(0), quadratic(1, floor=0.02), quadratic(2)], np.random.default_rng(0)
    runner = Runner(problems, learning_rate, dtype)
    twins = [naive.Layer(np.zeros((D, D)), np.zeros(D), p.mean, p.covariance, SPREAD, learning_rate) for p in problems]
    lengths = []
    for step in range(24):
        batches = []
        for problem, twin in zip(problems, twins, strict=True):
            batch = problem.batch(twin.weight, twin.bias, 1 / 50, random)
            scores = np.linalg.cholesky(problem.curvature) @ random.normal(size=(D, 4 * D))
            loss = random.uniform(0.4, 1.6) if twin is twins[2] else batch.loss * random.uniform(0.97, 1.03)
            batches.append(batch._replace(loss=loss, fisher=scores @ scores.T / (4 * D)))
        if step == 7:
            batches[0] = batches[0]._replace(loss=9.0)
        if step in (12, 13):
            batches[1] = batches[1]._replace(loss=9.0)
        if step == 17:
            batches[0] = broken(batches[0], "weights", np.nan)
        runner.step(batches)
        for k, (twin, batch) in enumerate(zip(twins, batches, strict=True)):
            twin.step(batch)
            layer = runner.kfac.owned[k]
            weight, bias = runner.at(k)
            np.testing.assert_allclose(
                weight, twin.weight, rtol=tolerance, atol=tolerance, err_msg=f"layer {k}, step {step}"
            )
            np.testing.assert_allclose(bias, twin.bias, rtol=tolerance, atol=10 * tolerance)
            assert layer.length == pytest.approx(twin.length, rel=10 * tolerance)
            assert layer.damping == pytest.approx(twin.damping)
        lengths.append([twin.length for twin in twins])
    taken_back = (np.array(lengths) == 0).T.nonzero()
    assert list(zip(*map(np.ndarray.tolist, taken_back), strict=True)) == [(0, 7), (0, 17), (1, 12), (1, 13)]
    assert runner.kfac.learning_rate == pytest.approx(np.mean(lengths[-1]), rel=10 * tolerance)


# --- the length of a step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_without_noise_steps_grow_and_the_optimum_is_reached(seed: int) -> None:
    runner = Runner([quadratic(seed)])
    lengths, excess = [], [runner.excess()]
    for _ in range(30):
        runner.step()
        lengths.append(runner.layer.length)
        excess.append(runner.excess())
    assert lengths[0] == pytest.approx(rule.FIRST_LENGTH)
    assert all(b >= a - 1e-9 for a, b in pairwise(lengths))
    assert lengths[-1] > 0.4
    assert all(b < a for a, b in pairwise(excess))
    assert excess[-1] < 1e-8 * excess[0]


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_steps_shorten_as_the_fit_converges(seed: int) -> None:
    """Steps of one length would stay where their noise costs what they gain."""
    runner, random = Runner([quadratic(seed, d=16)], spread=400.0), np.random.default_rng(seed)
    lengths, excess = [], []
    for _ in range(400):
        runner.step(runner.batches(1 / 200, random))
        lengths.append(runner.layer.length)
        excess.append(runner.excess())
    early, late = slice(15, 35), slice(350, 400)
    assert np.mean(lengths[early]) > 0.3
    assert np.mean(lengths[late]) < 0.4 * np.mean(lengths[early])
    assert np.mean(excess[late]) < 0.4 * np.mean(excess[early])


@pytest.mark.parametrize(
    ("dtype", "constant", "tolerance"), [(torch.float64, 1e3, 1e-8), (torch.float32, 30.0, 2e-3)], ids=str
)
def test_a_constant_in_the_hidden_states_changes_nothing(dtype: torch.dtype, constant: float, tolerance: float) -> None:
    """z(h) is the same map of h − μ whatever μ is, although the gradients E[g hᵀ] are not."""
    problem = quadratic()
    shift = constant * np.random.default_rng(3).normal(size=D)
    shifted = problem._replace(mean=problem.mean + shift, bias=problem.bias - problem.weight @ shift)
    here, there = Runner([problem], dtype=dtype), Runner([shifted], dtype=dtype)
    for _ in range(12):
        here.step()
        there.step()
    (weight, bias), (other_weight, other_bias) = here.at(), there.at()
    assert np.abs(weight).max() > 0.1
    np.testing.assert_allclose(other_weight, weight, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(other_bias + other_weight @ shift, bias, rtol=tolerance, atol=constant * tolerance)


def test_a_direction_that_the_next_batch_contradicts_is_all_but_given_up() -> None:
    runner = Runner([quadratic()])
    for step in range(30):
        (batch,) = runner.batches()
        sign = (-1) ** step
        runner.step([batch._replace(loss=1.0, weights=sign * batch.weights, biases=sign * batch.biases)])
    assert runner.layer.length == rule.LEAST_LENGTH


def test_learning_rate_multiplies_the_length() -> None:
    full, half = Runner([quadratic()]), Runner([quadratic()], learning_rate=0.5)
    full.step()
    half.step()
    assert half.kfac.learning_rate == pytest.approx(full.kfac.learning_rate / 2)


# --- what must not happen ---------------------------------------------------------------------------------------------


def after(steps: int, noise: float = 1 / 200, **settings: float) -> tuple[Runner, np.random.Generator]:
    """A fit under way."""
    runner, random = Runner([quadratic()], **settings), np.random.default_rng(1)
    for _ in range(steps):
        runner.step(runner.batches(noise, random))
    return runner, random


def assert_at(runner: Runner, weight: np.ndarray, bias: np.ndarray, tolerance: float = 1e-12) -> None:
    """At these parameters, but for the rounding of adding what was subtracted."""
    for got, expected in zip(runner.at(), (weight, bias), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_a_step_after_which_the_loss_rises_far_is_taken_back() -> None:
    runner, random = after(3)
    before, excess = runner.at(), runner.excess()
    runner.step(runner.batches(1 / 200, random))
    assert np.abs(runner.at()[0] - before[0]).max() > 1e-3
    length = runner.layer.length
    (batch,) = runner.batches()
    borne = copy.deepcopy(runner)
    borne.step([batch._replace(loss=1.4 * runner.layer.lowest)])
    assert borne.layer.length > 0, "a loss that rises a little is borne"
    runner.step([batch._replace(loss=3 * runner.layer.lowest)])
    assert_at(runner, *before)
    assert runner.layer.length == runner.kfac.learning_rate == 0
    assert runner.layer.damping == pytest.approx(4 * rule.DAMPING)
    runner.step(runner.batches(1 / 200, random))
    assert 0 < runner.layer.length < length
    for _ in range(40):
        runner.step(runner.batches(1 / 200, random))
    assert runner.excess() < 0.1 * excess
    assert runner.layer.damping == rule.DAMPING


def test_a_loss_that_creeps_up_is_not_followed() -> None:
    runner = Runner([quadratic()])
    for step in range(40):
        runner.step([runner.batches()[0]._replace(loss=1.02**step)])
        if not runner.layer.length:
            break
    assert 1.4 < 1.02**step < 2.1


@pytest.mark.parametrize("level", [1.6, 2.5, 5.0])
def test_a_level_of_the_loss_that_stays_is_accepted(level: float) -> None:
    """The text may have changed. Nothing moves until it is believed, and then the fit goes on."""
    runner, random = after(3)
    runner.problems = [problem._replace(floor=level) for problem in runner.problems]
    before = runner.excess()
    moved = []
    for _ in range(40):
        runner.step(runner.batches(1 / 200, random))
        moved.append(runner.layer.length > 0)
    assert moved[0] == (level < 2)
    assert sum(moved[10:]) >= 27  # an uncommonly noisy batch is taken back now and then
    assert runner.excess() < 0.1 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["loss", "weights", "biases", "fisher"])
def test_what_is_not_finite_changes_nothing(part: str, value: float, dtype: torch.dtype) -> None:
    runner, random = after(2, dtype=dtype)
    before, excess = runner.at(), runner.excess()
    runner.step(runner.batches(1 / 200, random))
    for _ in range(30):
        runner.step([broken(runner.batches()[0], part, value)])
        assert_at(runner, *before, tolerance=1e-12 if dtype == torch.float64 else 1e-6)
        assert runner.is_finite()
        assert runner.layer.damping <= rule.HIGHEST_DAMPING
    for _ in range(150):
        runner.step(runner.batches(1 / 200, random))
    assert runner.is_finite()
    assert runner.excess() < 0.1 * excess


@pytest.mark.parametrize("part", ["loss", "weights", "fisher"])
def test_what_is_not_finite_from_the_first_batch_on_is_waited_out(part: str) -> None:
    runner = Runner([quadratic()], dtype=torch.float32)
    for _ in range(3):
        runner.step([broken(runner.batches()[0], part, float("nan"))])
    assert not runner.weights.any()
    assert not runner.biases.any()
    start = runner.excess()
    for _ in range(120):
        runner.step()
    assert runner.excess() < 0.01 * start


@pytest.mark.parametrize("gradient", [1e-20, 1.0, 1e10])
@pytest.mark.parametrize("curvature", ["none", "one direction", "tiny"])
def test_a_fisher_that_says_nothing_bounds_the_step_all_the_same(curvature: str, gradient: float) -> None:
    problem = quadratic()
    fisher = {"none": np.zeros((D, D)), "one direction": np.diag([1.0] + [0.0] * (D - 1)), "tiny": 1e-30 * np.eye(D)}[
        curvature
    ]
    batch = problem.batch(np.zeros((D, D)), np.zeros(D))
    batch = batch._replace(weights=gradient * batch.weights, biases=gradient * batch.biases, fisher=fisher)
    runner = Runner([problem], learning_rate=100.0, dtype=torch.float32)
    for _ in range(10):
        before = runner.at()
        runner.step([batch])
        assert np.isfinite(runner.layer.length)
        weight, bias = (a - b for a, b in zip(runner.at(), before, strict=True))
        move = np.trace(weight @ problem.covariance @ weight.T) + np.sum((bias + weight @ problem.mean) ** 2)
        assert move <= 1.01 * rule.MOST_MOVE**2 * SPREAD


@pytest.mark.parametrize("learning_rate", [30.0, 1e30, float("inf")])
def test_no_learning_rate_is_too_high(learning_rate: float) -> None:
    runner, random = Runner([quadratic(floor=0.1)], learning_rate, torch.float32), np.random.default_rng(0)
    start, worst = runner.excess(), 0.0
    for _ in range(100):
        runner.step(runner.batches(1 / 50, random))
        worst = max(worst, runner.excess())
        assert runner.is_finite()
    assert worst < 2 * start


# --- its state --------------------------------------------------------------------------------------------------------


def saved(runner: Runner) -> dict:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(runner.kfac.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def continued(runner: Runner, state: dict) -> Runner:
    """Another process that begins with the parameters and the state."""
    other = Runner(runner.problems, dtype=runner.dtype)
    other.kfac = KFAC(other.weights, other.biases, 1.0)
    other.weights.copy_(runner.weights)
    other.biases.copy_(runner.biases)
    other.kfac.load_state_dict(state)
    return other


@pytest.mark.parametrize("steps", [0, 1, 3, 6, 11])
def test_a_fit_that_is_continued_is_the_same_to_the_bit(steps: int) -> None:
    """Between two inversions, with the damping raised by a step that was taken back."""
    runner, random = after(steps, dtype=torch.float32)
    if steps == 11:
        runner.step([runner.batches()[0]._replace(loss=10.0)])
        assert runner.layer.damping > rule.DAMPING
        assert runner.layer.steps % rule.REFRESH != 0
    other, other_random = continued(runner, saved(runner)), copy.deepcopy(random)
    for step in range(10):
        spike = 10.0 if step == 6 else 0.0  # what is taken back is a part of the state, too
        for it, noise in ((runner, random), (other, other_random)):
            (batch,) = it.batches(1 / 200, noise)
            it.step([batch._replace(loss=batch.loss + spike)])
        assert torch.equal(runner.weights, other.weights)
        assert torch.equal(runner.biases, other.biases)
    for name in (*rule._Layer._TENSORS, *rule._Layer._NUMBERS):
        value, again = (getattr(it.layer, name) for it in (runner, other))
        assert torch.equal(value, again) if isinstance(value, torch.Tensor) else value == again, name


def test_all_that_a_layer_holds_is_in_its_state() -> None:
    layer = rule._Layer(torch.zeros(2, 2), torch.zeros(2), 1.0)
    assert set(vars(layer)) == set(layer.state_dict()) | {"weight", "bias", "learning_rate"}
