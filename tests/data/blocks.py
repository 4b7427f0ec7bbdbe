"""Packed tokens without a text."""

from lens_rnn.data import TokenBlocks

import numpy as np


def make_blocks(blocks: int = 60, seq_len: int = 16, vocab_size: int = 96, seed: int = 0) -> TokenBlocks:
    """Tokens of which four in five follow from the one before, so that there is something to predict."""
    random = np.random.default_rng(seed)
    tokens = random.integers(vocab_size, size=(blocks, seq_len))
    for t in range(1, seq_len):
        follows = random.random(blocks) < 0.8
        tokens[follows, t] = (5 * tokens[follows, t - 1] + 3) % vocab_size
    return TokenBlocks(tokens.astype(np.uint16), np.full_like(tokens, 3), "made tokens", 1, "0" * 64)
