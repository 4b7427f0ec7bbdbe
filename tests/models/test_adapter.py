"""Adapters: what each family's hidden states are, agreement with stored reference logits, and every refusal in one
line."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lens_rnn.errors import ModelError
from lens_rnn.models import ModelAdapter, adapter, known_architectures, load_model, register, wrap_model
from lens_rnn.models.check import check
from lens_rnn.models.families.mamba import MambaAdapter
from lens_rnn.models.families.rwkv4 import RWKV4Adapter
from lens_rnn.models.found import FoundAdapter
from tests.conftest import make_model, save_model

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

BLOCKS = {"mamba": 3, "rwkv4": 8, "neox": 3}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A complete Mamba checkpoint folder; tests work on copies of it."""
    return save_model(make_model("mamba", 257), tmp_path_factory.mktemp("saved") / "mamba", byte_tokenizer)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(call: Callable[[], object]) -> str:
    """The message of the ModelError that a call ends in, which must be one line."""
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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


# --- what an adapter gives --------------------------------------------------------------------------------------------


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


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_back(
    tiny_model: ModelAdapter, family: str, ids: Tensor, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    loaded = load_model(save_model(make_model(family, 257), tmp_path / "fresh", byte_tokenizer))
    again = load_model(
        save_model(loaded, tmp_path / "used", byte_tokenizer)
    )  # RWKV-4 is rescaled by now, and must not be saved so
    expected = wrap_model(make_model(family, 257)).forward(ids)
    for model in (loaded, again):
        assert type(model) is type(tiny_model)
        assert torch.equal(model.forward(ids).final, expected.final)
        assert model.tokenizer("ab").input_ids == byte_tokenizer("ab").input_ids
    assert (loaded.name, loaded.revision) == (str(tmp_path / "fresh"), None)


@pytest.mark.parametrize("name", ["mamba", "rwkv", "gptneox"])
def test_stored_reference_logits_are_reproduced(name: str, test_data: Path, tmp_path: Path) -> None:
    """Models and float64 logits that another project made."""
    stored = test_data / "hf_tiny"
    shutil.copy(stored / f"tiny_{name}_config.json", tmp_path / "config.json")
    shutil.copy(stored / f"tiny_{name}.safetensors", tmp_path / "model.safetensors")
    reference = json.loads((stored / f"tiny_{name}_logits.json").read_text())
    model = load_model(tmp_path)
    ids, logits = torch.tensor(reference["sequences"]), torch.tensor(reference["logits"], dtype=torch.float64)
    assert logits.shape == (*ids.shape, model.vocab_size)
    assert (model.unembed(model.forward(ids).norm_input) - logits).abs().max() < 1e-6 * logits.abs().max()


def test_bfloat16(family: str, ids: Tensor, tmp_path: Path) -> None:
    folder = save_model(make_model(family), tmp_path)
    by_name, by_type = (
        load_model(folder, dtype="bfloat16"),
        load_model(folder, dtype=torch.bfloat16),
    )  # each passes its check
    got = by_name.forward(ids)
    assert by_name.dtype == by_type.dtype == torch.bfloat16
    assert torch.equal(got.final, by_type.forward(ids).final)
    assert all(state.isfinite().all() for state in got.hidden_states)
    assert load_model(folder).dtype == torch.float32  # what a CPU gets unless it asks


def test_missing_folder(tmp_path: Path) -> None:
    assert "there is no such file or folder" in refusal(lambda: load_model(tmp_path / "nowhere"))
    assert "there is no such file or folder" in refusal(lambda: load_model("./nowhere"))


def test_a_name_that_the_hub_does_not_have_is_refused_in_one_line() -> None:
    message = refusal(lambda: load_model("no/such-model"))
    assert message.startswith(
        "cannot load model no/such-model (no such file or folder here, and the Hub did not give it)"
    )


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    assert "it is a file" in refusal(lambda: load_model(folder / "config.json"))


def test_an_architecture_that_transformers_does_not_know(folder: Path) -> None:
    edit_config(folder, model_type="never-heard-of")
    (folder / "model.safetensors").unlink()  # refused before any weights are looked for
    message = refusal(lambda: load_model(folder))
    assert message.startswith("model type 'never-heard-of' of ")
    assert f"unknown to the installed transformers {transformers.__version__} (tested with " in message
    assert "trust-remote-code" not in message


def test_an_encoder_and_decoder_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="t5")
    assert "model type 't5' of" in refusal(lambda: load_model(folder))
    assert "is no causal language model" in refusal(lambda: load_model(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["backbone.layers.1.mixer.A_log"]
    save_file(weights, path, metadata={"format": "pt"})
    message = refusal(lambda: load_model(folder))
    assert "lacks the weights of backbone.layers.1.mixer.A_log;" in message


def test_more_blocks_declared_than_stored(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=4)
    assert "lacks the weights of backbone.layers.3." in refusal(lambda: load_model(folder))


def test_weights_of_another_shape_than_declared(folder: Path) -> None:
    edit_config(folder, state_size=8)
    message = refusal(lambda: load_model(folder))
    assert "backbone.layers.0.mixer.A_log (stored (64, 4), config.json says (64, 8))" in message


@pytest.mark.parametrize("keep", [0, 5, 2000, -10])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert str(folder) in refusal(lambda: load_model(folder))


def test_damaged_or_missing_config(folder: Path) -> None:
    path = folder / "config.json"
    for content in ("{", "[1]", "{}"):
        path.write_text(content)
        assert str(folder) in refusal(lambda: load_model(folder))
    path.unlink()
    assert str(folder) in refusal(lambda: load_model(folder))


def test_unknown_dtype(folder: Path) -> None:
    assert (
        refusal(lambda: load_model(folder, dtype="int3"))
        == "unknown dtype 'int3'; choose from float32, bfloat16, float16"
    )


def test_a_missing_tokenizer_matters_only_when_it_is_used(folder: Path, ids: Tensor) -> None:
    """From the model type alone transformers would make a tokenizer without a vocabulary, which reads every text as
    nothing."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    model = load_model(folder)
    assert model.forward(ids).final.isfinite().all()
    assert (
        refusal(lambda: model.tokenizer) == f"{folder} has no tokenizer beside it; --tokenizer bytes fits its 257 ids"
    )


def test_a_damaged_tokenizer_is_named_as_such(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    model = load_model(folder)
    assert "has no usable tokenizer beside it (" in refusal(lambda: model.tokenizer)


def test_another_tokenizer(folder: Path, saved: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert load_model(folder, tokenizer=saved).tokenizer("a").input_ids == [64]
    assert "there is no such file or folder" in refusal(lambda: load_model(folder, tokenizer=tmp_path / "nowhere"))
    assert "cannot load tokenizer" in refusal(lambda: load_model(folder, tokenizer=folder))


def test_a_tokenizer_with_more_ids_than_the_model_has_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_model(save_model(make_model("mamba", 96), tmp_path / "small", byte_tokenizer))
    message = refusal(lambda: model.tokenizer)
    assert "ids up to 256" in message
    assert "vocabulary of 96" in message


# --- wrong adapters and new architectures -----------------------------------------------------------------------------


class WrongNorm(MambaAdapter):
    @property
    def final_norm(self) -> nn.Module:
        return self.model.backbone.layers[0].norm


class WrongNormInBlocks(FoundAdapter):
    @property
    def final_norm(self) -> nn.Module:
        return self.model.gpt_neox.layers[-1].input_layernorm


class OneBlockShort(MambaAdapter):
    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.backbone.layers[:-1]


class WrongHead(MambaAdapter):
    @property
    def head(self) -> nn.Linear:
        return nn.Linear(32, 96, bias=False)


class WrongSide(FoundAdapter):
    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.states_after_blocks = True


class NormThatRunsTwice(RWKV4Adapter):
    @property
    def final_norm(self) -> nn.Module:
        block = self.model.rwkv.blocks[1]
        block.ln2 = block.ln1  # one module in two places
        return block.ln1


@pytest.mark.parametrize(
    ("wrong", "family", "complaint"),
    [
        (WrongNorm, "mamba", "its logits are not cap(scale · (U u + b)) of its normed final state"),
        (WrongNormInBlocks, "neox", "its logits are not cap(scale · (U u + b)) of its normed final state"),
        (OneBlockShort, "mamba", "4 hidden states where 3 are declared"),
        (WrongHead, "mamba", "its logits are not cap(scale · (U u + b)) of its normed final state"),
        (WrongSide, "neox", "the last hidden state is not the final norm's input"),
        (NormThatRunsTwice, "rwkv4", "the final norm ran 2 times in one pass"),
    ],
)
def test_a_wrong_adapter_is_refused(wrong: type[ModelAdapter], family: str, complaint: str) -> None:
    model = make_model(family)
    message = refusal(lambda: check(wrong(model)))
    assert f"model type {model.config.model_type!r}" in message
    assert complaint in message


def test_a_model_that_gives_nan_is_refused() -> None:
    model = make_model("mamba")
    model.backbone.layers[1].mixer.D.data[0] = torch.nan
    assert "its logits are not finite in float32" in refusal(lambda: wrap_model(model))


def test_register_a_new_model_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_REGISTRY", dict(adapter._REGISTRY))
    model = make_model("mamba")
    model.config.model_type = "mamba-of-mine"
    assert type(wrap_model(model)) is FoundAdapter

    @register("mamba-of-mine", "another")
    class Mine(MambaAdapter):
        pass

    assert {"mamba-of-mine", "another", "mamba"} <= set(known_architectures())
    wrapped = wrap_model(model)
    assert type(wrapped) is Mine
    assert wrapped.model_type == "mamba-of-mine"
