"""Steering: a vector added to the residual stream while the model reads, or to its recurrent state between tokens, or
both."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lens_rnn.errors import ConfigError
from lens_rnn.models import Forward, ModelAdapter, RecurrentState
from lens_rnn.models.inputs import checked_layers
from lens_rnn.steering.vectors import SteeringVectors

import torch
from torch import Tensor


@contextmanager
def steer(
    adapter: ModelAdapter,
    vectors: SteeringVectors,
    multiplier: float | Tensor,
    layers: int | Sequence[int],
    positions: int | slice | Tensor | None = None,
) -> Iterator[None]:
    """Inside it, `multiplier` times a layer's residual vector is added to its hidden states; the model is left as it
    was, bit for bit, also after an error.

    multiplier: one for all, or (batch), one a sequence.
    positions: where in the ids of one pass: an index (−1 is the last), a slice, or (batch), one index a sequence, for
    instance the last real tokens of a batch that is padded on the right; by default every token.

    Raises ConfigError for no layer, or for one that the model does not have or that has no vector of its size.
    """
    with ExitStack() as stack:
        for layer in checked_layers(adapter, layers):
            vector = vectors.residual(layer).to(adapter.device)
            if vector.shape != (adapter.d_model,):
                size = vector.numel()
                raise ConfigError(
                    f"the vector of layer {layer} has {size} entries, and {adapter.name} a d_model of {adapter.d_model}"
                )
            shift = _times(vector[None], multiplier)  # (batch or 1, 1, d_model)

            def change(h: Tensor, shift: Tensor = shift) -> Tensor:
                return h + shift if positions is None else torch.where(_chosen(h, positions)[..., None], h + shift, h)

            stack.enter_context(adapter.edited(layer, change))
        yield


def steer_state(
    state: RecurrentState, vectors: SteeringVectors, multiplier: float | Tensor, layers: int | Sequence[int]
) -> RecurrentState:
    """A copy of a recurrent state with `multiplier`, one or (batch), times the vectors of these blocks added to all of
    their tensors.

    Raises ConfigError for a block without a vector of the state's shape.
    """
    edited = state.clone()
    for layer in [layers] if isinstance(layers, int) else layers:
        for name, vector in vectors.state(layer).items():
            block = edited.blocks[layer] if layer < len(edited.blocks) else {}
            tensor = block.get(name)
            if tensor is None or tensor.shape[1:] != vector.shape:
                raise ConfigError(
                    f"the vector {name}.{layer} has the shape {tuple(vector.shape)}, which no such state of the "
                    "model has"
                )
            block[name] = (tensor + _times(vector.to(tensor.device), multiplier)).to(tensor.dtype)
    return edited


def advance_steered(
    adapter: ModelAdapter,
    input_ids: Tensor,
    state: RecurrentState,
    vectors: SteeringVectors,
    multiplier: float | Tensor,
    layers: int | Sequence[int],
    *,
    every_token: bool = False,
) -> tuple[Forward, RecurrentState]:
    """`adapter.advance` over input_ids (batch, seq) from a state that is steered first: once, or anew before every
    token."""
    if not every_token:
        return adapter.advance(input_ids, steer_state(state, vectors, multiplier, layers))
    steps = []
    for token in input_ids.split(1, dim=1):
        step, state = adapter.advance(token, steer_state(state, vectors, multiplier, layers))
        steps.append(step)
    return Forward.joined(steps), state


def _chosen(h: Tensor, positions: int | slice | Tensor) -> Tensor:
    """(batch or 1, seq): which tokens of h (batch, seq, d_model) are steered."""
    if isinstance(positions, slice):
        chosen = torch.zeros(1, h.shape[1], dtype=torch.bool, device=h.device)
        chosen[:, positions] = True
        return chosen
    at = torch.as_tensor(positions, device=h.device).expand(len(h))  # (batch)
    seq = h.shape[1]
    if bool(((at < -seq) | (at >= seq)).any()):
        raise ConfigError(f"positions {at.tolist()} are not all within the {seq} tokens that are read")
    return at[:, None] % seq == torch.arange(seq, device=h.device)


def _times(vector: Tensor, multiplier: float | Tensor) -> Tensor:
    """multiplier · vector, with the batch in front: (batch or 1, …)."""
    factors = torch.as_tensor(multiplier, dtype=torch.float32, device=vector.device).reshape(-1, *([1] * vector.ndim))
    return factors * vector
