"""Features: what transformers gives for one prompt at a time, whatever the batch."""

from pathlib import Path

from lens_rnn.elk.features import FeatureConfig, extract, load_features, of_one_length, passes
from lens_rnn.elk.templates import encode
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, wrap_model
from tests.conftest import make_model
from tests.elk.rows import made_rows

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

ROWS = made_rows(8)
NAMES = ["raw", "translated", "lens_log_odds", "model_log_odds", "state", "state_heads", "pairs", "pairs_translated"]


@pytest.fixture(scope="module", params=["mamba", "rwkv4", "neox", "mamba2"])
def adapter(request: pytest.FixtureRequest, byte_tokenizer: PreTrainedTokenizerBase) -> ModelAdapter:
    return wrap_model(make_model(request.param, 257), byte_tokenizer)


def lens_of(adapter: ModelAdapter) -> TunedLens:
    """A lens whose translators are not zero."""
    lens = TunedLens.from_adapter(adapter)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lens.layer_translators.parameters():
            parameter.normal_(std=0.2)
    return lens


def close(a: np.ndarray, b: torch.Tensor) -> bool:
    return bool(np.allclose(a, b.numpy(), rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max()))))


@torch.no_grad()
def test_they_are_those_of_each_prompt_alone(adapter: ModelAdapter, tmp_path: Path) -> None:
    lens = lens_of(adapter)
    read = extract(adapter, ROWS, (), lens, tmp_path, FeatureConfig(projection=16, micro_batch_size=3))
    assert list(load_features(tmp_path)) == list(read)
    assert set(read) == set(NAMES) - (set() if adapter.has_state else {"state", "state_heads"})
    assert read["raw"].depths == tuple(adapter.depth(i) for i in range(adapter.n_layers))
    for row, encoded in enumerate(encode(ROWS, (), adapter.tokenizer)):
        false, true = encoded.answers
        output = adapter.model(torch.tensor([encoded.ids]), output_hidden_states=True, use_cache=False)
        logits = output.logits[0, -1]
        assert read["model_log_odds"].values[0, row, 0] == pytest.approx(float(logits[true] - logits[false]), abs=1e-3)
        for layer in range(adapter.n_layers):
            hidden = output.hidden_states[layer][0, -1]
            translated = lens.transform_hidden(hidden, layer)
            assert close(read["raw"].values[layer, row], hidden)
            assert close(read["translated"].values[layer, row], translated)
            logits = lens(hidden, layer)
            assert read["lens_log_odds"].values[layer, row, 0] == pytest.approx(
                float(logits[true] - logits[false]), abs=2e-3
            )
        for answer in (0, 1):
            ids = torch.tensor([[*encoded.ids, *encoded.choices[answer]]])
            states = adapter.model(ids, output_hidden_states=True, use_cache=False).hidden_states
            for layer in range(adapter.n_layers):
                assert close(read["pairs"].values[layer, row, 0, answer], states[layer][0, -1])
                translated = lens.transform_hidden(states[layer][0, -1], layer)
                assert close(read["pairs_translated"].values[layer, row, 0, answer], translated)


@torch.no_grad()
def test_recurrent_states(adapter: ModelAdapter, tmp_path: Path) -> None:
    if not adapter.has_state:
        return
    wide = extract(
        adapter, ROWS, (), LogitLens.from_adapter(adapter), tmp_path / "wide", FeatureConfig(projection=10**6)
    )
    narrow = extract(
        adapter, ROWS, (), LogitLens.from_adapter(adapter), tmp_path / "narrow", FeatureConfig(projection=32)
    )
    assert "translated" not in wide
    for row, encoded in enumerate(encode(ROWS, (), adapter.tokenizer)):
        _, state = adapter.advance(torch.tensor([encoded.ids]))
        for block in range(len(adapter.blocks)):
            tensors = [state.blocks[block][name][0] for name in adapter.state_names]
            whole = torch.cat([t.flatten() / t.flatten().norm() * t.numel() ** 0.5 for t in tensors])
            assert close(wide["state"].values[block, row], whole)
            heads = []
            for t in tensors:
                heads += [t.flatten(1).mean(1), t.flatten(1).pow(2).mean(1).sqrt()] if t.ndim > 1 else [t]
            assert close(wide["state_heads"].values[block, row], torch.cat(heads))
    assert narrow["state"].values.shape == (len(adapter.blocks), len(ROWS), 32)
    big, small = (np.linalg.norm(f["state"].values, axis=-1) for f in (wide, narrow))
    assert np.median(small / big) == pytest.approx(1, abs=0.2)  # lengths are kept on average


def test_variants_are_further_prompts(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    from lens_rnn.elk.generators import generate
    from lens_rnn.elk.templates import Template

    templates = [Template("{character}: {op1} > {op2}?", ("F", "T")), Template("{op1}, {op2}; {character}", ("n", "y"))]
    rows = generate("comparison", {"test": 4}).splits["test"]
    adapter = wrap_model(make_model("mamba", 257), byte_tokenizer)
    counts: list[int] = []
    read = extract(
        adapter, rows, templates, LogitLens.from_adapter(adapter), tmp_path, FeatureConfig(variants=5), counts.append
    )
    assert read["pairs"].values.shape[1:4] == (8, 2, 2)
    assert sum(counts) == 8 * passes(FeatureConfig(variants=5), 2) == 8 * 5
    second = encode(rows, templates, byte_tokenizer, 1)
    states = adapter.forward(torch.tensor([[*second[3].ids, *second[3].choices[1]]])).hidden_states
    assert close(read["pairs"].values[1, 3, 1, 1], states[1][0, -1])


def test_groups_are_of_one_length() -> None:
    sequences = [[1] * n for n in (3, 5, 3, 3, 5)]
    assert list(of_one_length(sequences, 2)) == [[0, 2], [3], [1, 4]]


def test_bad_input(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="projection is 0; it must be at least 1"):
        FeatureConfig(projection=0)
    with pytest.raises(DataError, match="there are no rows to read"):
        extract(tiny_mamba, [], (), LogitLens.from_adapter(tiny_mamba), tmp_path)
