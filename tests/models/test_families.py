"""Every supported family: what its hidden states are, its recurrent state, and a lens fitted, saved, loaded and
evaluated on it.

With them the parts of RWKV-5 to 7, `models/families/rwkv_blocks.py`, `models/families/rwkv_time_mix.py`,
`models/families/rwkv5.py` and `models/families/rwkv7.py`, and `models/families/recurrent_gemma.py`. What stands in
`models/shapes.py` is checked at every call.
"""

from pathlib import Path

from lens_rnn.errors import ModelError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, RecurrentState, load_model
from tests.conftest import ALL_FAMILIES, make_model, save_model
from tests.data.blocks import make_blocks

import pytest
import torch
from torch import Tensor

RECURRENT = [family for family in ALL_FAMILIES if family not in ("neox", "llama", "gpt2")]
IDS = torch.randint(96, (3, 14), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=RECURRENT)
def recurrent(request: pytest.FixtureRequest, models_of_every_family: dict[str, ModelAdapter]) -> ModelAdapter:
    return models_of_every_family[request.param]


def test_forward_gives_what_the_model_gives(every_model: ModelAdapter) -> None:
    with torch.no_grad():
        expected = every_model.model(IDS, output_hidden_states=True, use_cache=False)
    got = every_model.forward(IDS)
    for ours, theirs in zip((*got.hidden_states, got.final), expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(every_model.unembed(got.norm_input), expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(every_model.logits(got.final), expected.logits, rtol=1e-4, atol=1e-4)


def test_layers_mean_what_is_declared(every_model: ModelAdapter) -> None:
    """The hidden states seen from outside, by hooks on the blocks; RWKV-4 halves what its hooks see, which
    test_adapter.py looks at."""
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    hooks = []
    for block in every_model.blocks:
        hooks.append(block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
        hooks.append(
            block.register_forward_hook(lambda _, _args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        )
    try:
        with torch.no_grad():
            every_model.model(IDS)
    finally:
        for hook in hooks:
            hook.remove()
    got = every_model.forward(IDS)
    whole = 6 if every_model.model_type == "rwkv" else every_model.n_layers
    seen = outputs if every_model.states_after_blocks else inputs
    for i in range(min(whole, every_model.n_layers) - (every_model.model_type == "rwkv")):
        torch.testing.assert_close(got.hidden_states[i], seen[i], rtol=1e-4, atol=1e-5)
    first = 1 / every_model.n_layers if every_model.states_after_blocks else 0.0
    assert every_model.depth(0) == pytest.approx(first)
    assert every_model.depth(every_model.n_layers - 1) == pytest.approx(first + 1 - 1 / every_model.n_layers)
    assert every_model.trivial_layers == (
        frozenset({every_model.n_layers - 1}) if every_model.states_after_blocks else frozenset()
    )


@pytest.mark.parametrize("cuts", [(1,), (7,), (13,), (5, 6, 9)], ids=str)
def test_reading_in_parts_gives_what_reading_at_once_gives(recurrent: ModelAdapter, cuts: tuple[int, ...]) -> None:
    whole = recurrent.forward(IDS)
    state: RecurrentState | None = None
    parts = []
    for start, end in zip((0, *cuts), (*cuts, IDS.shape[1]), strict=True):
        step, state = recurrent.advance(IDS[:, start:end], state)
        parts.append(step)
    assert state is not None
    assert state.tokens == IDS.shape[1]
    for i in range(recurrent.n_layers):
        torch.testing.assert_close(
            torch.cat([p.hidden_states[i] for p in parts], 1), whole.hidden_states[i], rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(torch.cat([p.final for p in parts], 1), whole.final, rtol=1e-5, atol=1e-5)


def test_a_state_is_left_as_it_is_and_can_be_used_again(recurrent: ModelAdapter) -> None:
    _, state = recurrent.advance(IDS[:, :6])
    kept = state.clone()
    first, _ = recurrent.advance(IDS[:, 6:], state)
    for before, after in zip(kept.blocks, state.blocks, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    again, _ = recurrent.advance(IDS[:, 6:], state)
    assert torch.equal(first.final, again.final)
    assert torch.equal(recurrent.forward(IDS).final, recurrent.forward(IDS).final), "nothing of it stays in the model"


def test_every_tensor_of_a_state_matters_and_a_copy_shares_nothing(recurrent: ModelAdapter) -> None:
    _, state = recurrent.advance(IDS[:, :6])
    expected, _ = recurrent.advance(IDS[:, 6:], state)
    assert len(state.blocks) == recurrent.n_layers
    assert state.names - {"keys", "values"} == set(recurrent.state_names)
    for name in state.names:
        changed = state.clone()
        block = next(block for block in changed.blocks if name in block)
        block[name] += torch.randn_like(block[name])  # a constant would be normed away
        got, _ = recurrent.advance(IDS[:, 6:], changed)
        assert not torch.allclose(got.final, expected.final, atol=1e-3), name
    again, _ = recurrent.advance(IDS[:, 6:], state)
    assert torch.equal(again.final, expected.final)


def test_a_repeated_state_serves_several_endings(recurrent: ModelAdapter) -> None:
    _, state = recurrent.advance(IDS[:, :6])
    got, _ = recurrent.advance(IDS[:, 6:].repeat_interleave(2, 0), state.repeat(2))
    torch.testing.assert_close(
        got.final, recurrent.forward(IDS).final[:, 6:].repeat_interleave(2, 0), rtol=1e-5, atol=1e-5
    )


def test_states_that_do_not_fit(recurrent: ModelAdapter, tiny_rwkv4: ModelAdapter) -> None:
    _, state = recurrent.advance(IDS[:, :4])
    with pytest.raises(ModelError, match="no token to read"):
        recurrent.advance(IDS[:, :0], state)
    with pytest.raises(
        ModelError, match=r"a state of 3 sequences and . blocks with .* cannot be continued with 1 sequences"
    ):
        recurrent.advance(IDS[:1], state)
    if recurrent.state_names != tiny_rwkv4.state_names:
        with pytest.raises(ModelError, match="whose state has 8 blocks with ffn_shift, att_shift, num, den, max"):
            tiny_rwkv4.advance(IDS, state)


def test_a_state_keeps_nothing_of_the_text_alive(recurrent: ModelAdapter) -> None:
    _, state = recurrent.advance(IDS)
    for block in state.blocks:
        for tensor in block.values():
            assert tensor.untyped_storage().nbytes() <= recurrent.n_layers * tensor.nbytes


def test_a_transformer_says_that_it_has_no_state(tiny_neox: ModelAdapter) -> None:
    with pytest.raises(ModelError, match="recurrent state of model type 'gpt_neox' cannot be reached"):
        tiny_neox.advance(IDS)


@pytest.mark.parametrize(
    "family", [f for f in ALL_FAMILIES if f not in ("mamba", "rwkv4", "neox")]
)  # of those, tests/fitting tells more
def test_a_lens_is_fitted_saved_loaded_and_evaluated(family: str, tmp_path: Path) -> None:
    folder = save_model(make_model(family), tmp_path / "model")
    adapter = load_model(folder)
    text, held_out = make_blocks(blocks=24, seq_len=16), make_blocks(blocks=6, seq_len=16, seed=2)
    lens = fit(adapter, text, FitConfig(batch_size=4, passes=3, products="float32")).lens
    lens.save(tmp_path / "lens")
    again = TunedLens.load(load_model(folder), tmp_path / "lens")
    figures = evaluate(adapter, {"logit": LogitLens.from_adapter(adapter), "tuned": again}, held_out)
    for i in adapter.fitted_layers:
        assert figures.lenses["tuned"][i].kl < figures.lenses["logit"][i].kl
    assert figures.model.kl == pytest.approx(0, abs=1e-6)
    if adapter.states_after_blocks:
        assert figures.lenses["tuned"][adapter.n_layers - 1].kl == 0
