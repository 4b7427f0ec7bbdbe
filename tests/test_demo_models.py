"""The demo models and lenses that ship with the package: small, in half precision, as good as their cards say."""

import json
import re
from pathlib import Path

from lens_rnn.data import DataConfig, StdlibSource, load_blocks, unigram_cross_entropy
from lens_rnn.evaluation.metrics import doubts, evaluate
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, load_model

import pytest
import torch
from safetensors import safe_open

FOLDER = Path(__file__).parents[1] / "checkpoints"
PROMISED = {"tiny-mamba": 1.30, "tiny-rwkv4": 1.45}  # held-out bits per byte, at most


@pytest.fixture(scope="module", params=PROMISED)
def demo(request: pytest.FixtureRequest) -> tuple[str, ModelAdapter]:
    return request.param, load_model(FOLDER / request.param, device="cpu")


@pytest.mark.parametrize("name", PROMISED)
def test_it_is_small_and_in_half_precision(name: str) -> None:
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * 2**20
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118 - it is not a dict
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] == (name == "tiny-mamba")


def test_it_reaches_what_its_card_says(demo: tuple[str, ModelAdapter]) -> None:
    """Where this Python's standard library is the one that the card names; else only that the model knows Python."""
    name, adapter = demo
    card = (FOLDER / name / "README.md").read_text()
    promised = float(re.search(r"\*\*(\d\.\d+)\*\*", card).group(1))
    assert promised <= PROMISED[name]
    blocks = load_blocks(DataConfig(seq_len=256), "eval", adapter.tokenizer, StdlibSource(), everything=True)
    same_text = blocks.sha256 in card
    rows = range(0, len(blocks) if same_text else 32, 8)
    total = tokens = 0.0
    with torch.no_grad():
        for start in rows:
            ids = blocks.batch(slice(start, start + 8))
            logits = adapter.head(adapter.forward(ids).final)[:, :-1]
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
            ).item()
            tokens += ids[:, 1:].numel()
    reached = total / tokens * blocks.bits_per_byte
    assert reached == pytest.approx(promised, abs=1e-3) if same_text else reached < 2.0


def test_its_lens_beats_the_logit_lens_and_the_unigram_model_at_every_layer(demo: tuple[str, ModelAdapter]) -> None:
    name, adapter = demo
    lens = TunedLens.load(adapter, FOLDER / f"{name}-lens")
    data = DataConfig(eval_tokens=8_192, tokens=65_536)
    held_out = load_blocks(data, "eval", adapter.tokenizer)
    unigram = unigram_cross_entropy(load_blocks(data, "fit", adapter.tokenizer), held_out, adapter.vocab_size)
    evaluation = evaluate(
        adapter, {"logit": LogitLens.from_adapter(adapter), "tuned": lens}, held_out, unigram_ce=unigram
    )
    assert doubts(evaluation, adapter.fitted_layers) == []
    for i in adapter.fitted_layers:
        assert evaluation.lenses["tuned"][i].kl < evaluation.lenses["logit"][i].kl
        assert evaluation.lenses["tuned"][i].ce < unigram
