"""Which linear maps take a low-rank adapter, in models of any architecture: those that can be trained, and loaded as
they were trained."""

from pathlib import Path

from lens_rnn.elk.answers import log_odds
from lens_rnn.elk.finetune import Examples, FinetuneConfig, finetune
from lens_rnn.elk.models import load_quirky, save_adapters
from lens_rnn.elk.templates import Encoded
from lens_rnn.models import wrap_model
from lens_rnn.models.lora import lora_maps
from tests.conftest import make_model
from tests.elk.rows import made_rows
from tests.models.tiny_hybrids import VOCAB_SIZE, is_here, make_hybrid

import numpy as np
import pytest
from transformers import PreTrainedModel

CONFIG = FinetuneConfig(steps=2, learning_rate=0.02, batch_size=8, validation_rows=16, rank=4, warmup=0.0)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Rows for a model of few tokens."""
    rows = made_rows(16)
    encoded = [
        Encoded(tuple(ord(letter) % VOCAB_SIZE for letter in row.template_args["statement"]), ((1,), (2,)))
        for row in rows
    ]
    return Examples(rows, encoded)


def hybrid(model_type: str) -> PreTrainedModel:
    if not is_here(model_type):
        pytest.skip(f"the installed transformers has no {model_type}")
    return make_hybrid(model_type)


def of_block(names: list[str], block: int) -> set[str]:
    """What the maps of a block are called inside it."""
    return {name.partition(f".{block}.")[2] for name in names if f".{block}." in name}


@pytest.mark.parametrize("model_type", ["granitemoehybrid", "nemotron_h", "qwen3_5_text", "zamba"])
def test_a_hybrid_is_fine_tuned_and_loaded_as_it_was_saved(model_type: str, examples: Examples, tmp_path: Path) -> None:
    """Mamba-2, that and what peft refuses, a delta net, and blocks that share their weights."""
    model = hybrid(model_type)
    model.save_pretrained(tmp_path / "base")
    adapter = wrap_model(model)
    before = log_odds(adapter, examples.encoded)
    trained, _ = finetune(adapter, examples, examples, CONFIG, tmp_path / "checkpoints")
    odds = log_odds(adapter, examples.encoded)
    assert np.abs(odds - before).max() > 0.2 * np.abs(before).max()
    save_adapters(trained, tmp_path / "quirky", str(tmp_path / "base"))
    loaded = load_quirky(tmp_path / "quirky", device="cpu")
    again = log_odds(loaded.adapter, examples.encoded)
    np.testing.assert_allclose(again, odds, atol=0.01 * np.abs(odds).max())  # saved in half precision


@pytest.mark.parametrize("family", ["rwkv7", "gpt2"])
def test_so_is_a_model_that_cannot_generate_and_one_whose_maps_are_transposed(
    family: str, examples: Examples, tmp_path: Path
) -> None:
    trained, _ = finetune(wrap_model(make_model(family, VOCAB_SIZE)), examples, examples, CONFIG, tmp_path)
    assert all(
        bool(weight.any()) for name, weight in trained.named_parameters() if "lora_B" in name
    )  # they start from 0


def test_of_a_mamba_mixer_the_entrance_alone_takes_an_adapter() -> None:
    """Kernels take the weights of the rest past the modules, and peft refuses Nemotron-H's and Falcon-H1's out_proj."""
    assert of_block(lora_maps(wrap_model(hybrid("granitemoehybrid"))), 0) == {
        "mamba.in_proj",
        "shared_mlp.input_linear",
        "shared_mlp.output_linear",
    }
    assert of_block(lora_maps(wrap_model(hybrid("nemotron_h"))), 0) == {"mixer.in_proj"}
    jamba = lora_maps(wrap_model(hybrid("jamba")))
    assert of_block(jamba, 0) == {"mamba.in_proj", *(f"feed_forward.{name}_proj" for name in ("gate", "up", "down"))}
    assert {f"self_attn.{name}_proj" for name in "qkvo"} <= of_block(jamba, 2)


def test_every_map_of_a_delta_net_takes_one() -> None:
    """Its kernels are given what the maps make, never their weights."""
    names = of_block(lora_maps(wrap_model(hybrid("qwen3_5_text"))), 0)
    assert {
        f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
    } <= names


def test_a_weight_of_two_maps_takes_none() -> None:
    """Two adapters merged into one weight are not what was trained."""
    assert of_block(lora_maps(wrap_model(hybrid("zamba"))), 1) == {"linear", "mamba_decoder.mamba.in_proj"}


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("mamba", ["in_proj"]),
        ("mamba2", ["in_proj"]),
        ("rwkv4", ["key", "value", "receptance", "output"]),
        ("rwkv7", ["key", "value", "receptance", "output"]),
    ],
)
def test_a_family_with_a_file_names_its_own(family: str, names: list[str]) -> None:
    assert lora_maps(wrap_model(make_model(family))) == names
