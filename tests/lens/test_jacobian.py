"""Jacobian lenses: published files and what is refused, the same format back, merged fits."""

from pathlib import Path

from lens_rnn.errors import ArtifactError, ConfigError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.evaluation.trajectory import predict
from lens_rnn.lens import JacobianLens, LogitLens
from lens_rnn.models import ModelAdapter, wrap_model
from tests.data.blocks import make_blocks
from tests.refusals import refusal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def made(adapter: ModelAdapter, texts: int = 3, seed: int = 0) -> JacobianLens:
    generator = torch.Generator().manual_seed(seed)
    d = adapter.d_model
    values = {i: torch.eye(d) + 0.1 * torch.randn(d, d, generator=generator) for i in adapter.fitted_layers}
    return JacobianLens(adapter, values, texts)


def published(test_data: Path) -> Path:
    return test_data / "jacobian_lens" / "tinystories15M_n1000.pt"


def llama_of(d_model: int, layers: int) -> ModelAdapter:
    torch.manual_seed(0)
    sizes = {"hidden_size": d_model, "num_hidden_layers": layers, "intermediate_size": 64, "vocab_size": 96}
    return wrap_model(LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=4, **sizes)))


def test_a_published_file_reads_the_outputs_of_blocks(test_data: Path) -> None:
    """Of a transformer hidden_states[i] is the input of block i, so J of block l belongs to layer l + 1."""
    adapter = llama_of(288, 6)
    lens = JacobianLens.load(adapter, published(test_data))
    content = torch.load(published(test_data), weights_only=True)
    assert lens.layers == (1, 2, 3, 4, 5)
    assert lens.texts == content["n_prompts"] == 1000
    h = torch.randn(3, 288)
    for block, j in content["J"].items():
        torch.testing.assert_close(lens.transform_hidden(h, block + 1), h @ j.float().T)
        torch.testing.assert_close(lens(h, block + 1), adapter.unembed(h @ j.float().T))
    assert not lens.reads(0)
    assert "nothing for layer 0; it reads 1, 2, 3, 4, 5" in refusal(lambda: lens(h, 0), ConfigError)


def test_a_saved_lens_is_a_published_one(tiny_model: ModelAdapter, tmp_path: Path) -> None:
    lens = made(tiny_model)
    lens.save(tmp_path / "lens.pt")
    content = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert set(content) == {"J", "n_prompts", "source_layers", "d_model"}
    assert content["source_layers"] == [*range(tiny_model.n_layers - 1)], "blocks whose output is a layer, but the last"
    assert {j.dtype for j in content["J"].values()} == {torch.float16}
    for place in (tmp_path / "lens.pt", tmp_path):
        again = JacobianLens.load(tiny_model, place)
        assert again.texts == lens.texts
        for layer in again.layers:
            torch.testing.assert_close(again.jacobians[layer], lens.jacobians[layer], rtol=1e-3, atol=1e-3)


def test_an_identity_is_the_logit_lens_and_a_trivial_layer_the_model(tiny_model: ModelAdapter) -> None:
    eye = torch.eye(tiny_model.d_model)
    lenses = {
        "jacobian": JacobianLens(tiny_model, dict.fromkeys(tiny_model.fitted_layers, eye), 1),
        "logit": LogitLens.from_adapter(tiny_model),
    }
    figures = evaluate(tiny_model, lenses, make_blocks(4)).lenses
    for layer in tiny_model.fitted_layers:
        assert figures["jacobian"][layer] == pytest.approx(figures["logit"][layer], rel=1e-4)
    for layer in tiny_model.trivial_layers:
        h = torch.randn(2, tiny_model.d_model)
        assert torch.equal(lenses["jacobian"].transform_hidden(h, layer), h)


def test_layers_that_are_not_read_have_no_figures() -> None:
    adapter = llama_of(32, 3)
    lens = JacobianLens(adapter, {1: torch.eye(32)}, 1)
    assert predict(adapter, lens, [1, 2, 3]).layers == (1,)
    figures = evaluate(adapter, {"jacobian": lens, "logit": LogitLens.from_adapter(adapter)}, make_blocks(2)).lenses
    assert [*figures["jacobian"]] == [1]
    assert [*figures["logit"]] == [0, 1, 2]


def test_a_file_of_the_last_block_alone_has_nothing_for_a_transformer(tmp_path: Path) -> None:
    torch.save({"J": {2: torch.eye(32)}, "n_prompts": 1, "source_layers": [2], "d_model": 32}, tmp_path / "lens.pt")
    message = refusal(lambda: JacobianLens.load(llama_of(32, 3), tmp_path / "lens.pt"), ArtifactError)
    assert "nothing for a layer" in message


def test_fits_merge_by_their_texts(tiny_mamba: ModelAdapter) -> None:
    one, three = made(tiny_mamba, 1), made(tiny_mamba, 3, seed=1)
    merged = JacobianLens.merge(tiny_mamba, [one, three])
    assert merged.texts == 4
    for layer in merged.layers:
        expected = one.jacobians[layer] / 4 + 3 * three.jacobians[layer] / 4
        torch.testing.assert_close(merged.jacobians[layer], expected)
    fewer = JacobianLens(tiny_mamba, {0: torch.eye(tiny_mamba.d_model)}, 1)
    assert "different layers" in refusal(lambda: JacobianLens.merge(tiny_mamba, [one, fewer]), ConfigError)
    assert "no lens" in refusal(lambda: JacobianLens.merge(tiny_mamba, []), ConfigError)


class _Bad:
    """What a pickle could run."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran"),))


def test_what_is_refused(tiny_mamba: ModelAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = tiny_mamba.d_model
    good = {"J": {0: torch.eye(d)}, "n_prompts": 1, "source_layers": [0], "d_model": d}
    monkeypatch.chdir(tmp_path)
    for change, words in (
        ({"J": {0: torch.eye(d + 1)}, "d_model": d + 1}, (f"d_model {d + 1}", f"has {d}")),
        ({"J": {7: torch.eye(d)}}, ("8 blocks", f"has {tiny_mamba.n_layers}")),
        ({"J": {0: torch.zeros(d, 2)}}, ("layer 0", f"({d}, 2)")),
        ({"J": {"a": torch.eye(d)}}, ("layer 'a'",)),
        ({"J": {}}, ("0 layers",)),
        ({"J": {0: torch.full((d, d), torch.nan)}}, ("not finite at layer 0",)),
        ({"n_prompts": 0}, ("0 texts",)),
        ({"J": [1]}, ("not a Jacobian lens",)),
        ({"extra": _Bad()}, ("cannot read",)),
    ):
        torch.save(good | change, tmp_path / "lens.pt")
        message = refusal(lambda: JacobianLens.load(tiny_mamba, tmp_path / "lens.pt"), ArtifactError)
        assert [word for word in words if word not in message] == [], message
    assert not Path("ran").exists()
    (tmp_path / "lens.pt").write_bytes(b"no")
    assert "cannot read" in refusal(lambda: JacobianLens.load(tiny_mamba, tmp_path), ArtifactError)
    torch.save(good, tmp_path / "other.pt")
    assert "name the file" in refusal(lambda: JacobianLens.load(tiny_mamba, tmp_path), ArtifactError)
    assert "does not give it" in refusal(lambda: JacobianLens.load(tiny_mamba, "a-user/nothing"), ArtifactError)
    assert "no file 'nowhere'" in refusal(lambda: JacobianLens.load(tiny_mamba, "nowhere"), ArtifactError)
