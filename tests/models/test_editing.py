"""Hidden states changed where they are read, in both kinds of pass, and nothing left of it."""

from lens_rnn.errors import ConfigError
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.views.attention import hidden_attention
from tests.conftest import make_model

import pytest
import torch

IDS = torch.randint(96, (3, 14), generator=torch.Generator().manual_seed(3))


def test_an_edit_is_what_the_next_block_reads_and_leaves_nothing_behind(every_model: ModelAdapter) -> None:
    before = every_model.forward(IDS)
    for layer in range(every_model.n_layers):
        with every_model.edited(layer, lambda h: h.clone()):
            assert torch.equal(every_model.forward(IDS).final, before.final)
        with every_model.edited(layer, torch.zeros_like):
            got = every_model.forward(IDS)
        assert torch.equal(got.hidden_states[layer], torch.zeros_like(got.norm_input))
        for earlier in range(layer):
            torch.testing.assert_close(got.hidden_states[earlier], before.hidden_states[earlier])
        for later in range(
            layer + 1, every_model.n_layers
        ):  # from a residual stream of zeros every token of a text goes on alike
            assert not torch.allclose(got.hidden_states[later], before.hidden_states[later], atol=1e-3)
        assert not torch.allclose(got.final, before.final, atol=1e-3)
        if every_model.states_after_blocks and layer == every_model.n_layers - 1:
            assert torch.equal(got.norm_input, torch.zeros_like(got.norm_input))
    with pytest.raises(RuntimeError, match="on purpose"), every_model.edited(0, torch.zeros_like):
        raise RuntimeError("on purpose")
    assert torch.equal(every_model.forward(IDS).final, before.final)


def test_an_edit_in_the_units_of_hidden_states_also_where_they_are_halved(
    models_of_every_family: dict[str, ModelAdapter],
) -> None:
    """Putting a state of another text in its place makes the rest of the model do what it does there, in RWKV-4 after
    the halving too."""
    model = models_of_every_family["rwkv4"]
    other = IDS.roll(1, 0)
    states = model.forward(other).hidden_states
    for layer in (4, 5, 6):
        with model.edited(layer, lambda _, layer=layer: states[layer]):
            got = model.forward(IDS)
        torch.testing.assert_close(got.final, model.forward(other).final, rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_not_there_is_not_edited(tiny_mamba: ModelAdapter) -> None:
    for layer in (-1, 3):
        with (
            pytest.raises(ConfigError, match=f"layer {layer}"),
            tiny_mamba.edited(layer, torch.zeros_like),
        ):
            pass


def test_edits_end_in_any_order() -> None:
    adapter = wrap_model(make_model("mamba"))
    before = adapter.forward(IDS).final
    first, second = adapter.edited(0, torch.zeros_like), adapter.edited(1, torch.zeros_like)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    states = adapter.forward(IDS).hidden_states
    assert states[0].any()
    assert not states[1].any()
    second.__exit__(None, None, None)
    assert torch.equal(adapter.forward(IDS).final, before)


def test_softmax_attention_heeds_edits() -> None:
    adapter = wrap_model(make_model("neox"))
    plain = hidden_attention(adapter, IDS[0]).matrices
    with adapter.edited(0, lambda h: -h):
        edited = hidden_attention(adapter, IDS[0]).matrices
    assert not torch.allclose(plain[1], edited[1])
