"""The reference beside a model: found for its very weights and tokens, else not, and never taken from a damaged
file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lens_rnn.errors import ArtifactError
from lens_rnn.fitting.reference import FILE, distance, load_reference, save_reference
from lens_rnn.fitting.report import describe_model
from lens_rnn.models import ModelAdapter, load_model
from tests.conftest import make_model, save_model
from tests.data.blocks import make_blocks

import pytest

KL = {0: 1.5, 1: 0.25}
BLOCKS = make_blocks(2)


@pytest.fixture
def adapter(tmp_path: Path) -> ModelAdapter:
    """A model in a folder: three layers, the last one trivial."""
    return load_model(save_model(make_model("mamba"), tmp_path / "model"), device="cpu")


def weights_of(adapter: ModelAdapter) -> str:
    return describe_model(adapter, "").weights_sha256


def test_it_is_found_for_these_weights_and_tokens(adapter: ModelAdapter) -> None:
    path = save_reference(adapter, weights_of(adapter), BLOCKS, KL | {2: 0.0}, {"command": "by hand"})
    assert path == Path(adapter.name) / FILE
    again = load_model(adapter.name, device="cpu")
    assert load_reference(again, weights_of(again), BLOCKS) == KL
    assert json.loads(path.read_text())["made"] == {"command": "by hand"}


def test_it_is_not_there_for_others(adapter: ModelAdapter, tiny_mamba: ModelAdapter) -> None:
    assert load_reference(adapter, weights_of(adapter), BLOCKS) is None
    assert load_reference(tiny_mamba, weights_of(tiny_mamba), BLOCKS) is None, "a model in memory has no folder"
    save_reference(adapter, weights_of(adapter), BLOCKS, KL, {})
    assert load_reference(adapter, weights_of(adapter), replace(BLOCKS, sha256="1" * 64)) is None
    adapter.head.weight.data[0, 0] += 1e-3
    assert load_reference(adapter, weights_of(adapter), BLOCKS) is None


def test_one_that_lacks_a_layer_is_none(adapter: ModelAdapter) -> None:
    path = save_reference(adapter, weights_of(adapter), BLOCKS, KL, {})
    content = json.loads(path.read_text())
    del content["kl"][BLOCKS.sha256]["1"]
    path.write_text(json.dumps(content))
    assert load_reference(adapter, weights_of(adapter), BLOCKS) is None


DAMAGE: dict[str, Callable[[dict], object]] = {
    "cut off": lambda content: json.dumps(content)[:-9],
    "no object": lambda content: [content],
    "kl is a list": lambda content: content | {"kl": [1.5, 0.25]},
    "kl is a number": lambda content: content | {"kl": 3},
    "layers are a list": lambda content: content | {"kl": {BLOCKS.sha256: [1.5, 0.25]}},
    "no layer's name": lambda content: content | {"kl": {BLOCKS.sha256: {"first": 1.5}}},
    "null": lambda content: content | {"kl": {BLOCKS.sha256: {"0": None, "1": 0.25}}},
    "words": lambda content: content | {"kl": {BLOCKS.sha256: {"0": "low", "1": 0.25}}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_refused_by_name(adapter: ModelAdapter, damage: str) -> None:
    path = save_reference(adapter, weights_of(adapter), BLOCKS, KL, {})
    damaged = DAMAGE[damage](json.loads(path.read_text()))
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with pytest.raises(ArtifactError, match=FILE) as refusal:
        load_reference(adapter, weights_of(adapter), BLOCKS)
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_text_are_refused(adapter: ModelAdapter) -> None:
    (Path(adapter.name) / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match=FILE):
        load_reference(adapter, weights_of(adapter), BLOCKS)


def test_distance_is_of_the_mean_over_layers() -> None:
    assert distance({0: 1.53, 1: 0.255, 2: 9.0}, KL, (0, 1)) == pytest.approx(0.02)
    assert distance(KL, KL | {2: 3.0}, (0, 1)) == 0
    assert distance({0: 1.0, 1: 0.4}, KL, (0, 1)) == pytest.approx(-0.2)
