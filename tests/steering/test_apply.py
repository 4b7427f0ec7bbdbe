"""Steering the residual stream and the recurrent state: where it acts, and that nothing of it stays."""

from lens_rnn.errors import ConfigError
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.steering import SteeringVectors, advance_steered, steer, steer_state
from tests.conftest import D_MODEL, VOCAB_SIZE

import pytest
import torch
from torch import Tensor

LENGTHS = torch.tensor([7, 3, 5])


def ids() -> Tensor:
    return torch.randint(VOCAB_SIZE, (3, 7), generator=torch.Generator().manual_seed(4))


def vectors_for(adapter: ModelAdapter, seed: int = 0) -> SteeringVectors:
    """Random vectors of about the size of the states."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"residual.{i}": (adapter.d_model,) for i in range(adapter.n_layers)}
    if adapter.has_state:
        _, state = adapter.advance(ids())
        for i, block in enumerate(state.blocks):
            shapes |= {f"{name}.{i}": tuple(block[name].shape[1:]) for name in adapter.state_names if name in block}
    return SteeringVectors(
        tensors={key: torch.randn(shape, generator=generator) * 0.5 for key, shape in shapes.items()}
    )


def assert_same(a: Forward, b: Forward) -> None:
    assert torch.equal(a.final, b.final)
    assert all(torch.equal(x, y) for x, y in zip(a.hidden_states, b.hidden_states, strict=True))


def fail(adapter: ModelAdapter) -> None:
    adapter.forward(ids())
    raise RuntimeError("on the way")


def test_the_vector_is_added_where_it_should_be(every_model: ModelAdapter) -> None:
    vectors, before = vectors_for(every_model), every_model.forward(ids())
    layer = every_model.n_layers - 2
    with steer(every_model, vectors, 1.5, layer, LENGTHS - 1):
        after = every_model.forward(ids())
    change = after.hidden_states[layer] - before.hidden_states[layer]
    expected = torch.zeros_like(change)
    for row, last in enumerate(LENGTHS - 1):
        expected[row, last] = 1.5 * vectors.residual(layer)
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
    for row, last in enumerate(LENGTHS - 1):  # causal: what was read before is as it was, what follows is not
        assert torch.equal(after.final[row, :last], before.final[row, :last])
        assert not torch.allclose(after.final[row, last], before.final[row, last], atol=1e-3)


def test_a_padded_batch_is_its_rows_one_by_one(tiny_model: ModelAdapter) -> None:
    vectors, times = vectors_for(tiny_model), torch.tensor([1.0, -2.0, 0.5])
    with steer(tiny_model, vectors, times, [0, 1], LENGTHS - 1):
        together = tiny_model.forward(ids())
    for row, length in enumerate(LENGTHS.tolist()):
        with steer(tiny_model, vectors, float(times[row]), [0, 1], -1):
            alone = tiny_model.forward(ids()[row : row + 1, :length])
        torch.testing.assert_close(together.final[row, length - 1], alone.final[0, -1], rtol=1e-4, atol=1e-5)


def test_every_token_and_slices(tiny_mamba: ModelAdapter) -> None:
    vectors, before = vectors_for(tiny_mamba), tiny_mamba.forward(ids()).hidden_states[1]
    for positions, chosen in ((None, slice(0, 7)), (slice(4, None), slice(4, 7)), (2, slice(2, 3))):
        with steer(tiny_mamba, vectors, 1.0, 1, positions):
            change = tiny_mamba.forward(ids()).hidden_states[1] - before
        expected = torch.zeros_like(change)
        expected[:, chosen] = vectors.residual(1)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


def test_nothing_stays(every_model: ModelAdapter) -> None:
    vectors, before = vectors_for(every_model), every_model.forward(ids())
    with steer(every_model, vectors, 2.0, [0, 1]):
        assert not torch.equal(every_model.forward(ids()).final, before.final)
    assert_same(every_model.forward(ids()), before)
    with pytest.raises(RuntimeError, match="on the way"), steer(every_model, vectors, 2.0, [0, 1]):
        fail(every_model)
    assert_same(every_model.forward(ids()), before)
    with steer(every_model, vectors, 0.0, [0, 1]):
        assert_same(every_model.forward(ids()), before)


def test_an_error_inside_the_model_leaves_nothing(tiny_model: ModelAdapter) -> None:
    vectors, before = vectors_for(tiny_model), tiny_model.forward(ids())
    with (
        pytest.raises(ConfigError, match="within the 7 tokens"),
        steer(tiny_model, vectors, 1.0, [0, 1], 7),
    ):
        tiny_model.forward(ids())
    assert_same(tiny_model.forward(ids()), before)


def test_a_state_is_steered_as_a_copy(every_model: ModelAdapter) -> None:
    if not every_model.has_state:
        pytest.skip("no recurrent state")
    vectors = vectors_for(every_model)
    _, state = every_model.advance(ids()[:, :-1])
    plain, _ = every_model.advance(ids()[:, -1:], state)
    kept, times = state.clone(), torch.tensor([1.0, 0.0, -0.5])
    steered = steer_state(state, vectors, times, 0)
    for layer, block in enumerate(state.blocks):
        for name, tensor in block.items():
            assert torch.equal(tensor, kept.blocks[layer][name])
            added = steered.blocks[layer][name] - tensor
            if name not in every_model.state_names:
                assert not added.any(), "keys and values are not steered"
                continue
            size = times.reshape(-1, *[1] * (tensor.ndim - 1)) * vectors.tensors[f"{name}.{layer}"] * (layer == 0)
            torch.testing.assert_close(added, size.expand_as(added), rtol=1e-4, atol=1e-4)
    after, _ = every_model.advance(ids()[:, -1:], steered)
    assert torch.equal(after.final[1], plain.final[1])
    assert not torch.allclose(after.final[0], plain.final[0], atol=1e-4)
    assert_same(every_model.advance(ids()[:, -1:], state)[0], plain)


def test_once_and_before_every_token(tiny_mamba: ModelAdapter) -> None:
    vectors = vectors_for(tiny_mamba)
    _, state = tiny_mamba.advance(ids()[:, :4])
    once, _ = advance_steered(tiny_mamba, ids()[:, 4:], state, vectors, 0.7, 1)
    expected, _ = tiny_mamba.advance(ids()[:, 4:], steer_state(state, vectors, 0.7, 1))
    assert_same(once, expected)
    always, last = advance_steered(tiny_mamba, ids()[:, 4:], state, vectors, 0.7, [0, 1], every_token=True)
    current = state
    for t in range(4, 7):
        step, current = tiny_mamba.advance(
            ids()[:, t : t + 1], steer_state(steer_state(current, vectors, 0.7, 0), vectors, 0.7, 1)
        )
        torch.testing.assert_close(always.final[:, t - 4], step.final[:, 0])
    assert torch.equal(last.blocks[1]["ssm"], current.blocks[1]["ssm"])
    assert not torch.allclose(always.final[:, -1], once.final[:, -1], atol=1e-3)


def test_bad_input_is_one_line(tiny_mamba: ModelAdapter, tiny_rwkv4: ModelAdapter) -> None:
    vectors = vectors_for(tiny_mamba)
    before = tiny_mamba.forward(ids())
    for layer in (3, -1):
        with (
            pytest.raises(ConfigError, match=f"no layer {layer}"),
            steer(tiny_mamba, vectors, 1.0, [0, layer]),
        ):
            pass
    assert_same(tiny_mamba.forward(ids()), before)
    short = SteeringVectors(tensors={"residual.0": torch.ones(5), "ssm.0": torch.ones(5)})
    with (
        pytest.raises(ConfigError, match=f"d_model of {D_MODEL}"),
        steer(tiny_mamba, short, 1.0, 0),
    ):
        pass
    state = tiny_mamba.advance(ids())[1]
    with pytest.raises(ConfigError, match=r"ssm\.0 has the shape \(5,\)"):
        steer_state(state, short, 1.0, 0)
    with pytest.raises(ConfigError, match="no such state"):
        steer_state(tiny_rwkv4.advance(ids())[1], vectors, 1.0, 0)
    with pytest.raises(ConfigError, match="layer 7"):
        steer_state(state, vectors, 1.0, 7)
