"""A small model and text on disk, for scripts that run in processes of their own."""

import json
from pathlib import Path

from tests.conftest import make_model, save_model

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerBase) -> dict[str, Path]:
    """Checkpoint folders of a random Mamba, RWKV-4 and GPT-NeoX with a byte tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {
        family: save_model(make_model(family, 257), root / family, byte_tokenizer)
        for family in ("mamba", "rwkv4", "neox")
    }


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 documents of made-up sentences in the Pile's record format, about 0.5 MB."""
    words = [
        "state",
        "layer",
        "lens",
        "reads",
        "the",
        "a",
        "recurrent",
        "model",
        "token",
        "writes",
        "forgets",
        "into",
        "from",
    ]
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "made.jsonl"
    with path.open("w") as file:
        for _ in range(600):
            text = " ".join(random.choice(words, size=150))
            file.write(json.dumps({"text": text, "meta": {"pile_set_name": "made"}}) + "\n")
    return path
