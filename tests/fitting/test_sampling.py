"""Which blocks, positions and draws a step has: a function of seed, step and place alone."""

from lens_rnn.fitting.sampling import Sampling

import numpy as np
import pytest
import torch


def sampling(**changes) -> Sampling:
    return Sampling(**{"seed": 0, "blocks": 40, "apart": 4, "batch_size": 6, "targets": 16, "positions": 4} | changes)


def test_a_pass_sees_each_block_at_most_once_and_those_apart_never() -> None:
    made = sampling()
    assert made.steps_a_pass == 6
    orders = []
    for number in range(3):
        rows = np.concatenate([made.rows(number * 6 + step) for step in range(6)])
        assert len(set(rows.tolist())) == 36
        assert not set(rows.tolist()) & set(made.kept_apart.tolist())
        orders.append(tuple(rows.tolist()))
    assert len(set(orders)) == 3
    assert len(set(made.kept_apart.tolist())) == 4
    assert sampling(apart=0).rows(0).tolist() == np.random.default_rng((0, 0)).permutation(40)[:6].tolist()


@pytest.mark.parametrize(("targets", "positions"), [(16, 4), (15, 4), (15, 14), (256, 1), (255, 100)])
def test_each_stretch_of_a_block_has_one_position(targets: int, positions: int) -> None:
    made = sampling(targets=targets, positions=positions)
    seen = np.zeros(targets)
    for step in range(200):
        chosen = made.of_step(step, np.arange(6))
        assert chosen is not None
        places = chosen.numpy().reshape(6, positions) - np.arange(6)[:, None] * targets
        edges = np.arange(positions + 1) * targets // positions
        assert (places >= edges[:-1]).all()
        assert (places < edges[1:]).all()
        np.add.at(seen, places.ravel(), 1)
    assert (seen > 0).all() or positions == 1, "every position has its turn"


def test_all_positions_are_none() -> None:
    assert sampling(positions=16).of_step(3, np.arange(6)) is None


def test_who_asks_does_not_matter() -> None:
    made = sampling()
    whole, draws = made.of_step(5, np.arange(6)), made.draws(5, np.arange(6))
    assert whole is not None
    for part in (np.array([1, 3]), np.array([5])):
        own = made.of_step(5, part)
        assert own is not None
        expected = whole.view(6, 4)[part] - torch.from_numpy(part)[:, None] * 16
        assert torch.equal(own.view(-1, 4) - torch.arange(len(part))[:, None] * 16, expected)
        assert torch.equal(made.draws(5, part), draws.view(6, 4)[part].flatten())


def test_steps_and_seeds_differ() -> None:
    part = np.arange(6)
    first = sampling().of_step(5, part)
    for other in (sampling().of_step(6, part), sampling(seed=1).of_step(5, part)):
        assert not torch.equal(first, other)
    draws = torch.cat([sampling(seed=seed).draws(step, part) for seed, step in ((0, 3), (0, 4), (1, 3))])
    assert len(draws.unique()) > 70
    assert draws.min() >= 0
    assert draws.max() < 1


def test_what_is_chosen_on_has_positions_of_its_own() -> None:
    made = sampling()
    chosen = made.of_choice(np.arange(4), 2)
    assert chosen is not None
    assert chosen.shape == (8,)
    assert made.of_choice(np.arange(4), 16) is None
