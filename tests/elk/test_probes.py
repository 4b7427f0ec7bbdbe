"""Probes: the same numbers as scikit-learn and plain formulas, and the properties that make them what they are."""

from lens_rnn.elk.probes import PROBES, _normed, fit_probe
from lens_rnn.elk.scores import auroc
from lens_rnn.errors import ConfigError, DataError
from tests.reference import elk as reference

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS, WIDTH = 300, 12
SINGLE = [name for name, kind in PROBES.items() if not kind.pairs]
PAIRED = [name for name, kind in PROBES.items() if kind.pairs]
TRUE_AXIS, NUISANCE = np.eye(WIDTH)[0], np.eye(WIDTH)[1]


def states(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States (rows, width) of unequal scales in which the label stands along one axis."""
    random = np.random.default_rng(seed)
    y = random.random(ROWS) < 0.4
    x = random.standard_normal((ROWS, WIDTH)) * np.geomspace(0.3, 30, WIDTH) + 5
    return x + np.outer(y, TRUE_AXIS), y


def pairs(seed: int = 0, nuisance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (rows, 2 prompts, 2 answers, width): the truth of the answer on one axis, which answer it is on all, noise
    of each prompt on another."""
    random = np.random.default_rng(seed)
    y = random.random(ROWS) < 0.5
    x = random.standard_normal((ROWS, 2, 2, WIDTH))
    truth = np.stack([~y, y], 1)[:, None, :, None] * 2.0 - 1
    sway = nuisance * random.standard_normal((ROWS, 2, 1, 1)) * np.array([-1.0, 1.0])[:, None]
    return x + 1.5 * truth * TRUE_AXIS + sway * NUISANCE + np.array([0.0, 3.0])[:, None], y


def test_lr_is_scikit_learns_on_standard_features() -> None:
    x, y = states()
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (1e-3 * ROWS), max_iter=1000)).fit(x, y)
    assert fit_probe("lr", x, y).log_odds(x) == pytest.approx(plain.decision_function(x), abs=1e-4)


def test_lda_is_scikit_learns_on_standard_features() -> None:
    x, y = states()
    plain = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")).fit(x, y)
    assert fit_probe("lda", x, y).log_odds(x) == pytest.approx(plain.decision_function(x), abs=1e-8)


def test_mean_diff_points_from_false_to_true() -> None:
    x, y = states()
    difference = x[y].mean(0) - x[~y].mean(0)
    assert fit_probe("mean_diff", x, y).direction == pytest.approx(difference / np.linalg.norm(difference), abs=1e-10)


@pytest.mark.parametrize("name", ["lr", "mean_diff", "lda"])
def test_biases_are_fitted(name: str) -> None:
    """A shift of the features is answered by the bias, and the mean probability is about the share of true rows."""
    x, y = states()
    probe, shifted = fit_probe(name, x, y), fit_probe(name, x + 100, y)
    assert shifted.log_odds(x + 100) == pytest.approx(probe.log_odds(x), abs=1e-3)
    assert abs(shifted.bias - probe.bias) > 0.1
    assert (1 / (1 + np.exp(-probe.log_odds(x)))).mean() == pytest.approx(y.mean(), abs=0.02)


@pytest.mark.parametrize("name", ["lr_pair", "mean_diff_pair"])
def test_probes_on_pairs_are_the_same_on_both_states_end_to_end(name: str) -> None:
    x, y = pairs()
    plain = fit_probe(name.removesuffix("_pair"), x[:, 0].reshape(ROWS, -1), y)
    probe = fit_probe(name, x, y)
    assert probe.log_odds(x) == pytest.approx(plain.log_odds(x[:, 0].reshape(ROWS, -1)), abs=1e-9)
    assert not probe.weight[1].any()  # only the row's own prompt is read


def test_crc_is_the_first_principal_component_of_the_difference() -> None:
    x, y = pairs()
    normed, _, _ = _normed(x[:, 0])
    component = PCA(1).fit(normed[:, 1] - normed[:, 0]).components_[0]
    expected = (normed[:, 1] - normed[:, 0]) @ component / 2
    got = fit_probe("crc", x, y).log_odds(x)
    assert got * np.sign(got @ expected) == pytest.approx(expected, abs=1e-9)


def test_ccs_ends_at_a_minimum_of_its_loss() -> None:
    x, y = pairs()
    probe = fit_probe("ccs", x, y)
    normed, _, deviation = _normed(x[:, 0])
    false, true = (torch.from_numpy(normed[:, i]) for i in (0, 1))
    w = torch.from_numpy(2 * probe.weight[0, 1] * deviation).requires_grad_()
    b = torch.zeros((), dtype=torch.float64)
    penalty = 1e-3 / 2 * w @ w
    least = min(reference.ccs_loss(sign * w, b, false, true) for sign in (1, -1)) + penalty
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = w + 0.3 * torch.randn(WIDTH, generator=noise, dtype=torch.float64)
        assert reference.ccs_loss(other, b, false, true) + 1e-3 / 2 * other @ other > least - 1e-3
    (gradient,) = torch.autograd.grad(reference.ccs_loss(w, b, false, true) + penalty, w)
    assert gradient.norm() < 0.02


def test_vinc_solves_its_eigenproblem() -> None:
    x, y = pairs(nuisance=3)
    normed, _, deviation = _normed(x)
    _, vectors = np.linalg.eigh(reference.vinc_matrix(normed))
    weight = fit_probe("vinc", x, y).weight
    direction = weight[0, 1] * deviation
    assert abs(direction @ vectors[:, -1]) / np.linalg.norm(direction) == pytest.approx(1, abs=1e-9)
    assert np.allclose(weight[0], weight[1])


def test_vinc_leaves_alone_what_differs_between_prompts() -> None:
    """The prompts' own noise is the strongest contrast: the first component follows it, variance without invariance
    would too."""
    x, y = pairs(nuisance=3)
    unseen, truth = pairs(1, nuisance=3)
    assert abs(fit_probe("crc", x, y).direction[0, 1] @ NUISANCE) > 0.5
    assert auroc(truth, fit_probe("vinc", x, y).log_odds(unseen)) > 0.95
    assert auroc(truth, fit_probe("crc", x, y).log_odds(unseen)) < 0.75


@pytest.mark.parametrize("name", ["ccs", "crc", "vinc"])
def test_the_truth_is_found_without_labels_and_its_sign_with_them(name: str) -> None:
    x, y = pairs()
    unseen, truth = pairs(1)
    probe, opposite = fit_probe(name, x, y), fit_probe(name, x, ~y)
    assert auroc(truth, probe.log_odds(unseen)) > 0.95
    assert opposite.log_odds(unseen) == pytest.approx(-probe.log_odds(unseen))
    assert probe.turned != opposite.turned


@pytest.mark.parametrize("name", ["ccs", "crc", "vinc"])
def test_which_answer_it_is_is_not_told(name: str) -> None:
    """The same offset on all second answers changes nothing."""
    x, y = pairs()
    moved = x + np.array([0.0, 40.0])[:, None]
    assert fit_probe(name, moved, y).log_odds(moved) == pytest.approx(fit_probe(name, x, y).log_odds(x), abs=1e-5)


def test_constant_features_do_no_harm() -> None:
    x, y = states()
    x[:, 3] = 7
    for name in SINGLE:
        assert np.isfinite(fit_probe(name, x, y).log_odds(x)).all()
    paired, labels = pairs()
    paired[..., 3] = 7
    for name in PAIRED:
        assert np.isfinite(fit_probe(name, paired, labels).log_odds(paired)).all()


def test_bad_input_is_named() -> None:
    x, y = states()
    with pytest.raises(ConfigError, match="svm"):
        fit_probe("svm", x, y)
    with pytest.raises(ConfigError, match="contrast pairs"):
        fit_probe("lr_pair", x, y)
    with pytest.raises(DataError, match="300 rows are True"):
        fit_probe("lr", x, np.ones(ROWS))
    with pytest.raises(DataError, match="not all finite"):
        fit_probe("lr", np.where(x == x[3, 4], np.inf, x), y)
    with pytest.raises(DataError, match=r"\(5,\)"):
        fit_probe("lr", x, y).log_odds(np.zeros((2, 5)))
