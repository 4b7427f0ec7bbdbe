"""Models from folders and from the Hub: agreement with stored reference logits, and every refusal in one line."""

import json
import shutil
from pathlib import Path

from lens_rnn.models import ModelAdapter, load_model, wrap_model
from tests.conftest import make_model, save_model
from tests.refusals import refusal

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase


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


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
