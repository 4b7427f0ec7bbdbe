"""Latent state reading: what does a memory say, if a model goes on from it after another text?

A source text is read, and its recurrent states are added to those of an eliciting prompt, times a multiplier, or put in
their place; then the model goes on. The paper's authors tried it with a multiplier of 10 (Paulo, Marshall & Belrose,
arXiv 2404.05971, in their code) and published no numbers. Here it is an experiment: does the next token name what the
source was about more than it does with the state of another source of the same length?

Controls: a multiplier of 0, which is the prompt alone; states of other sources of the same length; and the source's own
states in the wrong blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lens_rnn.errors import DataError, ModelError
from lens_rnn.intervals import Estimate, mean_estimate
from lens_rnn.models import ModelAdapter, RecurrentState
from lens_rnn.models.inputs import OneText, checked_layers, one_text
from lens_rnn.models.state import combined

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class StateReading(NamedTuple):
    """What a prompt leads to with the state of a source in it."""

    log_probabilities: Float[Tensor, " vocab"]
    """Of the next token, float32, on the CPU."""
    kl: float
    """From the next token's distribution after the prompt alone to this one, in nats."""
    continuation: tuple[int, ...]
    """The likeliest tokens, one after another."""


@torch.no_grad()
def read_state(
    adapter: ModelAdapter,
    source: OneText,
    eliciting: OneText,
    multiplier: float = 1.0,
    *,
    exchange: bool = False,
    blocks: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
    tokens: int = 0,
) -> StateReading:
    """Put the state of a source into that of an eliciting prompt, before the prompt's last token, and go on.

    exchange: (1 − multiplier) × the prompt's own state + multiplier × the source's, in place of a sum. blocks: whose
    state takes part, by default all. order: for each block the block whose state of the source it gets, by default its
    own. tokens: how many to go on with.

    Raises ModelError for a model without a state that can be reached, DataError for texts that cannot be read, or a
    prompt of fewer than two tokens; ConfigError for a block that the model does not have.
    """
    of_source, prompt = _state(adapter, source), _prompt(adapter, eliciting)
    chosen = range(len(adapter.blocks)) if blocks is None else checked_layers(adapter, blocks)
    order = range(len(adapter.blocks)) if order is None else order
    state = adapter.advance(prompt[:, :-1])[1].clone()
    for block in chosen:
        own, other = state.blocks[block], of_source.blocks[order[block]]
        if own.keys() == other.keys():
            state.blocks[block] = combined(own, other, 1 - multiplier if exchange else 1.0, multiplier)
    plain = adapter.forward(prompt).final[0, -1]
    forward, state = adapter.advance(prompt[:, -1:], state)
    log_p, log_q = (adapter.logits(final).float().log_softmax(-1) for final in (forward.final[0, -1], plain))
    continuation: list[int] = []
    for _ in range(tokens):
        new = adapter.logits(forward.final[:, -1]).argmax(-1, keepdim=True)
        continuation.append(int(new))
        forward, state = adapter.advance(new, state)
    return StateReading(log_p.cpu(), float((log_p.exp() * (log_p - log_q)).sum()), tuple(continuation))


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A text to read the state of, and the token that says what it was about."""

    text: OneText
    about: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadingResult:
    """Log-probability of what each source was about, in nats, after the eliciting prompt: (sources) each."""

    own: np.ndarray
    """With the source's state."""
    others: np.ndarray
    """With the states of the sources that were about something else, on average."""
    shuffled: np.ndarray
    """With the source's states, each in another block."""
    plain: np.ndarray
    """The prompt alone."""

    def effect(self, control: str) -> Estimate:
        """How much likelier the source's own token is with its state than in a control (others, shuffled, plain), in
        nats, with its 95 % interval over sources."""
        return mean_estimate(self.own - getattr(self, control))


def reading_experiment(
    adapter: ModelAdapter,
    sources: Sequence[Source],
    eliciting: OneText,
    multiplier: float = 1.0,
    *,
    exchange: bool = False,
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    on_source: Callable[[int], Any] | None = None,
) -> ReadingResult:
    """Read the state of each source after one prompt, and the controls.

    Raises what `read_state` raises, and DataError for sources of different lengths, or all about the same.
    """
    lengths = {one_text(adapter, source.text).shape[1] for source in sources}
    if len(lengths) > 1:
        raise DataError(f"sources have {', '.join(map(str, sorted(lengths)))} tokens; give sources of one length")
    if len({source.about for source in sources}) < 2:
        raise DataError("all sources are about the same, or there is none; give some that are about something else")
    about = torch.tensor([source.about for source in sources])
    turn = _derangement(len(adapter.blocks), seed)
    settings: dict[str, Any] = {"exchange": exchange, "blocks": blocks}
    own, shuffled = [], []
    for source in sources:
        read = read_state(adapter, source.text, eliciting, multiplier, **settings)
        own.append(read.log_probabilities[about])
        wrong = read_state(adapter, source.text, eliciting, multiplier, order=turn, **settings)
        shuffled.append(wrong.log_probabilities[source.about])
        if on_source:
            on_source(1)
    plain = read_state(adapter, sources[0].text, eliciting, 0.0, **settings).log_probabilities[about]
    table = torch.stack(own).double()  # (source whose state it is, source whose token it is)
    is_other = (about[:, None] != about).double()
    others = (table * is_other).sum(0) / is_other.sum(0)
    return ReadingResult(
        own=table.diagonal().numpy(),
        others=others.numpy(),
        shuffled=torch.stack(shuffled).double().numpy(),
        plain=plain.double().numpy(),
    )


def _derangement(blocks: int, seed: int) -> list[int]:
    """An order in which no block is at its own place, where there are two or more."""
    order = np.random.default_rng(seed).permutation(blocks)
    turned = np.empty(blocks, dtype=int)
    turned[order] = np.roll(order, 1)
    return turned.tolist()


def _prompt(adapter: ModelAdapter, eliciting: OneText) -> Tensor:
    ids = one_text(adapter, eliciting)
    if ids.shape[1] < 2:
        raise DataError("the eliciting prompt has one token; give two or more, so that there is a state to add to")
    return ids


def _state(adapter: ModelAdapter, source: OneText) -> RecurrentState:
    if not adapter.has_state:
        raise ModelError(adapter.no_state)
    return adapter.advance(one_text(adapter, source))[1]
