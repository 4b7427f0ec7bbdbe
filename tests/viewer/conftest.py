"""The cache of tiny random models, and the library's own figures to compare a page with."""

from collections.abc import Callable
from pathlib import Path

from lens_rnn.evaluation.trajectory import Trajectory, predict
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.viewer import LOGIT, Choice, ViewerCache
from tests.conftest import make_model

import pytest
import torch
from transformers import PreTrainedTokenizerBase

VOCAB_SIZE = 257
TUNED = "random-lens"


@pytest.fixture(scope="package")
def adapters(byte_tokenizer: PreTrainedTokenizerBase) -> dict[str, ModelAdapter]:
    """A Mamba, which has a tuned lens below, and an RWKV-4, which has none."""
    return {name: wrap_model(make_model(name, VOCAB_SIZE), byte_tokenizer) for name in ("mamba", "rwkv4")}


@pytest.fixture(scope="package")
def lens_folder(adapters: dict[str, ModelAdapter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    lens = TunedLens.from_adapter(adapters["mamba"])
    torch.manual_seed(1)
    for parameter in lens.layer_translators.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("lenses") / TUNED
    lens.save(folder)
    return folder


@pytest.fixture(scope="package")
def choices(lens_folder: Path) -> dict[str, Choice]:
    return {"mamba": Choice(model="mamba", lenses={TUNED: str(lens_folder)}), "rwkv4": Choice(model="rwkv4")}


@pytest.fixture
def cache(choices: dict[str, Choice], adapters: dict[str, ModelAdapter]) -> ViewerCache:
    return ViewerCache(choices, adapters.__getitem__)


Library = Callable[..., Trajectory]


@pytest.fixture(scope="package")
def library(adapters: dict[str, ModelAdapter], lens_folder: Path) -> Library:
    """What the library reads of a text, by the name of a model and of a lens, with a model of its own: a page has the
    others."""
    own = wrap_model(make_model("mamba", VOCAB_SIZE), adapters["mamba"].tokenizer)
    lenses = {LOGIT: LogitLens.from_adapter(own), TUNED: TunedLens.load(own, lens_folder)}

    def read(text: str, lens: str = TUNED, stride: int = 1) -> Trajectory:
        return predict(own, lenses[lens], own.tokenizer(text)["input_ids"], stride=stride)

    return read
