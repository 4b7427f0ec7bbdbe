"""Lenses: equal to the model where they must be, to stock tuned-lens where it can read the model, and apart from the
model's weights."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from lens_rnn.errors import ArtifactError
from lens_rnn.files import write_json
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.models import ModelAdapter, wrap_model
from tests.conftest import D_MODEL, VOCAB_SIZE, make_model

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tuned_lens.nn import lenses as stock
from tuned_lens.nn.unembed import Unembed
from tuned_lens.plotting import PredictionTrajectory


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(VOCAB_SIZE, (2, 11), generator=torch.Generator().manual_seed(3))


def random_lens(adapter: ModelAdapter, std: float = 0.1) -> TunedLens:
    """A tuned lens whose translators all do something."""
    lens = TunedLens.from_adapter(adapter)
    generator = torch.Generator().manual_seed(4)
    for parameter in lens.layer_translators.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return lens


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(before: dict[str, Tensor], model: nn.Module) -> None:
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name, t in before.items() if t.dtype != after[name].dtype or not torch.equal(t, after[name])] == []


# --- what a lens computes ---------------------------------------------------------------------------------------------


def test_lenses_are_lenses_of_tuned_lens(tiny_model: ModelAdapter) -> None:
    logit, tuned = LogitLens.from_adapter(tiny_model), TunedLens.from_adapter(tiny_model)
    assert isinstance(logit, stock.LogitLens)
    assert isinstance(tuned, stock.TunedLens)
    assert isinstance(tuned.unembed, Unembed)
    assert len(tuned) == len(list(tuned)) == tiny_model.n_layers
    assert isinstance(tuned.config, stock.TunedLensConfig)


@torch.no_grad()
def test_the_logit_lens_of_the_last_state_is_the_model(tiny_model: ModelAdapter, ids: Tensor) -> None:
    lens = LogitLens.from_adapter(tiny_model)
    expected = tiny_model.model(ids).logits
    forward = tiny_model.forward(ids)
    torch.testing.assert_close(lens(forward.norm_input, 0), expected, rtol=0, atol=1e-5)
    for layer in tiny_model.trivial_layers:
        torch.testing.assert_close(lens(forward.hidden_states[layer], layer), expected, rtol=0, atol=1e-5)
    for layer in tiny_model.fitted_layers:
        assert (lens(forward.hidden_states[layer], layer) - expected).abs().max() > 0.1


@torch.no_grad()
def test_a_new_tuned_lens_is_the_logit_lens(tiny_model: ModelAdapter, ids: Tensor) -> None:
    logit, tuned = LogitLens.from_adapter(tiny_model), TunedLens.from_adapter(tiny_model)
    for layer, h in enumerate(tiny_model.forward(ids).hidden_states):
        assert torch.equal(tuned(h, layer), logit(h, layer))


@torch.no_grad()
def test_a_translator_adds_an_affine_map(tiny_model: ModelAdapter, ids: Tensor) -> None:
    lens = random_lens(tiny_model)
    for layer, h in enumerate(tiny_model.forward(ids).hidden_states):
        weight, bias = lens[layer].weight, lens[layer].bias
        z = h + torch.einsum("ij,bsj->bsi", weight, h) + bias
        torch.testing.assert_close(lens.transform_hidden(h, layer), z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lens(h, layer), tiny_model.unembed(z), rtol=1e-4, atol=1e-5)


def test_translators_can_be_trained_and_the_unembedding_cannot(tiny_mamba: ModelAdapter, ids: Tensor) -> None:
    lens = TunedLens.from_adapter(tiny_mamba)
    lens(tiny_mamba.forward(ids).hidden_states[1], 1).square().sum().backward()
    assert lens[1].weight.grad.abs().sum() > 0
    assert {name.split(".")[0] for name, p in lens.named_parameters() if p.requires_grad} == {"layer_translators"}


# --- number formats ---------------------------------------------------------------------------------------------------


@pytest.fixture
def in_bfloat16(family: str) -> ModelAdapter:
    return wrap_model(make_model(family).bfloat16())


@torch.no_grad()
def test_a_lens_of_a_bfloat16_model_is_float32_inside(
    tiny_model: ModelAdapter, in_bfloat16: ModelAdapter, ids: Tensor
) -> None:
    """On the same hidden states its logits differ by what rounding the head's weights and input to 8 bits explains."""
    full, half = random_lens(tiny_model), random_lens(in_bfloat16)
    assert {p.dtype for p in half.layer_translators.parameters()} == {torch.float32}
    assert {p.dtype for p in half.unembed.final_norm.parameters()} == {torch.float32}
    assert half.unembed.unembedding.weight.dtype == torch.bfloat16
    for layer, h in enumerate(tiny_model.forward(ids).hidden_states):
        z = half.transform_hidden(h, layer)
        assert torch.equal(z, full.transform_hidden(h, layer))
        expected, got = full(h, layer), half(h, layer)
        assert got.dtype == torch.bfloat16
        assert (got.float() - expected).abs().max() < 0.02 * expected.abs().max()


@torch.no_grad()
def test_a_lens_reads_the_hidden_states_that_a_bfloat16_model_gives(in_bfloat16: ModelAdapter, ids: Tensor) -> None:
    lens, forward = random_lens(in_bfloat16), in_bfloat16.forward(ids)
    expected = in_bfloat16.model(ids).logits.float()  # transformers gives Mamba's as float32, but of a bfloat16 head
    torch.testing.assert_close(
        lens.unembed(forward.norm_input).float(), expected, rtol=0, atol=0.02 * float(expected.abs().max())
    )
    for layer, h in enumerate(forward.hidden_states):
        assert lens(h, layer).isfinite().all()
        assert lens.transform_hidden(h, layer).dtype == torch.float32


# --- the model stays as it is -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_lens_in_double_precision_works_and_leaves_the_model_alone(tiny_model: ModelAdapter, ids: Tensor) -> None:
    before, lens = weights(tiny_model.model), random_lens(tiny_model)
    hidden = tiny_model.forward(ids).hidden_states
    single = [lens(h, layer) for layer, h in enumerate(hidden)]
    lens.double()
    assert_unchanged(before, tiny_model.model)
    for layer, h in enumerate(hidden):
        logits = lens(h, layer)
        assert logits.dtype == torch.float64
        torch.testing.assert_close(logits.float(), single[layer], rtol=1e-4, atol=1e-5)
        assert not torch.equal(logits, single[layer].double()), (
            "it is computed in double precision, not only returned so"
        )


@pytest.mark.parametrize("kind", [LogitLens, TunedLens])
def test_nothing_done_to_the_parameters_of_a_lens_reaches_the_model(
    tiny_model: ModelAdapter, kind: type[LogitLens] | type[TunedLens]
) -> None:
    before, lens = weights(tiny_model.model), kind.from_adapter(tiny_model)
    parameters = list(lens.parameters())
    assert len(parameters) >= 2
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(parameters, lr=1.0).step()
    assert_unchanged(before, tiny_model.model)
    assert not torch.equal(lens.unembed.unembedding.weight, tiny_model.head.weight)
    assert not any(p.requires_grad for p in tiny_model.model.parameters())


def test_the_unembedding_is_frozen_even_where_the_model_is_not(
    tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parameter in (*tiny_mamba.final_norm.parameters(), *tiny_mamba.head.parameters()):
        monkeypatch.setattr(parameter, "requires_grad", True)
    assert not any(p.requires_grad for p in Unembedding(tiny_mamba).parameters())


def test_an_optimizer_over_a_lens_moves_only_its_translators(tiny_model: ModelAdapter, ids: Tensor) -> None:
    before, lens = weights(tiny_model.model), random_lens(tiny_model)
    unembedding, translators = weights(lens.unembed), weights(lens.layer_translators)
    optimizer = torch.optim.AdamW(lens.parameters(), lr=0.1, weight_decay=0.1)
    sum(lens(h, layer).square().mean() for layer, h in enumerate(tiny_model.forward(ids).hidden_states)).backward()
    optimizer.step()
    assert_unchanged(before, tiny_model.model)
    assert_unchanged(unembedding, lens.unembed)
    assert not any(torch.equal(t, lens.layer_translators.state_dict()[name]) for name, t in translators.items())


# --- saving and loading -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_lens_loads_to_the_same_logits(tiny_model: ModelAdapter, ids: Tensor, tmp_path: Path) -> None:
    lens = random_lens(tiny_model)
    lens.save(tmp_path / "lens")
    loaded = TunedLens.load(tiny_model, tmp_path / "lens")
    assert loaded.config == lens.config
    for layer, h in enumerate(tiny_model.forward(ids).hidden_states):
        assert torch.equal(loaded(h, layer), lens(h, layer))


def test_a_lens_in_another_format_is_saved_as_float32(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    random_lens(tiny_mamba).double().save(str(tmp_path))
    loaded = TunedLens.load(tiny_mamba, str(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded[1].weight, random_lens(tiny_mamba)[1].weight)


def test_a_lens_can_share_an_unembedding(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    unembedding = Unembedding(tiny_mamba)
    TunedLens.from_adapter(tiny_mamba, unembedding).save(tmp_path)
    assert TunedLens.load(tiny_mamba, tmp_path, unembedding).unembed is unembedding
    assert LogitLens.from_adapter(tiny_mamba, unembedding).unembed is unembedding


def test_other_file_names_are_refused(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"saved as config\.json and params\.pt, not as config\.json and weights\.pt"
    ):
        TunedLens.from_adapter(tiny_mamba).save(tmp_path, ckpt="weights.pt")
    assert list(tmp_path.iterdir()) == []


# --- stock tuned-lens -------------------------------------------------------------------------------------------------


@pytest.fixture
def tuned_lens_warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What tuned-lens warns of, through the root logger."""
    caplog.set_level(logging.WARNING)
    return caplog.records


@torch.no_grad()
def test_stock_tuned_lens_reads_our_lens_and_computes_the_same(
    tiny_neox: ModelAdapter, ids: Tensor, tmp_path: Path, tuned_lens_warnings: list[logging.LogRecord]
) -> None:
    ours = random_lens(tiny_neox)
    ours.save(tmp_path / "lens")
    theirs = stock.TunedLens.from_model_and_pretrained(tiny_neox.model, lens_resource_id=str(tmp_path / "lens"))
    assert tuned_lens_warnings == []
    assert type(theirs) is stock.TunedLens
    for layer, h in enumerate(tiny_neox.forward(ids).hidden_states):
        assert torch.equal(theirs(h, layer), ours(h, layer))


@torch.no_grad()
def test_we_read_a_lens_that_stock_tuned_lens_saved(tiny_neox: ModelAdapter, ids: Tensor, tmp_path: Path) -> None:
    theirs = stock.TunedLens.from_model(tiny_neox.model)
    for parameter in theirs.layer_translators.parameters():
        parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(5))
    theirs.save(tmp_path)
    ours = TunedLens.load(tiny_neox, tmp_path)
    for layer, h in enumerate(tiny_neox.forward(ids).hidden_states):
        assert torch.equal(ours(h, layer), theirs(h, layer))


@torch.no_grad()
def test_in_bfloat16_ours_is_stock_up_to_rounding(tmp_path: Path, ids: Tensor) -> None:
    """Stock does all in bfloat16, ours only the head. Both are compared with a lens that does all in float32."""
    adapter = wrap_model(make_model("neox").bfloat16())
    ours = random_lens(adapter)
    ours.save(tmp_path)
    theirs = stock.TunedLens.from_model_and_pretrained(adapter.model, lens_resource_id=str(tmp_path))
    exact = TunedLens.load(wrap_model(make_model("neox").bfloat16().float()), tmp_path)
    our_error = their_error = 0.0
    for layer, h in enumerate(adapter.forward(ids).hidden_states):
        expected = exact(h.float(), layer)
        torch.testing.assert_close(ours(h, layer).float(), expected, rtol=0, atol=0.01 * float(expected.abs().max()))
        torch.testing.assert_close(theirs(h, layer).float(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
        our_error += float((ours(h, layer) - expected).abs().mean())
        their_error += float((theirs(h, layer) - expected).abs().mean())
    assert our_error < 0.9 * their_error


@torch.no_grad()
def test_a_lens_of_a_recurrent_model_fits_stock_classes(
    tiny_model: ModelAdapter, tmp_path: Path, tuned_lens_warnings: list[logging.LogRecord]
) -> None:
    """Stock cannot read a recurrent model, but what it builds from config.json is what params.pt fills."""
    lens = random_lens(tiny_model)
    lens.save(tmp_path)
    config = stock.TunedLensConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert (config.d_model, config.num_hidden_layers, config.bias) == (D_MODEL, tiny_model.n_layers, True)
    assert tuned_lens_warnings == []
    translators = nn.ModuleList([nn.Linear(config.d_model, config.d_model) for _ in range(config.num_hidden_layers)])
    translators.load_state_dict(torch.load(tmp_path / "params.pt", weights_only=True), strict=True)
    h = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(6))
    for layer, translator in enumerate(translators):
        assert torch.equal(h + translator(h), lens.transform_hidden(h, layer))


@torch.no_grad()
def test_stock_loads_our_lens_on_our_unembedding(
    tiny_model: ModelAdapter, ids: Tensor, tmp_path: Path, tuned_lens_warnings: list[logging.LogRecord]
) -> None:
    """The way to use stock's own class on a recurrent model: hand it an unembedding that knows the model."""
    lens = random_lens(tiny_model)
    lens.save(tmp_path)
    theirs = stock.TunedLens.from_unembed_and_pretrained(Unembedding(tiny_model), str(tmp_path))
    assert tuned_lens_warnings == [], "the hash of the unembedding is the one in config.json"
    for layer, h in enumerate(tiny_model.forward(ids).hidden_states):
        assert torch.equal(theirs(h, layer), lens(h, layer))


@torch.no_grad()
def test_stock_trajectories_take_our_lens(tiny_model: ModelAdapter, ids: Tensor) -> None:
    lens, tokens = random_lens(tiny_model), ids[0].tolist()
    trajectory = PredictionTrajectory.from_lens_and_model(lens, tiny_model.model, tokens[:-1], targets=tokens[1:])
    assert trajectory.num_layers == tiny_model.n_layers
    hidden = tiny_model.forward(ids[:1, :-1]).hidden_states
    expected = np.stack([lens(h, layer)[0].log_softmax(-1).numpy() for layer, h in enumerate(hidden)])
    np.testing.assert_allclose(trajectory.log_probs[:-1], expected, atol=1e-5)
    kl = trajectory.forward_kl().stats
    assert kl.shape == (tiny_model.n_layers + 1, len(tokens) - 1)
    assert (kl[:-1].mean(axis=1) > 0.01).all()
    np.testing.assert_allclose(kl[-1], 0, atol=1e-6)
    assert trajectory.cross_entropy().stats.shape == trajectory.entropy().stats.shape == kl.shape


# --- a lens of another model ------------------------------------------------------------------------------------------


def saved_lens(adapter: ModelAdapter, folder: Path, name: str = "org/base", **model: object) -> Path:
    """A lens that says it was made for `name`, with a fit.json that describes the model if there is anything to say of
    it."""
    lens = TunedLens.from_adapter(adapter)
    lens.config.base_model_name_or_path = name
    lens.save(folder)
    if model:
        write_json(folder / "fit.json", {"model": {"name": name, "vocab_size": adapter.vocab_size, **model}})
    return folder


@pytest.fixture
def neox(monkeypatch: pytest.MonkeyPatch, tiny_neox: ModelAdapter) -> ModelAdapter:
    """The tiny GPT-NeoX under a name."""
    monkeypatch.setattr(tiny_neox.model.config, "_name_or_path", "org/mine")
    assert tiny_neox.name == "org/mine"
    return tiny_neox


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO)
    return lambda: list(caplog.messages)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def with_d_model(folder: Path, d_model: int) -> None:
    translators = torch.load(folder / "params.pt", weights_only=True)
    torch.save(
        {name: t[:d_model, :d_model] if t.ndim == 2 else t[:d_model] for name, t in translators.items()},
        folder / "params.pt",
    )
    edit(folder, d_model=d_model)


def with_layers(folder: Path, layers: int) -> None:
    translators = torch.load(folder / "params.pt", weights_only=True)
    torch.save({name: t for name, t in translators.items() if int(name.split(".")[0]) < layers}, folder / "params.pt")
    edit(folder, num_hidden_layers=layers)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda folder: with_d_model(folder, 16), "its d_model is 16, org/mine has 32"),
        (lambda folder: with_layers(folder, 2), "its number of translators is 2, org/mine has 3"),
    ],
)
def test_a_lens_of_another_shape_is_refused_and_both_models_named(
    neox: ModelAdapter, tmp_path: Path, change: Callable[[Path], None], trouble: str
) -> None:
    change(saved_lens(neox, tmp_path))
    with pytest.raises(ArtifactError) as caught:
        TunedLens.load(neox, tmp_path)
    assert str(caught.value) == f"the lens in {tmp_path} was made for org/base: {trouble}"


def test_a_lens_of_another_vocabulary_is_refused_and_both_models_named(neox: ModelAdapter, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        TunedLens.load(neox, saved_lens(neox, tmp_path, vocab_size=50_280))
    assert (
        str(caught.value) == f"the lens in {tmp_path} was made for org/base: its vocabulary is 50280, org/mine has 96"
    )


def test_a_lens_without_bias_is_refused(neox: ModelAdapter, tmp_path: Path) -> None:
    saved_lens(neox, tmp_path)
    torch.save({f"{i}.weight": torch.zeros(D_MODEL, D_MODEL) for i in range(3)}, tmp_path / "params.pt")
    edit(tmp_path, bias=False)
    with pytest.raises(ArtifactError, match="translators without bias, which tuned-lens"):
        TunedLens.load(neox, tmp_path)


def test_another_base_of_the_same_shape_is_a_warning_that_names_both(
    neox: ModelAdapter, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    lens = TunedLens.load(neox, saved_lens(neox, tmp_path))
    assert warnings() == [f"the lens in {tmp_path} was fitted on org/base, not on org/mine"]
    assert lens.config.base_model_name_or_path == "org/mine"


def test_a_base_of_the_same_name_in_another_place_is_no_warning(
    neox: ModelAdapter, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    TunedLens.load(neox, saved_lens(neox, tmp_path, name="/models/of/mine/mine"))
    assert warnings() == []


def test_the_same_unembedding_under_another_name_is_no_warning(
    neox: ModelAdapter, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    TunedLens.load(
        neox, saved_lens(neox, tmp_path, unembedding_sha256=Unembedding(neox).sha256(), dtype="torch.float32")
    )
    assert warnings() == []


def test_another_unembedding_under_the_same_name_is_a_warning(
    neox: ModelAdapter, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    TunedLens.load(
        neox, saved_lens(neox, tmp_path, name="org/mine", unembedding_sha256="0" * 64, dtype="torch.float32")
    )
    assert warnings() == [f"the lens in {tmp_path} was fitted on org/mine, whose norm or head has changed since"]


def test_a_hash_in_another_dtype_says_nothing(
    neox: ModelAdapter, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    """A model loaded in bfloat16 has other bytes than in float32; then only the names are compared."""
    folder = saved_lens(neox, tmp_path, name="org/mine", unembedding_sha256="0" * 64, dtype="torch.bfloat16")
    TunedLens.load(neox, folder)
    assert warnings() == []
    shutil.rmtree(folder)
    TunedLens.load(neox, saved_lens(neox, folder, name="org/base", unembedding_sha256="0" * 64, dtype="torch.bfloat16"))
    assert len(warnings()) == 1


def test_the_hash_of_an_unembedding_covers_norm_and_head(tiny_model: ModelAdapter) -> None:
    unembedding = Unembedding(tiny_model)
    digests = {unembedding.sha256()}
    for parameter in unembedding.parameters():
        parameter.data.view(-1)[-1] += 1e-3
        digests.add(unembedding.sha256())
    assert len(digests) == 1 + len(list(unembedding.parameters()))
    assert Unembedding(tiny_model).sha256() in digests
