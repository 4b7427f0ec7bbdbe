"""Pairs and questions of random tokens, of different lengths."""

from lens_rnn.steering import Pair, Question
from tests.conftest import VOCAB_SIZE

import numpy as np
import pytest


def random_text(random: np.random.Generator, length: int) -> tuple[int, ...]:
    return tuple(random.integers(VOCAB_SIZE, size=length).tolist())


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """24 pairs, the sides of different lengths."""
    random = np.random.default_rng(0)
    return [Pair(random_text(random, 3 + i % 4), random_text(random, 3 + i % 3)) for i in range(24)]


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    random = np.random.default_rng(1)
    return [Question(random_text(random, 4 + i), 5, 9) for i in range(3)]
