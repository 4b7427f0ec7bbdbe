"""A tuned lens compressed to low rank: of each translator, the part that matters most for what is read.

Symbols, of one layer:

    W, b   its translator
    μ, C   mean and covariance of its hidden states
    F      E[s sᵀ], the Fisher information at z (see `objective`)
    r      the rank

Replacing W by V costs ½ E‖F^½ (W − V)(h − μ)‖² nats, to second order. Its least at rank r is the truncated singular
value decomposition of F^½ W C^½ (Eckart & Young 1936), taken back by F^-½ and C^-½; what W does at μ goes into the
bias.
"""

from collections.abc import Callable
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError
from lens_rnn.fitting.closed_form import Moments
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import LowRankLens, TunedLens
from lens_rnn.lens.low_rank import Translator
from lens_rnn.models import ModelAdapter

import torch
from torch import Tensor

DAMPING = 1e-3  # of the mean diagonal, of what is inverted


@torch.no_grad()
def compress(
    adapter: ModelAdapter,
    lens: TunedLens,
    rank: int,
    blocks: TokenBlocks,
    *,
    micro_batch_size: int = 8,
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> LowRankLens:
    """The low-rank lens that is closest to `lens` on these blocks; some ten thousand tokens are enough. on_batch is
    told the tokens done.

    Raises ConfigError for a rank that is not from 1 to d_model.
    """
    d, layers = adapter.d_model, adapter.fitted_layers
    if not 1 <= rank <= d:
        raise ConfigError(f"rank is {rank}; {adapter.name} has d_model {d}, so it must be 1 to {d}")
    moments = Moments(layers, d, adapter.device)
    sums = StepSums(len(layers), d, adapter.device, fisher=True)
    objective = FusedObjective(lens.unembed)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, len(blocks), micro_batch_size):
        ids = blocks.batch(slice(first, first + micro_batch_size), adapter.device)
        forward = adapter.forward(ids)
        moments.add(forward.hidden_states, forward.norm_input, held_out=False)
        for chunk in objective.chunks(forward, ids, torch.rand(ids.numel(), generator=generator)):
            for k, layer in enumerate(layers):
                z = lens.transform_hidden(chunk.hidden[layer], layer)
                sums.add(k, chunk.hidden[layer], objective.derivatives(z, chunk.target, chunk.score))
        if on_batch:
            on_batch(ids.numel())
    translators = {}
    for k, layer in enumerate(layers):
        mean, covariance, _ = moments.inputs(k)
        weight, bias = lens[layer].weight.double().cpu(), lens[layer].bias.double().cpu()
        translators[layer] = _truncated(weight, bias, mean.cpu(), covariance.cpu(), sums.fisher[k].double().cpu(), rank)
    return LowRankLens(adapter, translators, lens.unembed)


def _truncated(weight: Tensor, bias: Tensor, mean: Tensor, covariance: Tensor, fisher: Tensor, rank: int) -> Translator:
    """The best translator of this rank, float64 throughout."""
    (left, left_inverse), (right, right_inverse) = _roots(fisher), _roots(covariance)
    u, singular, v = torch.linalg.svd(left @ weight @ right)
    out, into = left_inverse @ u[:, :rank] * singular[:rank], v[:rank] @ right_inverse
    return Translator(out, into, bias + weight @ mean - out @ (into @ mean))


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a positive semi-definite matrix, damped, and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = (values.clamp(min=0) + DAMPING * values.mean().clamp(min=1e-30)).sqrt()
    return vectors * roots @ vectors.T, vectors / roots @ vectors.T
