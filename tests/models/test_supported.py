"""The table of families, derived by trying a tiny random model of each."""

from functools import cache
from pathlib import Path

from lens_rnn.models import (
    Family,
    ModelAdapter,
    RecurrentAdapter,
    known_architectures,
    load_model,
    supported,
    wrap_model,
)
from lens_rnn.models.lora import lora_maps
from lens_rnn.models.mixing import RECURRENCE, SOFTMAX
from lens_rnn.models.supported import table
from tests.conftest import ALL_FAMILIES, make_model
from tests.models.tiny_hybrids import CONTROLS, SETTINGS, is_here, make_hybrid, make_vision_model
from tests.scripts.launch import ROOT

import pytest

OURS = {
    "mamba": "mamba",
    "falcon_mamba": "falcon_mamba",
    "mamba2": "mamba2",
    "rwkv": "rwkv4",
    "recurrent_gemma": "recurrent_gemma",
}
ROWS = {name: family for family in supported() for name in family.model_types if name != "*"}
TRIED = [name for name in ROWS if name not in ("qwen3_5", "qwen3_5_moe")]  # whole folders, which a test below loads


@cache
def tiny(name: str) -> ModelAdapter:
    if name == "rwkv_official":
        return wrap_model(make_model("rwkv7"))
    if name in OURS or name in ("gpt_neox", "gpt2"):
        return wrap_model(make_model(OURS.get(name, name.removeprefix("gpt_"))))
    if not is_here(name):
        pytest.skip(f"this transformers has no {name}")
    return wrap_model(make_hybrid(name))


def attention_of(adapter: ModelAdapter) -> str:
    """What the table calls the views of a model's blocks."""
    kinds = {kind for block in adapter.mixing_kinds for kind in block}
    hidden = f"hidden, by {getattr(adapter, 'attention_unit', None) or 'head'}" if kinds - {SOFTMAX} else ""
    return "; ".join(text for text in (hidden, "softmax, by head" if SOFTMAX in kinds else "") if text)


@pytest.mark.parametrize("name", TRIED)
def test_a_row_says_what_the_model_can_do(name: str) -> None:
    adapter, row = tiny(name), ROWS[name]
    assert adapter.off.keys() <= {"recurrent state"} if name == "xlstm" else adapter.off == {}
    assert ("output" in row.layers) == adapter.states_after_blocks
    assert set(row.state) == (set(adapter.state_names) if adapter.has_state else set())
    assert row.fused == (isinstance(adapter, RecurrentAdapter) and adapter.fused)
    assert row.attention == attention_of(adapter)
    assert row.lora == adapter.lora_modules
    assert lora_maps(adapter)
    assert row.relevance == (isinstance(adapter, RecurrentAdapter) and adapter.takes_rules)
    if isinstance(adapter, RecurrentAdapter) and adapter.attention_unit:
        assert adapter.mixing_kinds == ((RECURRENCE,),) * adapter.n_layers


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_a_folder_with_a_vision_part(name: str, tmp_path: Path) -> None:
    if not is_here(name):
        pytest.skip(f"this transformers has no {name}")
    make_vision_model(name).save_pretrained(tmp_path)
    adapter = load_model(tmp_path)
    assert adapter.model_type == f"{name}_text"
    assert set(adapter.state_names) == set(ROWS[name].state)


def test_every_family_stands_in_the_table_once() -> None:
    listed = [name for family in supported() for name in family.model_types]
    assert len(listed) == len(set(listed))
    assert set(known_architectures()) - {"mamba-of-mine", "another"} <= set(listed)
    assert set(SETTINGS) | set(CONTROLS) - {"smollm3"} <= set(listed)
    assert {OURS.get(name, name) for name in listed} >= set(ALL_FAMILIES) - {"neox", "rwkv5", "rwkv6", "rwkv7", "rwkv4"}


def test_the_readme_has_this_table() -> None:
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_family_that_is_not_there_yet_says_since_when(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lens_rnn.models import loading

    row = Family("Rwkv-9", ("rwkv9",), "somewhere", "nothing", since="transformers 9.0")
    monkeypatch.setattr(loading, "supported", lambda: (row,))
    (tmp_path / "config.json").write_text('{"model_type": "rwkv9"}')
    with pytest.raises(
        loading.ModelError,
        match=r"'rwkv9' .* is unknown to the installed transformers .*: it came with transformers 9.0",
    ):
        load_model(tmp_path)
