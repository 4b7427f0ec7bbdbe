"""Low-rank lenses: files, and what is refused. How they are made is tried in tests/fitting/test_low_rank.py."""

from pathlib import Path

from lens_rnn.errors import ArtifactError
from lens_rnn.lens import LowRankLens
from lens_rnn.lens.low_rank import Translator
from lens_rnn.models import ModelAdapter
from tests.refusals import refusal

import torch

RANK = 3


def made(adapter: ModelAdapter) -> LowRankLens:
    torch.manual_seed(0)
    d = adapter.d_model
    parts = {i: Translator(torch.randn(d, RANK), torch.randn(RANK, d), torch.randn(d)) for i in adapter.fitted_layers}
    return LowRankLens(adapter, parts)


def test_it_reads_by_two_thin_products_and_comes_back_the_same(tiny_model: ModelAdapter, tmp_path: Path) -> None:
    lens = made(tiny_model)
    lens.save(tmp_path)
    again = LowRankLens.load(tiny_model, tmp_path)
    assert LowRankLens.is_at(tmp_path)
    assert again.rank == lens.rank == RANK
    h = torch.randn(2, 5, tiny_model.d_model)
    for layer in tiny_model.fitted_layers:
        out, into, bias = lens.translator(layer)
        torch.testing.assert_close(lens.transform_hidden(h, layer), h + h @ (out @ into).T + bias)
        assert torch.equal(again(h, layer), lens(h, layer))
    for layer in tiny_model.trivial_layers:
        assert torch.equal(lens.transform_hidden(h, layer), h)


def test_what_is_refused(tiny_mamba: ModelAdapter, tiny_neox: ModelAdapter, tmp_path: Path) -> None:
    made(tiny_mamba).save(tmp_path)
    message = refusal(lambda: LowRankLens.load(tiny_neox, tmp_path), ArtifactError)
    assert "made for" in message or "no translator" in message
    state = torch.load(tmp_path / "params.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("1.")}, tmp_path / "params.pt")
    assert "for layer 1" in refusal(lambda: LowRankLens.load(tiny_mamba, tmp_path), ArtifactError)
    (tmp_path / "params.pt").write_bytes(b"no")
    assert "cannot read the lens" in refusal(lambda: LowRankLens.load(tiny_mamba, tmp_path), ArtifactError)
