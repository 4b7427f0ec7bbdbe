"""A recurrence that is linear in its inputs is a causal matrix in disguise: the products that make one, without
overflow.

Each family's `recurrence` says what q, k and the decay are (Ali, Zimerman & Wolf 2024, arXiv 2403.01590).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_CHUNK = 64  # tokens, a power of two


def decayed_products(
    q: Float[Tensor, "#units tokens n"], k: Float[Tensor, "units tokens n"], log_decay: Float[Tensor, "units tokens #n"]
) -> Float[Tensor, "units tokens tokens"]:
    """Σ_n q_i[n] exp(Σ_{t=j+1..i} log_decay_t[n]) k_j[n] for j ≤ i, else 0. log_decay: not positive.

    No exponent is ever above 0: where queries of some tokens meet keys of earlier ones, those decay since the boundary
    between them, these until it. Within a chunk the boundaries are the middles of its halves, quarters and so on;
    earlier chunks' keys are carried along.
    """
    units, tokens = k.shape[:2]
    q, k, log_decay = (F.pad(t.expand(units, -1, -1), (0, 0, 0, -tokens % _CHUNK)) for t in (q, k, log_decay))
    out = k.new_zeros(units, k.shape[1], k.shape[1])
    out.diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
    for half in (2**level for level in range(_CHUNK.bit_length() - 1)):
        reads, keys, steps = (t.unflatten(1, (-1, 2, half)) for t in (q, k, log_decay))  # (units, pairs, 2, half, n)
        read = reads[:, :, 1] * _since(steps[:, :, 1]).exp()
        met = read @ (keys[:, :, 0] * _until(steps[:, :, 0]).exp()).mT  # (units, pairs, i, j)
        squares = (
            out.unflatten(1, (-1, 2 * half)).unflatten(3, (-1, 2 * half)).diagonal(dim1=1, dim2=3)
        )  # (units, i, j, pairs)
        squares[:, half:, :half] = met.permute(0, 2, 3, 1)
    steps = log_decay.unflatten(1, (-1, _CHUNK))  # (units, chunks, tokens of a chunk, n)
    reads, keys = q.unflatten(1, (-1, _CHUNK)) * _since(steps).exp(), k.unflatten(1, (-1, _CHUNK)) * _until(steps).exp()
    total = steps.sum(2, keepdim=True).exp()
    carried = keys.flatten(1, 2)  # decayed until the chunk that reads
    for chunk in range(1, keys.shape[1]):
        start = chunk * _CHUNK
        out[:, start : start + _CHUNK, :start] = reads[:, chunk] @ carried[:, :start].mT
        carried[:, :start] *= total[:, chunk]
    return out[:, :tokens, :tokens]


def _since(steps: Tensor) -> Tensor:
    """Of steps (…, tokens, n): the sum up to and with each token."""
    return steps.cumsum(-2)


def _until(steps: Tensor) -> Tensor:
    """Of steps (…, tokens, n): the sum after each token."""
    return F.pad(steps[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)
