"""K-FAC: natural-gradient steps for the translators (Martens & Grosse 2015, arXiv 1503.05671, section 3, for one affine
layer each).

Symbols, of one layer:

    h   hidden state (d_model), μ its mean, C its covariance
    g   gradient of the loss at z; s what it would be for a label drawn from the model's own prediction p, were q = p
    G   E[g (h − μ)ᵀ] (d_model, d_model), and E[g] for the bias that belongs to h − μ
    A   C with damping; measured once, in float64, on the tokens of the closed-form start: hidden states do not change
        during a fit
    F   E[(s + g)(s + g)ᵀ] with damping, a moving average: the Fisher information at z, at the prediction that is aimed
        at, and E[g gᵀ], without which the few tokens at which the model is certain and the lens is not would decide
        every step (by hand, tiny-mamba's mean KL after 252 steps: 0.6044 with it, 0.6099 without)
    D   F⁻¹ G A⁻¹, and F⁻¹ E[g]: the direction
    η   the step's length: W ← W − η D

Nothing is left to tune, because each step is judged by the next batch, whose gradient G' owes nothing to the noise in
D:

- Length. ⟨G', D⟩ is the slope that the step left, ⟨G, D⟩ the curvature along D by K-FAC's own model. The best length
  would have been η + ⟨G', D⟩ / ⟨G, D⟩: the share of ⟨G, D⟩ that is signal and not noise. Its moving average, times 1.5
  because the noise of one step averages out over later ones, is the next η. The less noise, the closer it comes to 1,
  Newton's step; as a fit converges it falls like 1 / steps.
- Bounds. ⟨D, F D A⟩ η² / 2 bounds the KL that a step can cost by that model, and η² tr(D A Dᵀ) is how far it moves z.
  Both are capped.
- Rollback. Where a layer's loss rises far above its lowest moving average, or is not finite, its last step is taken
  back and its damping raised; damping falls again with each step that stands.
"""

from math import inf, isfinite
from typing import Any, ClassVar

from lens_rnn.errors import FitError
from lens_rnn.fitting.closed_form import Inputs
from lens_rnn.fitting.sums import StepSums
from lens_rnn.processes import Processes

import torch
from jaxtyping import Float
from torch import Tensor

REFRESH = 4  # steps between inverses of F, after the first few, when F is new
FISHER_DECAY = 0.95
DAMPING = 0.1  # of each diagonal entry; tried by hand on tiny-mamba, 0.003 to 0.1 end within 0.1 % in KL
HIGHEST_DAMPING = 1e4
SIGNAL_DECAY = 0.9
SIGNAL_FACTOR = 1.5
FIRST_LENGTH = 0.1  # before any step was judged
LEAST_LENGTH = 1e-3
MOST_KL = 0.25  # of the layer's loss, that one step may cost by K-FAC's model
MOST_MOVE = 0.25  # of the spread of the final norm's input, that one step may move z by
LEVEL_DECAY = 0.8
MARGIN = 0.5  # above a layer's lowest moving average loss, relative, before its last step is taken back
DEVIATIONS = 6.0  # the same, in mean deviations between batches, where those are larger


class KFAC:
    """K-FAC of all fitted layers, each on its own, and each in one process: its owner holds the factors, takes the
    step, and gives the others what came of it."""

    fisher: ClassVar[bool] = True
    default_rate: ClassVar[float] = 1.0

    def __init__(
        self,
        weights: Float[Tensor, "layers d_model d_model"],
        biases: Float[Tensor, "layers d_model"],
        learning_rate: float,
        processes: Processes | None = None,
    ):
        """weights (layers, d_model, d_model) and biases (layers, d_model) are changed in place. learning_rate
        multiplies every η."""
        self.processes = processes or Processes()
        self.weights, self.biases = weights, biases
        self.owned = {
            k: _Layer(weights[k], biases[k], learning_rate)
            for k in range(len(weights))
            if self.processes.owner(k) == self.processes.rank
        }
        self.lengths = [0.0] * len(weights)  # of the last step of every layer

    def begin(self, k: int, inputs: Inputs) -> None:
        if k in self.owned:
            self.owned[k].begin(inputs)

    @property
    def learning_rate(self) -> float:
        """Mean length of the last step over layers."""
        return sum(self.lengths) / len(self.lengths)

    def step(self, sums: StepSums) -> None:
        losses = sums.losses.tolist()
        with self.processes.together():
            for k, layer in self.owned.items():
                layer.step(losses[k], sums.weights[k], sums.biases[k], sums.fisher[k])
        for lengths in self.processes.gather({k: layer.length for k, layer in self.owned.items()}):
            for k, length in lengths.items():
                self.lengths[k] = length
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            self.processes.share(weight, self.processes.owner(k))
            self.processes.share(bias, self.processes.owner(k))

    def can_take_back(self, k: int) -> bool:
        """Whether layer number k made a step that a loss which is not finite can be blamed on."""
        return self.lengths[k] > 0

    @classmethod
    def bytes_needed(cls, layers: int, d_model: int, world: int) -> int:
        """States of what one process owns, and the temporaries of a step."""
        return 4 * d_model * d_model * (4 * -(-layers // world) + 3)

    def state_dict(self) -> dict[str, Any]:
        """Of all layers on the main process, to which the others hand theirs, one at a time."""
        states: list[dict[str, Any]] = []
        for k in range(len(self.weights)):
            state = self.owned[k].state_dict() if k in self.owned else None
            owner = self.processes.owner(k)
            state = self.processes.hand_on(state, owner) if owner else state  # the main one's own stay there
            if state is not None and self.processes.is_main:
                states.append(state)
        return {"layers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the states of what this process owns from those of all layers."""
        for k, layer in self.owned.items():
            layer.load_state_dict(state["layers"][k])
        self.lengths = [saved["length"] for saved in state["layers"]]


class _Layer:
    """K-FAC of one translator: its factors, and what the last step was."""

    _TENSORS = ("mean", "inputs_inverse", "fisher", "fisher_inverse", "direction", "bias_direction")
    _NUMBERS = (
        "spread",
        "mass",
        "damping",
        "steps",
        "length",
        "power",
        "signal",
        "signal_power",
        "level",
        "lowest",
        "deviation",
    )

    def __init__(self, weight: Tensor, bias: Tensor, learning_rate: float):
        self.weight, self.bias, self.learning_rate = weight, bias, learning_rate
        self.mean = torch.zeros_like(bias)  # μ
        self.inputs_inverse = torch.zeros_like(weight)  # A⁻¹
        self.fisher = torch.zeros_like(weight)  # moving average of s sᵀ, to be divided by its mass
        self.fisher_inverse = torch.zeros_like(weight)  # F⁻¹, as of the last refresh
        self.direction, self.bias_direction = torch.zeros_like(weight), torch.zeros_like(bias)  # D of the last step
        self.spread = inf  # E‖f − E f‖², f the final norm's input
        self.mass = 0.0
        self.damping = DAMPING
        self.steps = 0
        self.length = 0.0  # η of the last step; 0 where there was none, or it was taken back
        self.power = 0.0  # ⟨G, D⟩ of the last step
        self.signal = self.signal_power = 0.0  # moving averages of ⟨G, D⟩'s share that is signal, and of the whole
        self.level = self.lowest = inf  # moving average of the loss, and the lowest it has been
        self.deviation = 0.0

    def begin(self, inputs: Inputs) -> None:
        self.mean.copy_(inputs.mean)
        self.inputs_inverse.copy_(_inverse(inputs.covariance, DAMPING))
        self.spread = inputs.spread

    def step(self, loss: float, weight_gradient: Tensor, bias_gradient: Tensor, fisher: Tensor) -> None:
        """Judge the last step by this batch; if it stands, take the next."""
        total = float(weight_gradient.sum() + bias_gradient.sum() + fisher.sum())
        if not (isfinite(loss) and isfinite(total)) or loss > self._limit():
            self._take_back(loss)
            return
        self._judge(loss, weight_gradient, bias_gradient)
        self.fisher.lerp_(fisher, 1 - FISHER_DECAY)
        self.mass = FISHER_DECAY * self.mass + 1 - FISHER_DECAY
        if self.steps < REFRESH or self.steps % REFRESH == 0:
            self.fisher_inverse.copy_(_inverse(self.fisher / self.mass, self.damping))
        self.steps += 1

        gradient = weight_gradient - torch.outer(bias_gradient, self.mean)
        half = self.fisher_inverse @ gradient  # F⁻¹ G = D A
        torch.matmul(half, self.inputs_inverse, out=self.direction)
        torch.mv(self.fisher_inverse, bias_gradient, out=self.bias_direction)
        self.power = float(_inner(gradient, self.direction) + _inner(bias_gradient, self.bias_direction))
        move = float(_inner(half, self.direction) + _inner(self.bias_direction, self.bias_direction))
        self.length = self._length(loss, move)
        self._move(-self.length)

    def _judge(self, loss: float, weight_gradient: Tensor, bias_gradient: Tensor) -> None:
        """Learn from the slope that the last step left, and from the loss."""
        if self.length > 0:
            slope = _inner(weight_gradient, self.direction) + _inner(
                bias_gradient, self.bias_direction - self.direction @ self.mean
            )
            signal = float(slope) + self.length * self.power
            self.signal = SIGNAL_DECAY * self.signal + (1 - SIGNAL_DECAY) * signal
            self.signal_power = SIGNAL_DECAY * self.signal_power + (1 - SIGNAL_DECAY) * self.power
            self.damping = max(DAMPING, self.damping * 0.9)
        # Where the limit had to rise to let this loss in, the average goes on from there.
        self.level = loss if self.level == inf else max(self.level, self.lowest)
        self.deviation = LEVEL_DECAY * self.deviation + (1 - LEVEL_DECAY) * abs(loss - self.level)
        self.level = LEVEL_DECAY * self.level + (1 - LEVEL_DECAY) * loss
        self.lowest = min(self.lowest, self.level)

    def _length(self, loss: float, move: float) -> float:
        """η for a direction whose inner product with the gradient is `power`, and which moves z by `move` in the mean
        square."""
        if not (isfinite(self.power) and isfinite(move)) or self.power <= 0:
            return 0.0
        if not self.signal_power:
            self.signal, self.signal_power = FIRST_LENGTH / SIGNAL_FACTOR * self.power, self.power
        length = self.learning_rate * min(1.0, max(LEAST_LENGTH, SIGNAL_FACTOR * self.signal / self.signal_power))
        by_kl = (2 * MOST_KL * max(loss, 0.0) / self.power) ** 0.5
        by_move = MOST_MOVE * (self.spread / max(move, 1e-30)) ** 0.5
        return min(length, by_kl, by_move)

    def _limit(self) -> float:
        """The loss from which on the last step is taken back."""
        return self.lowest + max(MARGIN * self.lowest, DEVIATIONS * self.deviation)

    def _take_back(self, loss: float) -> None:
        """Undo the last step and raise the damping; where there is none to blame, let the limit rise, as the text may
        have changed."""
        if self.length:
            self._move(self.length)
            self.length = 0.0
            self.signal *= 0.25
            self.damping = min(HIGHEST_DAMPING, 4 * self.damping)
            self.fisher_inverse /= 4  # what the damping does at the next refresh
        if isfinite(loss) and self.lowest < inf:
            self.lowest += 0.1 * (min(loss, 10 * self.lowest) - self.lowest)

    def _move(self, length: float) -> None:
        """W ← W + length · D. The bias of h is that of h − μ less D μ."""
        if length:
            self.weight.add_(self.direction, alpha=length)
            self.bias.add_(self.bias_direction - self.direction @ self.mean, alpha=length)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self._TENSORS, *self._NUMBERS)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._TENSORS:
            getattr(self, name).copy_(state[name])
        for name in self._NUMBERS:
            setattr(self, name, state[name])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def _inverse(matrix: Tensor, damping: float) -> Tensor:
    """(M + damping · diag M)⁻¹ of a positive semi-definite M, by Cholesky, scaled to a unit diagonal first.

    Damping each entry by its own size keeps a few huge dimensions of a residual stream from deciding what is small in
    the others.
    """
    diagonal = matrix.diagonal()
    least = max(1e-6 * float(diagonal.mean()), 1e-30)  # so that a dimension which never varies stays finite
    scale = diagonal.clamp(min=least).rsqrt()
    scaled = matrix * scale[:, None] * scale
    identity = torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
    while damping < 1e6:
        factor, failed = torch.linalg.cholesky_ex(scaled + damping * identity)
        if not failed:
            return torch.cholesky_inverse(factor) * scale[:, None] * scale
        damping *= 10
    raise FitError("the hidden states or their gradients are not finite; try --dtype float32")
