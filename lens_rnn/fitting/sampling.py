"""What a fit sees of its text, and when: which blocks a step has, which of their positions are looked at, and the draws
for labels. All of it is a function of the seed, the step and the place in the batch, so that it does not matter which
process asks, or when.

Neighbouring tokens say nearly the same about a translator. A step therefore looks at a share of the positions of more
text: one position in each of as many equal stretches of a block, anywhere in its stretch, the same for all layers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_APART = 2**31  # where a step's number stands in the seeds of draws, for what is drawn once
_POSITIONS = 1  # after a step's number, for its positions


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Blocks, positions and draws of every step."""

    seed: int
    blocks: int
    """Of the text."""
    apart: int
    """Blocks that no step and no start sees: the end of the fit is judged on them."""
    batch_size: int
    """Blocks in a step, over all processes together."""
    targets: int
    """Positions of a block that have a target."""
    positions: int
    """Positions of a block that are looked at: all, or fewer."""

    @property
    def kept_apart(self) -> np.ndarray:
        """The blocks that are kept apart, rising, (apart)."""
        return _kept_apart(self.seed, self.blocks, self.apart)

    @property
    def steps_a_pass(self) -> int:
        """Steps that see each block at most once: a last part of a batch is left out."""
        return (self.blocks - self.apart) // self.batch_size

    def order(self, number: int) -> np.ndarray:
        """The order in which a pass sees the blocks, those left out by its steps included, (blocks − apart)."""
        return _order(self.seed, number, self.blocks, self.apart)

    def rows(self, step: int) -> np.ndarray:
        """The blocks of a step, (batch_size): each pass has an order of its own."""
        first = step % self.steps_a_pass * self.batch_size
        return self.order(step // self.steps_a_pass)[first:][: self.batch_size]

    def of_step(self, step: int, part: np.ndarray) -> Int[Tensor, " chosen"] | None:
        """The positions that a step looks at in some blocks of its batch, counted over the targets of these blocks one
        after another, rising; None for all."""
        return self._positions((self.seed, step, _POSITIONS), self.batch_size, part, self.positions)

    def of_choice(self, part: np.ndarray, a_block: int) -> Int[Tensor, " chosen"] | None:
        """The same of some of the blocks that are kept apart, `a_block` of each."""
        return self._positions((self.seed, _APART, _POSITIONS), self.apart, part, a_block)

    def draws(self, step: int, part: np.ndarray) -> Float[Tensor, " chosen"]:
        """A uniform draw in [0, 1) for each position that a step looks at in some blocks of its batch."""
        generator = np.random.default_rng((self.seed, step))
        draws = generator.random((self.batch_size, self.positions), dtype=np.float32)
        return torch.from_numpy(draws[part].flatten())

    def _positions(
        self, seed: tuple[int, ...], blocks: int, part: np.ndarray, a_block: int
    ) -> Int[Tensor, " chosen"] | None:
        if a_block >= self.targets:
            return None
        edges = np.arange(a_block + 1) * self.targets // a_block  # stretches of equal length, but for rounding
        draws = np.random.default_rng(seed).random((blocks, a_block))[part]
        places = edges[:-1] + (draws * np.diff(edges)).astype(np.int64)
        return torch.from_numpy((places + np.arange(len(part))[:, None] * self.targets).flatten())


def _kept_apart(seed: int, blocks: int, apart: int) -> np.ndarray:
    return np.sort(np.random.default_rng((seed, _APART)).permutation(blocks)[:apart])


@lru_cache(maxsize=4)
def _order(seed: int, number: int, blocks: int, apart: int) -> np.ndarray:
    """Kept, because every step of a pass asks for it, and a long text has many blocks."""
    order = np.random.default_rng((seed, number)).permutation(blocks)
    order = order[~np.isin(order, _kept_apart(seed, blocks, apart))] if apart else order
    order.setflags(write=False)
    return order
