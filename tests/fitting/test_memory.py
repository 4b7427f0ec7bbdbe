"""What a fit needs of memory. That a real fit takes as much is tried in tests/scripts/test_benchmarks.py."""

from dataclasses import replace

from lens_rnn.fitting.memory import MOMENTS, FitMemory, PassMemory, fit_memory, measure_pass
from lens_rnn.models import ModelAdapter

import pytest
import torch

CPU = torch.device("cpu")


def test_a_pass_holds_its_states_and_more_while_it_runs(tiny_model: ModelAdapter) -> None:
    forward = tiny_model.forward(torch.zeros(1, 32, dtype=torch.long))
    tensors = {t.data_ptr(): t for t in (*forward.hidden_states, forward.norm_input, forward.final)}
    held = sum(t.nbytes for t in tensors.values()) / 32
    measured = measure_pass(tiny_model, 32)
    assert measured.held == pytest.approx(held)
    assert 1.2 * held < measured.peak < 50 * held


def test_what_a_pass_takes_grows_with_its_tokens(tiny_model: ModelAdapter) -> None:
    """Weights do not count: a token's share is much the same for few tokens as for many."""
    few, many = measure_pass(tiny_model, 64), measure_pass(tiny_model, 256)
    assert few.held == many.held
    assert few.peak == pytest.approx(many.peak, rel=0.3)


def memory(adapter: ModelAdapter, optimizer: str = "kfac", **changes) -> FitMemory:
    settings = {
        "forward": PassMemory(5000.0, 1000.0),
        "tokens": 64,
        "chunk_tokens": 32,
        "products": torch.float32,
        "moment_layers": len(adapter.fitted_layers),
        "device": CPU,
        "world": 1,
        "sharded": False,
    }
    return fit_memory(adapter, optimizer, **(settings | changes))


def test_the_start_and_the_steps_are_not_there_together(tiny_model: ModelAdapter) -> None:
    whole = memory(tiny_model)
    lasting, start, step = (sum(part.values()) for part in (whole.lasting, whole.start, whole.step))
    assert whole.needed == lasting + max(start, step)
    assert memory(tiny_model, moment_layers=0).start == {}
    assert memory(tiny_model, moment_layers=0).needed == lasting + step


def test_what_makes_a_fit_larger(tiny_model: ModelAdapter) -> None:
    plain = memory(tiny_model)
    assert memory(tiny_model, "adamw").needed < plain.needed
    assert sum(memory(tiny_model, world=2).step.values()) > sum(plain.step.values())
    assert memory(tiny_model, world=2, sharded=True).lasting["model"] == plain.lasting["model"] // 2
    assert memory(tiny_model, tokens=6400).needed > memory(tiny_model, tokens=640).needed
    narrow, wide = (sum(memory(tiny_model, chunk_tokens=chunk).step.values()) for chunk in (320, 640))
    buffers = wide - narrow - 320 * 8 * tiny_model.d_model * 4
    assert buffers == 320 * tiny_model.vocab_size * 2 * 4, "two buffers of logits"


def test_processes_share_what_kfac_holds_and_the_start_what_fits(tiny_model: ModelAdapter) -> None:
    layers = len(tiny_model.fitted_layers)
    one, two = memory(tiny_model), memory(tiny_model, world=2)
    d = tiny_model.d_model
    held = 4 * d * d * 4
    assert one.lasting["states of kfac"] - two.lasting["states of kfac"] == held * (layers // 2)
    assert one.layers_at_a_time(layers, 0) == one.layers_at_a_time(layers, one.needed) == layers
    moments = one.start[MOMENTS]
    tight = replace(one, step={"gradients": one.start["a forward pass, or its states"] + 2 * moments // layers})
    assert tight.layers_at_a_time(layers, 1) == min(layers, 2), "as many as take no more than a step"
    narrow = replace(one, step={})
    rest = narrow.needed - moments
    assert narrow.layers_at_a_time(layers, rest) == narrow.layers_at_a_time(layers, 1) == 1
    assert narrow.layers_at_a_time(layers, rest + 2 * moments // layers) == min(layers, 2)
