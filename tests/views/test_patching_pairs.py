"""Pairs: what the demonstrations ask, what files hold, and what is refused."""

import json
from pathlib import Path

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.models import load_model
from lens_rnn.views.patching import RECURRENT, RESIDUAL, patch
from lens_rnn.views.patching_pairs import DEMONSTRATIONS, PairTexts, read_pairs, tokenised
from tests.refusals import refusal

import pytest

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize("model", ["tiny-mamba", "tiny-rwkv4"])
@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_the_demo_models_know_the_answers_and_carry_them_in_their_states(model: str, name: str) -> None:
    """At the last token all of it is in the residual stream, and some block's state holds much of it on the way."""
    adapter = load_model(CHECKPOINTS / model, device="cpu")
    result = patch(adapter, [tokenised(adapter, pair) for pair in DEMONSTRATIONS[name][:2]], [RESIDUAL, RECURRENT])
    assert (result.clean > 0).all()
    assert (result.corrupted < result.clean - 1).all()
    assert result.mean(RESIDUAL)[-1, -1] == pytest.approx(1, abs=1e-3)
    assert result.mean(RECURRENT).max() > 0.2


def test_a_file_of_pairs_is_read(tmp_path: Path) -> None:
    pair = PairTexts("a b", "a c", " b", " c")
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([json.dumps(pair._asdict())] * 2), encoding="utf-8")
    assert read_pairs(path) == [pair, pair]


@pytest.mark.parametrize("content", ["", "no", "[1]", '{"clean": "a"}', '{"clean": "", "corrupted": "b"}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    assert str(path) in refusal(lambda: read_pairs(path), DataError)
    assert "cannot be read" in refusal(lambda: read_pairs(tmp_path / "none"), DataError)


def test_an_answer_is_one_token() -> None:
    adapter = load_model(CHECKPOINTS / "tiny-mamba", device="cpu")
    pair = PairTexts("a", "b", " a long answer", " b")
    assert "tokens to" in refusal(lambda: tokenised(adapter, pair), ConfigError)
