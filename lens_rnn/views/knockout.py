"""Knocking out what a block reads from a token: at one block the token is not written to the recurrent memory, so that
no later token can read it there, while all else stays.

What is lost of logit[answer] − logit[foil] says how much of it comes by that way. In terms of hidden attention (Ali,
Zimerman & Wolf 2024, arXiv 2403.01590) the token's column of the block's matrix is set to zero below the diagonal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lens_rnn.errors import ConfigError, ModelError
from lens_rnn.intervals import Estimate, mean_estimate
from lens_rnn.models import ModelAdapter, RecurrentAdapter, RecurrentState
from lens_rnn.models.families.recurrent import Passage
from lens_rnn.views.patching import Pair, PairRun, checked_pairs

import numpy as np
import torch
from jaxtyping import Float

KNOCKED_OUT = "knocked out"
"""What the map of `Knockout.lost` is called beside those of `Patching.shares`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Knockout:
    """What is lost, of some pairs."""

    lost: Float[np.ndarray, "pairs blocks spans"]
    """Share of the difference between clean and corrupted run that the clean run loses: 0 where nothing is read from
    these tokens at this block that matters, 1 where all is; NaN at blocks without a recurrent memory."""
    spans: tuple[tuple[int, int], ...]
    """First token of each span, and the one after its last."""

    def mean(self) -> Float[np.ndarray, "blocks spans"]:
        """Mean share over pairs."""
        return self.lost.mean(0)

    def estimate(self, block: int, span: int) -> Estimate:
        """Mean share with its 95 % interval over pairs."""
        return mean_estimate(self.lost[:, block, span])


def knock_out(
    adapter: ModelAdapter,
    pairs: Sequence[Pair],
    spans: Sequence[tuple[int, int]] | None = None,
    *,
    on_pair: Callable[[int], Any] | None = None,
) -> Knockout:
    """Knock out each span of tokens at each block of the clean run, one at a time.

    spans: (first, end) each, by default every token by itself. The last token of a text is read by none.

    Raises what `patch` raises of pairs; ConfigError for a span that is not in the text; ModelError for a model whose
    blocks do not run by equations of this package.
    """
    if not isinstance(adapter, RecurrentAdapter):
        raise ModelError(f"model type {adapter.model_type!r} does not run by equations of ours: nothing to knock out")
    read = checked_pairs(adapter, pairs)
    tokens = len(read[0][0])
    spans = tuple((i, i + 1) for i in range(tokens)) if spans is None else tuple(spans)
    for first, end in spans:
        if not 0 <= first < end <= tokens:
            raise ConfigError(f"tokens {first} to {end} are no span of a text of {tokens}")
    lost = []
    for number, pair in enumerate(pairs):
        run = PairRun.of(adapter, number, read[number], pair)
        lost.append(np.stack([_of_span(adapter, run, first, end) for first, end in spans], axis=1))
        if on_pair:
            on_pair(1)
    return Knockout(lost=np.stack(lost), spans=spans)


@torch.no_grad()
def _of_span(adapter: RecurrentAdapter, run: PairRun, first: int, end: int) -> Float[np.ndarray, " blocks"]:
    """The share that the clean run loses at each block."""
    ids, blocks = run.clean_ids, len(adapter.blocks)
    if end >= ids.shape[1]:
        return np.zeros(blocks)  # nothing comes after it to read it
    before = adapter.advance(ids[:, :first])[1] if first else None
    after = adapter.advance(ids[:, first:end], before)[1]
    inputs = [x[:, first:end] for x in adapter.block_inputs(ids)]
    passage = Passage(seen=first)
    state = after.repeat(blocks)
    for block in range(blocks):
        own = before.blocks[block] if before else _empty(after, block)
        forgotten = adapter.forget(block, inputs[block], own, after.blocks[block], passage)
        for name, tensor in forgotten.items():
            state.blocks[block][name][block] = tensor[0]
    rest = ids[:, end:].expand(blocks, -1)
    lost = 1 - run.share(run.difference(adapter.advance(rest, state)[0].final))
    has_memory = [any(name in block for name in adapter.memory_names) for block in after.blocks]
    return np.where(has_memory, lost, np.nan)


def _empty(like: RecurrentState, block: int) -> dict[str, torch.Tensor]:
    """The state of no token."""
    return {
        name: torch.full_like(tensor, -1e38) if name == "max" else torch.zeros_like(tensor)
        for name, tensor in like.blocks[block].items()
    }
