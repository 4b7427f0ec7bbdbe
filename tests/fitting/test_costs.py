"""Operations, counted and estimated, and the share of positions that follows."""

from lens_rnn.fitting.costs import LEAST_SHARE, Costs, count_costs
from lens_rnn.models import ModelAdapter

import pytest
import torch

CPU = torch.device("cpu")


def test_they_are_those_of_the_matrices(tiny_model: ModelAdapter) -> None:
    """A forward pass multiplies each token with each matrix of its blocks once."""
    costs = count_costs(tiny_model, 64, fisher=True, device=CPU)
    matrices = [m for m in tiny_model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    expected = 2 * sum(m.weight.numel() for m in matrices)
    assert costs.forward >= expected  # attention and convolutions come on top
    assert costs.forward == pytest.approx(expected, rel=0.4)
    d, vocab, layers = tiny_model.d_model, tiny_model.vocab_size, len(tiny_model.fitted_layers)
    assert costs.position == 2 * 2 * vocab * d + layers * (2 * 2 * vocab * d + 3 * 2 * d * d)
    assert count_costs(tiny_model, 64, fisher=False, device=CPU).position < costs.position
    assert costs.of(10, 3) == 10 * costs.forward + 3 * costs.position


def test_the_dearer_a_position_the_fewer_of_them() -> None:
    shares = [Costs(1.0, 0.0, position, 1, overhead=1.0).best_share for position in (0.1, 1, 10, 100, 1e9)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[-1] == LEAST_SHARE
    assert all(1 / share == 2 ** round(torch.log2(torch.tensor(1 / share)).item()) for share in shares)
    slow = Costs(1.0, 0.0, 10.0, 1, overhead=16.0).best_share
    assert slow == 4 * shares[2]
