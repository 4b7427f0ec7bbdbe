"""What an adapter gives: each family's hidden states, sizes, depth."""

import copy

from lens_rnn.models import ModelAdapter, wrap_model
from tests.conftest import make_model

import pytest
import torch
from torch import Tensor

BLOCKS = {"mamba": 3, "rwkv4": 8, "neox": 3}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(1))


def block_outputs(model: ModelAdapter, ids: Tensor) -> list[Tensor]:
    """What each block returns, seen from outside by hooks, as a check on the hidden states that the model reports."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _args, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in model.blocks
    ]
    try:
        with torch.no_grad():
            model.model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def test_sizes(tiny_model: ModelAdapter, family: str) -> None:
    assert (tiny_model.n_layers, tiny_model.d_model, tiny_model.vocab_size) == (BLOCKS[family], 32, 96)
    assert (tiny_model.dtype, tiny_model.device.type) == (torch.float32, "cpu")
    assert not tiny_model.model.training
    assert not any(p.requires_grad for p in tiny_model.model.parameters())


def test_forward_gives_what_transformers_gives(tiny_model: ModelAdapter, ids: Tensor) -> None:
    with torch.no_grad():
        expected = tiny_model.model(ids, output_hidden_states=True)
    got = tiny_model.forward(ids)
    assert len(got.hidden_states) == tiny_model.n_layers
    for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=False):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(got.final, expected.hidden_states[-1])
    torch.testing.assert_close(tiny_model.unembed(got.norm_input), expected.logits)
    torch.testing.assert_close(tiny_model.head(got.final), expected.logits)


@pytest.mark.parametrize("fixture", ["tiny_mamba", "tiny_rwkv4"])
def test_the_last_state_of_a_recurrent_model_enters_the_final_norm(
    fixture: str, ids: Tensor, request: pytest.FixtureRequest
) -> None:
    model: ModelAdapter = request.getfixturevalue(fixture)
    got = model.forward(ids)
    assert torch.equal(got.hidden_states[-1], got.norm_input)
    assert model.trivial_layers == {model.n_layers - 1}
    assert model.fitted_layers == tuple(range(model.n_layers - 1))


def test_mamba_states_are_block_outputs(tiny_mamba: ModelAdapter, ids: Tensor) -> None:
    for state, output in zip(tiny_mamba.forward(ids).hidden_states, block_outputs(tiny_mamba, ids), strict=True):
        torch.testing.assert_close(state, output)


def test_neox_states_are_block_inputs_and_its_norm_input_is_none_of_them(tiny_neox: ModelAdapter, ids: Tensor) -> None:
    got, outputs = tiny_neox.forward(ids), block_outputs(tiny_neox, ids)
    torch.testing.assert_close(got.hidden_states[0], tiny_neox.model.get_input_embeddings()(ids))
    for state, output in zip((*got.hidden_states[1:], got.norm_input), outputs, strict=True):
        torch.testing.assert_close(state, output)
    assert tiny_neox.trivial_layers == frozenset()
    assert tiny_neox.fitted_layers == (0, 1, 2)


def test_rwkv4_states_are_halved_after_six_blocks(ids: Tensor) -> None:
    """States after block 6 are half of those of the model that is not rescaled; a hook on that block sees them
    whole."""
    plain = make_model("rwkv4")
    plain.config.rescale_every = 0
    with torch.no_grad():
        whole = plain.eval()(ids, output_hidden_states=True).hidden_states
    model = wrap_model(make_model("rwkv4"))
    states, outputs = model.forward(ids).hidden_states, block_outputs(model, ids)
    for i, factor in enumerate([1, 1, 1, 1, 1, 0.5, 0.5, 0.5]):
        torch.testing.assert_close(states[i], factor * whole[i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[5], 2 * states[5])
    torch.testing.assert_close(model.forward(ids).final, whole[-1], rtol=1e-4, atol=1e-4)


def test_depth_is_the_fraction_of_blocks_applied(
    tiny_mamba: ModelAdapter, tiny_rwkv4: ModelAdapter, tiny_neox: ModelAdapter
) -> None:
    assert [tiny_mamba.depth(i) for i in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [tiny_rwkv4.depth(i) for i in (0, 3, 7)] == pytest.approx([1 / 8, 1 / 2, 1])
    assert [tiny_neox.depth(i) for i in range(3)] == pytest.approx([0, 1 / 3, 2 / 3])


def test_forward_leaves_no_hook_behind_even_after_an_error(tiny_model: ModelAdapter, ids: Tensor) -> None:
    tiny_model.forward(ids)
    with pytest.raises(IndexError):
        tiny_model.forward(ids + 96)
    assert not tiny_model.final_norm._forward_pre_hooks


def test_a_copied_model_is_independent(tiny_model: ModelAdapter, ids: Tensor) -> None:
    """A copy runs its own weights."""
    expected = tiny_model.forward(ids).final
    twin = copy.deepcopy(tiny_model)
    torch.testing.assert_close(twin.forward(ids).final, expected)
    for parameter in twin.blocks.parameters():
        parameter.zero_()
    assert not torch.allclose(twin.forward(ids).final, expected, atol=1e-2)
    assert torch.equal(tiny_model.forward(ids).final, expected)
