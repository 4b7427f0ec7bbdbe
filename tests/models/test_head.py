"""The head's map: scale and cap read off a model, in every precision, and nothing taken for what it is not."""

from lens_rnn.models import LogitMap, wrap_model
from lens_rnn.models.head import _exact, plain_copy
from tests.conftest import make_model
from tests.models.tiny_hybrids import make_hybrid

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "expected"), [("granite", LogitMap(1 / 8)), ("falcon_h1", LogitMap(0.4)), ("gemma2", LogitMap(1.0, 2.0))]
)
def test_scale_and_cap_are_the_configurations_own(name: str, expected: LogitMap, dtype: torch.dtype) -> None:
    assert wrap_model(make_hybrid(name).to(dtype)).logit_map == expected


@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_probing_does_not_overflow_float16(gain: float) -> None:
    """A channel of the final norm that is much larger than the others leaves less room for large states."""
    model = make_model("neox")
    model.gpt_neox.final_layer_norm.weight.data[3] *= gain
    assert wrap_model(model.half()).logit_map == LogitMap()


def test_the_nearest_number_of_the_configuration_is_taken() -> None:
    config = PreTrainedConfig(num_hidden_layers=26, lm_head_multiplier=0.0390625)
    assert _exact(0.03914, config, 2e-2) == 0.0390625
    assert _exact(0.5, config, 1e-4) == 0.5, "measured, where no number is near"
    assert _exact(1.00001, config, 1e-4) == 1.0


def test_a_map_and_its_slope() -> None:
    logit_map, x = LogitMap(0.4, 2.0), torch.linspace(-9, 9, 7, dtype=torch.float64, requires_grad=True)
    logits = logit_map(x)
    torch.testing.assert_close(logit_map.bend_(0.4 * x.detach().clone()), logits.detach())
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    slope = logit_map.slope(logits.detach())
    assert slope is not None
    torch.testing.assert_close(0.4 * slope, gradient)
    assert LogitMap().slope(x) is None
    assert str(logit_map) == "2 · tanh(0.4 · (U u + b) ÷ 2)"


def test_a_plain_head_is_copied_as_it_is() -> None:
    head = nn.Linear(4, 6)
    copy = plain_copy(head, torch.float32)
    assert copy is not head
    assert torch.equal(copy.weight, head.weight)
    copy.weight.data.zero_()
    assert head.weight.any()
