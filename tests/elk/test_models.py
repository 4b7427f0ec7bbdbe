"""Quirky models as folders: the lens beside them, and what is missing. That they load as they were saved is in
test_finetune.py."""

import json
from pathlib import Path

from lens_rnn.elk.models import load_quirky, open_lens
from lens_rnn.errors import ArtifactError, ModelError
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import wrap_model
from tests.conftest import make_model, save_model

import pytest
from transformers import PreTrainedTokenizerBase


@pytest.fixture(params=["mamba", "rwkv4"])
def base(request: pytest.FixtureRequest, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A folder with a model."""
    return save_model(make_model(request.param, 257), tmp_path / request.param, byte_tokenizer)


def test_a_lens_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    loaded = load_quirky(base, device="cpu")
    assert isinstance(open_lens(loaded)[0], LogitLens)
    own = Path(f"{base}-lens")
    TunedLens.from_adapter(loaded.adapter).save(own)
    assert open_lens(loaded)[1] == str(own)
    assert open_lens(load_quirky(base, device="cpu")._replace(base=str(base)), str(own))[1] == str(own)
    stranger = wrap_model(make_model("neox", 257, seed=3))
    stranger.model.config.name_or_path = "somewhere/else"
    lens = TunedLens.from_adapter(stranger)
    if stranger.n_layers == loaded.adapter.n_layers:
        lens.save(tmp_path / "foreign")
        with pytest.raises(ArtifactError, match="somewhere/else"):
            open_lens(loaded, str(tmp_path / "foreign"))


def test_adapters_without_their_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./nowhere"}))
    with pytest.raises(ModelError, match="nowhere"):
        load_quirky(tmp_path)
