"""Bases in few bits: the head as it is loaded, plain translators, tolerances that follow. On a CPU: no kernel of a GPU
is seen here."""

from collections.abc import Callable
from pathlib import Path

from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.fitting.report import describe_model
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.models import ModelAdapter, wrap_model
from tests.conftest import make_model
from tests.data.blocks import make_blocks
from tests.models.tiny_hybrids import make_hybrid
from tests.refusals import refusal
from tests.scripts.launch import ROOT

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

IDS = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(3))


class Int8Linear(nn.Linear):
    """Weights of 8 bits and a scale a row, as libraries of quantisation keep them; the product is of the model's own
    precision."""

    def __init__(self, plain: nn.Linear):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        scales = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((plain.weight.detach() / scales).round().to(torch.int8), requires_grad=False)
        self.scales = nn.Buffer(scales)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scales.to(x.dtype), self.bias)


def in_int8(model: PreTrainedModel, head: bool = True) -> PreTrainedModel:
    """All linear maps of the blocks, and the head, in 8 bits."""
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            used_past_the_module = name in ("dt_proj", "x_proj")  # transformers multiplies by their weight itself
            if (
                type(child) is nn.Linear
                and not used_past_the_module
                and (head or child is not model.get_output_embeddings())
            ):
                setattr(module, name, Int8Linear(child))
    model.is_quantized = True
    return model


def assert_a_lens_is_fitted(adapter: ModelAdapter) -> TunedLens:
    lens = fit(adapter, make_blocks(blocks=24, seq_len=16), FitConfig(batch_size=4, passes=3, products="float32")).lens
    held_out = make_blocks(blocks=4, seq_len=16, seed=2)
    figures = evaluate(adapter, {"logit": LogitLens.from_adapter(adapter), "tuned": lens}, held_out)
    assert sum(figures.lenses["tuned"][i].kl - figures.lenses["logit"][i].kl for i in adapter.fitted_layers) < 0
    assert figures.model.kl == pytest.approx(0, abs=1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in lens.layer_translators.parameters())
    return lens


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (lambda: make_model("mamba"), False),
        (lambda: make_model("neox"), True),
        (lambda: make_model("neox"), False),
        (lambda: make_hybrid("falcon_h1"), True),
    ],
)
def test_a_base_in_8_bits_gets_a_lens(make: Callable[[], PreTrainedModel], head: bool) -> None:
    adapter = wrap_model(in_int8(make(), head))
    assert adapter.off == {}
    assert adapter.dtype == torch.float32
    assert isinstance(adapter.head, Int8Linear) == head
    with torch.no_grad():
        logits = adapter.model(IDS).logits
    forward = adapter.forward(IDS)
    torch.testing.assert_close(adapter.unembed(forward.norm_input), logits, rtol=1e-4, atol=1e-4)
    copied = Unembedding(adapter)
    assert type(copied.unembedding) is (nn.Linear if head else type(adapter.head))
    torch.testing.assert_close(copied(forward.norm_input), logits, rtol=1e-4, atol=1e-4)
    if adapter.has_state:
        _, state = adapter.advance(IDS[:, :5])
        read_on, _ = adapter.advance(IDS[:, 5:], state)
        torch.testing.assert_close(read_on.final, forward.final[:, 5:], rtol=1e-3, atol=1e-3)
    assert len(describe_model(adapter, copied.sha256()).weights_sha256) == 64
    assert_a_lens_is_fitted(adapter)


def test_a_head_that_the_model_itself_cannot_use_is_refused() -> None:
    """transformers' Mamba casts the final state to the dtype of the head's weight, which is 0 throughout for whole
    numbers."""
    assert "its logits do not depend on its normed final state" in refusal(
        lambda: wrap_model(in_int8(make_model("mamba"), head=True))
    )


@pytest.mark.parametrize(("library", "bits"), [("torchao", 8), ("bitsandbytes", 8), ("bitsandbytes", 4)])
def test_as_transformers_loads_them(library: str, bits: int, tmp_path: Path) -> None:
    """Where the library is installed: it is none of this package's dependencies."""
    pytest.importorskip(library)
    folder = ROOT / "checkpoints" / "tiny-rwkv4"  # 4 bits come in groups of 64
    if bits == 8:
        make_hybrid("qwen3_5_text").save_pretrained(folder := tmp_path)
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        settings = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        from transformers import BitsAndBytesConfig

        settings = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    try:
        quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)
        quantised(IDS)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        pytest.skip(f"{library} does not run this tiny model in {bits} bits on a CPU: {error}")
    adapter = wrap_model(quantised)
    assert adapter.is_quantised
    assert len(describe_model(adapter, "").weights_sha256) == 64
    assert_a_lens_is_fitted(adapter)
