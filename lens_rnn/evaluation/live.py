"""What each layer believes while a model writes: one token at a time, from the states of `advance`, so that neither the
time nor the memory of a token grows with the text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from lens_rnn.errors import ModelError
from lens_rnn.evaluation.metrics import reads
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.models.inputs import OneText, one_text
from lens_rnn.ranges import SEED, check_ranges, number, whole

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tuned_lens.nn.lenses import Lens

_AT_ONCE = 32  # tokens of the prompt whose logits are held at a time


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a text is gone on with."""

    tokens: Annotated[int, whole(0)] = 200
    """Tokens to write."""
    temperature: Annotated[float, number(0)] = 0.8
    """What logits are divided by before a token is drawn; 0 takes the likeliest."""
    top_p: Annotated[float, number(most=1, above=0)] = 0.95
    """Draw among the likeliest tokens that together have this probability."""
    seed: Annotated[int, SEED] = 0
    """Decides the draws."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Beliefs(NamedTuple):
    """What is believed after one token. The last row is the model itself."""

    token: int
    """The token that was read."""
    is_written: bool
    """Whether the model wrote it; it was in the prompt otherwise."""
    likeliest: Int[np.ndarray, " rows"]
    """The likeliest next token."""
    probability: Float[np.ndarray, " rows"]
    """Its probability."""
    entropy: Float[np.ndarray, " rows"]
    """Of the whole prediction, in nats."""
    kl: Float[np.ndarray, " rows"]
    """From the model's prediction, in nats."""


def layers_read(adapter: ModelAdapter, lens: Lens) -> list[int]:
    """The layer of each row of `Beliefs` but the last."""
    return [layer for layer in adapter.fitted_layers if reads(lens, layer)]


def write_live(adapter: ModelAdapter, lens: Lens, prompt: OneText, writing: Writing | None = None) -> Iterator[Beliefs]:
    """Read the prompt, then go on from it: what `lens` reads at each layer after each token, as soon as it is known.

    Raises ModelError for a model without a state that it can be fed token by token, DataError for a prompt that cannot
    be read.
    """
    writing = writing or Writing()
    if not adapter.has_state:
        raise ModelError(adapter.no_state)
    ids, state, layers = one_text(adapter, prompt), None, layers_read(adapter, lens)
    generator = torch.Generator(adapter.device).manual_seed(writing.seed)
    for first in range(0, ids.shape[1], _AT_ONCE):
        part = ids[:, first : first + _AT_ONCE]
        forward, state = adapter.advance(part, state)
        logits = adapter.logits(forward.final[0])  # (tokens, vocab)
        yield from _beliefs(lens, layers, forward, logits, part[0], is_written=False)
    for _ in range(writing.tokens):
        new = _drawn(logits[-1], writing, generator)  # (1, 1)
        forward, state = adapter.advance(new, state)
        logits = adapter.logits(forward.final[0])
        yield from _beliefs(lens, layers, forward, logits, new[0], is_written=True)


@torch.no_grad()
def _beliefs(
    lens: Lens,
    layers: list[int],
    forward: Forward,
    model: Float[Tensor, "tokens vocab"],
    tokens: Int[Tensor, " tokens"],
    is_written: bool,
) -> list[Beliefs]:
    """Of some tokens."""
    z = [lens.transform_hidden(forward.hidden_states[layer][0], layer) for layer in layers]
    read = lens.unembed(torch.stack(z)).float()  # (layers, tokens, vocab)
    log_q = torch.cat([read, model.float()[None]]).log_softmax(-1)
    likeliest = log_q.max(-1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    kl = (log_q[-1].exp() * (log_q[-1] - log_q)).sum(-1)
    columns = [part.cpu().numpy() for part in (likeliest.indices, likeliest.values.exp(), entropy, kl)]
    return [
        Beliefs(token, is_written, *(part[:, place] for part in columns)) for place, token in enumerate(tokens.tolist())
    ]


def _drawn(logits: Float[Tensor, " vocab"], writing: Writing, generator: torch.Generator) -> Int[Tensor, "1 1"]:
    """The next token: the likeliest, or one of the fewest that together have top_p."""
    if not writing.temperature:
        return logits.argmax()[None, None]
    p, order = (logits.float() / writing.temperature).softmax(-1).sort(descending=True)
    p[p.cumsum(0) - p >= writing.top_p] = 0  # what is likelier has enough already
    return order[torch.multinomial(p, 1, generator=generator)][None]
