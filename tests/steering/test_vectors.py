"""Vectors: against plain formulas and scikit-learn, in every family; files."""

from pathlib import Path

from lens_rnn.errors import ArtifactError, ConfigError, DataError, FitError
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.steering import Pair, SteeringVectors, VectorConfig, fit_vectors
from lens_rnn.steering.vectors import last_states
from tests.conftest import make_model
from tests.reference.steering import states_of_pairs

import numpy as np
import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedTokenizerBase


def assert_near(got: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    vector = got.double().flatten().numpy()
    assert np.linalg.norm(vector - expected) <= tolerance * np.linalg.norm(expected)


def test_the_mean_difference_of_every_state_of_every_family(every_model: ModelAdapter, pairs: list[Pair]) -> None:
    states = every_model.has_state
    vectors = fit_vectors(every_model, pairs, VectorConfig(states=states, batch_size=7)).vectors
    held = {key.split(".")[0] for key in vectors.tensors}
    assert held == {"residual", *every_model.state_names}
    assert sum(key.startswith("residual") for key in vectors.tensors) == every_model.n_layers
    read = states_of_pairs(every_model, pairs)
    assert read.keys() == vectors.tensors.keys()
    for key, tensor in vectors.tensors.items():
        positive, negative = read[key]
        expected = positive.mean(0) - negative.mean(0)
        assert np.linalg.norm(tensor.double().flatten().numpy() - expected) <= 1e-4 * (np.linalg.norm(expected) + 1e-3)
        name, layer = key.split(".")
        state = (
            None
            if name == "residual"
            else every_model.advance(torch.zeros(1, 2, dtype=torch.long))[1].blocks[int(layer)][name]
        )
        assert tensor.shape == ((every_model.d_model,) if state is None else state.shape[1:])


def test_padding_on_the_right_changes_nothing(tiny_model: ModelAdapter, pairs: list[Pair]) -> None:
    texts = [text for pair in pairs for text in pair]
    together = last_states(tiny_model, texts, states=False)
    for i, text in enumerate(texts[:9]):
        alone = last_states(tiny_model, [text], states=False)
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key][i], tensor[0], rtol=1e-4, atol=1e-5)


def test_lda_is_scikit_learns(tiny_mamba: ModelAdapter, pairs: list[Pair]) -> None:
    vectors = fit_vectors(tiny_mamba, pairs, VectorConfig(method="lda", shrinkage=0.3)).vectors
    read = states_of_pairs(tiny_mamba, pairs)
    for layer in range(3):
        positive, negative = read[f"residual.{layer}"]
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(
            np.concatenate([positive, negative]), [1] * 24 + [0] * 24
        )
        mean = positive.mean(0) - negative.mean(0)
        assert_near(vectors.residual(layer), lda.coef_[0] * np.linalg.norm(mean) / np.linalg.norm(lda.coef_[0]), 1e-3)


def test_lda_of_a_state_has_the_diagonal_of_the_within_class_covariance(
    tiny_mamba: ModelAdapter, pairs: list[Pair]
) -> None:
    vector = fit_vectors(tiny_mamba, pairs, VectorConfig(method="lda", shrinkage=0.3)).vectors.tensors["ssm.1"]
    positive, negative = states_of_pairs(tiny_mamba, pairs)["ssm.1"]
    mean = positive.mean(0) - negative.mean(0)
    within = np.diag((positive.var(0) + negative.var(0)) / 2)
    direction = mean / shrunk_covariance(within, 0.3).diagonal()
    assert_near(vector, direction * np.linalg.norm(mean) / np.linalg.norm(direction), 1e-3)


def test_logistic_is_scikit_learns(tiny_mamba: ModelAdapter, pairs: list[Pair]) -> None:
    vectors = fit_vectors(tiny_mamba, pairs, VectorConfig(method="logistic", states=False)).vectors
    positive, negative = states_of_pairs(tiny_mamba, pairs)["residual.1"]
    x = np.concatenate([positive, negative])
    weights = LogisticRegression(max_iter=1000).fit((x - x.mean(0)) / x.std(0), [1] * 24 + [0] * 24).coef_[0] / x.std(0)
    mean = positive.mean(0) - negative.mean(0)
    assert_near(vectors.residual(1), weights * np.linalg.norm(mean) / np.linalg.norm(weights), 1e-2)


def test_controls_have_the_norms_and_half_of_the_sides_exchanged(tiny_mamba: ModelAdapter, pairs: list[Pair]) -> None:
    fitted = fit_vectors(tiny_mamba, pairs, VectorConfig(shuffles=2, seed=3, batch_size=5))
    positive, negative = states_of_pairs(tiny_mamba, pairs)["ssm.0"]
    for shuffled in fitted.shuffled:
        difference = shuffled.tensors["ssm.0"].double().flatten().numpy()
        signs = np.linalg.lstsq((positive - negative).T, difference, rcond=None)[0]
        assert np.sort(np.sign(signs)).tolist() == [-1] * 12 + [1] * 12
        assert np.abs(signs) == pytest.approx(np.abs(signs).mean(), rel=1e-2)
    assert not torch.equal(fitted.shuffled[0].tensors["ssm.0"], fitted.shuffled[1].tensors["ssm.0"])
    random = fitted.vectors.random(0)
    for control in (random, *fitted.shuffled):
        for key, tensor in fitted.vectors.tensors.items():
            assert control.tensors[key].norm() == pytest.approx(tensor.norm().item(), rel=1e-4)
    assert torch.equal(random.residual(0), fitted.vectors.random(0).residual(0))
    assert not torch.equal(random.residual(0), fitted.vectors.random(1).residual(0))


def test_a_file_keeps_everything(tiny_mamba: ModelAdapter, pairs: list[Pair], tmp_path: Path) -> None:
    vectors = fit_vectors(tiny_mamba, pairs, about={"template": "plain", "position": "the answer's letter"}).vectors
    vectors.save(tmp_path / "v.safetensors")
    read = SteeringVectors.load(tiny_mamba, tmp_path / "v.safetensors")
    assert read.about == dict(vectors.about)
    assert {"model", "weights_sha256", "template", "data_sha256", "position", "method", "pairs"} <= read.about.keys()
    assert read.tensors.keys() == vectors.tensors.keys()
    assert all(torch.equal(read.tensors[key], tensor) for key, tensor in vectors.tensors.items())


def test_vectors_of_another_model_are_refused(
    tiny_mamba: ModelAdapter, tiny_rwkv4: ModelAdapter, pairs: list[Pair], tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    fit_vectors(tiny_mamba, pairs).vectors.save(path)
    with pytest.raises(ArtifactError, match="n_layers"):
        SteeringVectors.load(tiny_rwkv4, path)
    with pytest.raises(ArtifactError, match="weights"):
        SteeringVectors.load(wrap_model(make_model("mamba", seed=1)), path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="no steering vectors"):
        SteeringVectors.load(tiny_mamba, path)
    with pytest.raises(ArtifactError, match="no steering vectors"):
        SteeringVectors.load(tiny_mamba, tmp_path / "absent")


def test_texts_are_taken_as_words_as_ids_and_as_tensors(
    byte_tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]
) -> None:
    adapter = wrap_model(make_model("mamba", 257), byte_tokenizer)
    words = [("def f(): return", "def f(): raise"), ("yes", "no")]
    ids = [tuple(tuple(byte_tokenizer(text)["input_ids"]) for text in pair) for pair in words]
    expected = fit_vectors(adapter, [Pair(*pair) for pair in ids]).vectors
    for texts in (words, ids, [tuple(map(torch.tensor, pair)) for pair in ids], [(words[0][0], ids[0][1]), words[1]]):
        vectors = fit_vectors(adapter, texts).vectors
        assert vectors.about == expected.about
        assert all(torch.equal(vectors.tensors[key], tensor) for key, tensor in expected.tensors.items())
    for wrong, message in (
        ("yes", "pair 1 is 'yes'"),
        (("a", "b", "c"), "positive and a negative"),
        ((1, 2), "give a positive"),
    ):
        with pytest.raises(DataError, match=message):
            fit_vectors(adapter, [wrong])  # type: ignore[list-item]
    with pytest.raises(DataError, match="300"):
        fit_vectors(adapter, [((1, 300), (2, 3))])


def test_bad_input_is_one_line(tiny_mamba: ModelAdapter, tiny_neox: ModelAdapter, pairs: list[Pair]) -> None:
    with pytest.raises(DataError, match="no contrastive pairs"):
        fit_vectors(tiny_mamba, [])
    with pytest.raises(DataError, match="without tokens"):
        fit_vectors(tiny_mamba, [Pair((1,), ())])
    with pytest.raises(ConfigError, match="gpt_neox"):
        fit_vectors(tiny_neox, pairs)
    with pytest.raises(ConfigError, match="pca"):
        VectorConfig(method="pca")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="residual stream only"):
        VectorConfig(method="logistic")
    with pytest.raises(ConfigError, match="shrinkage is 2"):
        VectorConfig(shrinkage=2)
    with pytest.raises(FitError, match=r"residual\.0: .* singular"):
        fit_vectors(tiny_mamba, pairs[:3], VectorConfig(method="lda", shrinkage=0.0, states=False))
    with pytest.raises(ConfigError, match="layer 9"):
        fit_vectors(tiny_mamba, pairs).vectors.residual(9)
