"""What one step adds up over its tokens: losses, gradients of the translators, and for K-FAC the Fisher factor at z."""

from lens_rnn.fitting.objective import Derivatives
from lens_rnn.processes import Processes

import torch
from jaxtyping import Float
from torch import Tensor

_SUMMED_AT_ONCE = 2**26  # numbers in a sum over processes, of which there is a copy


class StepSums:
    """Sums over the tokens of a step, then their means, as views of one flat tensor, so that a step needs few
    reductions."""

    losses: Tensor
    """(layers), in nats a token."""
    weights: Tensor
    """dL/dW = E[g hᵀ] (layers, d_model, d_model)."""
    biases: Tensor
    """dL/db = E[g] (layers, d_model)."""
    fisher: Tensor
    """E[(s + g)(s + g)ᵀ] (layers, d_model, d_model); (0, d_model, d_model) where the optimizer does not use it."""

    def __init__(self, layers: int, d_model: int, device: torch.device, fisher: bool):
        squares = layers * d_model * d_model
        sizes = [squares, layers * d_model, squares if fisher else 0, layers, 1]
        self.flat = torch.zeros(sum(sizes), device=device)
        weights, biases, of_fisher, self.losses, self.tokens = self.flat.split(sizes)
        self.weights = weights.view(layers, d_model, d_model)
        self.biases = biases.view(layers, d_model)
        self.fisher = of_fisher.view(-1, d_model, d_model)

    @property
    def has_fisher(self) -> bool:
        return len(self.fisher) > 0

    @staticmethod
    def bytes_needed(layers: int, d_model: int, fisher: bool, world: int) -> int:
        """The sums, and the copy of a part of them where they are summed over processes."""
        numbers = layers * d_model * (d_model * (2 if fisher else 1) + 1)
        return 4 * (numbers + (min(numbers, _SUMMED_AT_ONCE) if world > 1 else 0))

    def add(self, k: int, hidden: Float[Tensor, "tokens d_model"], derivatives: Derivatives) -> None:
        """Add a chunk of layer number k: z = h + W h + b, so dL/dW = Σ g hᵀ and dL/db = Σ g.

        Over labels s is 0 in the mean, so what is added of s + g is the Fisher information at the model's own
        prediction, and g gᵀ: what the gradient itself varies by where the lens does not agree with the model.
        """
        gradient, sampled = derivatives.gradient, derivatives.sampled
        self.weights[k].addmm_(gradient.T, hidden.to(gradient.dtype))
        self.biases[k] += gradient.sum(0)
        self.losses[k] += derivatives.loss.sum()
        if sampled is not None:
            both = sampled + gradient
            self.fisher[k].addmm_(both.T, both)

    def average(self, processes: Processes) -> None:
        """Turn the sums of this process into the means over the tokens of all."""
        for part in self.flat.split(_SUMMED_AT_ONCE):
            part.copy_(processes.sum(part))
        self.flat[:-1] /= self.tokens
