"""Random directions beside a probe: the quantiles of what each gives by itself."""

from lens_rnn.elk import controls
from lens_rnn.elk.controls import DIRECTIONS, QUANTILES, Scored, control
from lens_rnn.elk.probes import PROBES, _normed

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

RANDOM = np.random.default_rng(0)
ROWS, WIDTH = 60, 5
Y = RANDOM.random(ROWS) < 0.4
SINGLE, UNSEEN = RANDOM.standard_normal((2, ROWS, WIDTH)) * np.geomspace(0.1, 10, WIDTH) + Y[:, None]
PAIRS, UNSEEN_PAIRS = (
    RANDOM.standard_normal((2, ROWS, 2, 2, WIDTH)) * np.geomspace(0.1, 10, WIDTH) + Y[:, None, None, None]
)
TESTS = {
    name: Scored(among, RANDOM.random(among.sum()) < 0.5) for name, among in (("B", np.arange(ROWS) < 40), ("BH", Y))
}


def read(kind: str, x: np.ndarray, unseen: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a direction says of fitting rows and of unseen ones, in the coordinates of a kind of probe."""
    if kind in ("lr_pair", "mean_diff_pair"):
        x, unseen = (values[:, 0].reshape(ROWS, -1) for values in (x, unseen))
    if x.ndim == 2:
        scaler = StandardScaler().fit(x)
        return scaler.transform(x) @ direction, scaler.transform(unseen) @ direction
    if kind == "vinc":
        _, mean, deviation = _normed(x)
    else:
        x, unseen = x[:, :1], unseen[:, :1]  # its own prompt
        _, mean, deviation = _normed(x[:, 0])
    scaled = [((values - mean) / deviation).mean(1) for values in (x, unseen)]  # (rows, 2, width)
    return tuple((values[:, 1] - values[:, 0]) @ direction for values in scaled)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", PROBES)
def test_the_quantiles_are_those_of_directions_read_one_by_one(kind: str) -> None:
    x, unseen = (PAIRS, UNSEEN_PAIRS) if PROBES[kind].pairs else (SINGLE, UNSEEN)
    got = control(PROBES[kind].drawn, x, Y, unseen, TESTS, seed=3)
    directions = np.random.default_rng(3).standard_normal((DIRECTIONS, x[0].size))
    width = {2: WIDTH, 4: 2 * WIDTH if kind.endswith("_pair") else WIDTH}[x.ndim]
    areas: dict[str, list[float]] = {name: [] for name in TESTS}
    for direction in directions[:, :width]:
        seen, said_of_unseen = read(kind, x, unseen, direction)
        sign = 1 if roc_auc_score(Y, seen) >= 0.5 else -1
        for name, test in TESTS.items():
            areas[name].append(roc_auc_score(test.labels, sign * said_of_unseen[test.among]))
    assert DIRECTIONS >= 200
    for name, of_draws in areas.items():
        assert got[name] == pytest.approx(np.quantile(of_draws, QUANTILES), abs=1e-12)


def test_single_directions_read_much_where_there_is_much_and_one_half_of_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is written along all axes is read along most; what is not there, along none more than by luck."""
    random, y = np.random.default_rng(1), np.arange(400) % 2 == 0
    tests = {"A": Scored(np.ones(400, dtype=bool), y)}
    drawn = PROBES["lr"].drawn
    strong, none = (random.standard_normal((2, 400, 8)) + shift * y[:, None] for shift in (2.0, 0.0))
    assert control(drawn, strong[0], y, strong[1], tests)["A"].median > 0.75
    low, median, high = control(drawn, none[0], y, none[1], tests)["A"]
    assert low < 0.5 < high
    assert abs(median - 0.5) < 0.03
    monkeypatch.setattr(controls, "DIRECTIONS", 1)
    (alone,) = control(drawn, none[0], y, none[1], tests, seed=4).values()
    assert alone.low == alone.high  # one direction shows no spread
