"""What every test shares: a closed-off environment, tiny random models, a byte tokenizer, and the optional test
data."""

import os
import shutil
import tempfile
from pathlib import Path

# Before the other imports: the libraries read these once. No test reaches the network or the user's own caches.
os.environ["LENS_RNN_CACHE"] = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lens-rnn-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MPLBACKEND"] = "Agg"
# torch and numba each have an OpenMP pool: idle threads that spin would take the cores from the other pool.
os.environ["OMP_WAIT_POLICY"] = "passive"


from tests import shapes

shapes.install()

from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.models.families.mamba2 import norms_groups
from lens_rnn.models.rwkv_files import read_rwkv
from tests.rwkv_weights import official_weights

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

FAMILIES = ("mamba", "rwkv4", "neox")  # what most tests run on: each kind of layer index, and RWKV-4's rescaling
ALL_FAMILIES = (*FAMILIES, "mamba2", "falcon_mamba", "rwkv5", "rwkv6", "rwkv7", "recurrent_gemma", "llama", "gpt2")
D_MODEL = 32
VOCAB_SIZE = 96
END_OF_TEXT = "<|endoftext|>"


def pytest_configure() -> None:
    torch.set_num_threads(2)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def make_model(family: str, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> PreTrainedModel:
    """A small random model, float32, in training mode, never run: RWKV-4's weights are not rescaled yet.

    Its weights are large enough for every block to change the residual stream by about its own size and for predictions
    to be uneven; fresh models of transformers have blocks near zero and near-uniform predictions, with which most
    mistakes would go unseen.
    """
    torch.manual_seed(seed)
    common = {
        "vocab_size": vocab_size,
        "hidden_size": D_MODEL,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    three = common | {"num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "intermediate_size": 64}
    if family.startswith("rwkv") and family != "rwkv4":
        version = family.removeprefix("rwkv")
        return read_rwkv(
            official_weights("5.2" if version == "5" else version, vocab_size, D_MODEL, seed=seed), family
        ).train()
    if family == "mamba":
        model = MambaForCausalLM(MambaConfig(**three, state_size=4, time_step_rank=4))
    elif family == "falcon_mamba":
        model = FalconMambaForCausalLM(FalconMambaConfig(**three, state_size=4, time_step_rank=4))
    elif family == "mamba2":
        sizes = {
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 2 if norms_groups() else 1,
            "chunk_size": 8,
        }
        model = Mamba2ForCausalLM(Mamba2Config(**three, **sizes))
    elif family == "rwkv4":  # 8 blocks: the residual stream is halved after 6
        model = RwkvForCausalLM(
            RwkvConfig(**common, num_hidden_layers=8, context_length=64, attention_hidden_size=D_MODEL)
        )
    elif family == "neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**three, **heads, max_position_embeddings=128))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**three, **heads, max_position_embeddings=128))
    elif family == "gpt2":
        sizes = {
            "n_embd": D_MODEL,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes))
    elif (
        family == "recurrent_gemma"
    ):  # two recurrent blocks and one of attention, whose window is shorter than the tests' inputs
        sizes = {"lru_width": D_MODEL, "attention_window_size": 6, "logits_soft_cap": 1.5}
        model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**three, **heads, **sizes))
    else:
        raise ValueError(f"no family {family!r}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("time_mix_key", "time_mix_value", "time_mix_receptance")):
                parameter.uniform_(0.2, 0.8)
            elif name.endswith(("time_first", "time_decay")):
                parameter.normal_()
            elif "embed" in name:
                parameter.normal_(std=0.2)
            elif name.endswith(("mixer.in_proj.weight", "mixer.out_proj.weight")):
                parameter.normal_(std=2 * parameter.shape[1] ** -0.5)
            elif parameter.ndim == 2 and not name.endswith("A_log"):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif parameter.ndim == 1:  # weights of norms are left near 1 and biases near 0, neither exactly
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def save_model(
    model: PreTrainedModel | ModelAdapter, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> Path:
    """Write a model, and a tokenizer if there is one, as a checkpoint folder that load_model reads. Returns the
    folder."""
    model = model.model if isinstance(model, ModelAdapter) else model
    if getattr(model.base_model, "layers_are_rescaled", False):
        # RWKV-4 that has run in evaluation mode holds rescaled weights; the factors are powers of two, so this is
        # exact.
        model.train()
        model.base_model._rescale_layers()
        model.save_pretrained(folder)
        model.eval()
        model.base_model._rescale_layers()
    else:
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_mamba() -> ModelAdapter:
    return wrap_model(make_model("mamba"))


@pytest.fixture(scope="session")
def tiny_rwkv4() -> ModelAdapter:
    return wrap_model(make_model("rwkv4"))


@pytest.fixture(scope="session")
def tiny_neox() -> ModelAdapter:
    return wrap_model(make_model("neox"))


@pytest.fixture(scope="session")
def models_of_every_family() -> dict[str, ModelAdapter]:
    return {family: wrap_model(make_model(family)) for family in ALL_FAMILIES}


@pytest.fixture(params=ALL_FAMILIES)
def every_model(request: pytest.FixtureRequest, models_of_every_family: dict[str, ModelAdapter]) -> ModelAdapter:
    """The tiny model of every family that is supported."""
    return models_of_every_family[request.param]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def tiny_model(family: str, request: pytest.FixtureRequest) -> ModelAdapter:
    """The tiny model of each family in turn."""
    return request.getfixturevalue(f"tiny_{family}")


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A fast tokenizer with one token a byte and, as id 256, the end of text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test material; the test is skipped where it is absent, as in a user's clone."""
    folder = Path(os.environ.get("LENS_RNN_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set LENS_RNN_TEST_DATA")
    return folder


@pytest.fixture
def token_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty token cache for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LENS_RNN_CACHE", str(folder))
    return folder
