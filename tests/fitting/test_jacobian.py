"""The fit of a Jacobian lens against the whole Jacobian by autograd, continued, and shared."""

from pathlib import Path

from lens_rnn.errors import DataError
from lens_rnn.fitting import Checkpoints
from lens_rnn.fitting.jacobian import JacobianConfig, fit_jacobian
from lens_rnn.lens import JacobianLens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from tests.refusals import refusal

import numpy as np
import pytest
import torch

SKIP = 2
CONFIG = JacobianConfig(skip=SKIP, batch=5, checkpoint_every=2)


def texts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(96, (length,), generator=generator) for length in lengths]


def naive(adapter: ModelAdapter, text: torch.Tensor, layer: int) -> torch.Tensor:
    """Σ over valid later positions, mean over valid positions, of ∂f_t ÷ ∂h_s, from the whole Jacobian of f as a
    function of one layer's hidden states."""

    def final(h: torch.Tensor) -> torch.Tensor:
        with adapter.edited(layer, lambda _: h):
            return adapter.run(text[None]).norm_input[0]

    hidden = adapter.forward(text[None]).hidden_states[layer]
    whole = torch.autograd.functional.jacobian(final, hidden)[:, :, 0]  # (t, d of f, s, d of h)
    valid = range(SKIP, len(text) - 1)
    mean = torch.zeros(adapter.d_model, adapter.d_model, dtype=torch.float64)
    for s in valid:
        for t in valid:
            assert t >= s or not whole[t, :, s].any(), "nothing later changes what was before"
            mean += whole[t, :, s].double() / len(valid)
    return mean


def test_it_is_the_mean_of_the_whole_jacobian(every_model: ModelAdapter) -> None:
    some = texts(6, 8)
    lens = fit_jacobian(every_model, some, CONFIG)
    assert lens.texts == 2
    assert lens.layers == every_model.fitted_layers
    for layer in {0, every_model.fitted_layers[len(every_model.fitted_layers) // 2]}:
        expected = sum(naive(every_model, text, layer) for text in some) / 2
        torch.testing.assert_close(lens.jacobians[layer].double(), expected, rtol=2e-3, atol=2e-4)


def test_of_the_last_layer_it_is_the_identity(tiny_mamba: ModelAdapter) -> None:
    (last,) = tiny_mamba.trivial_layers
    lens = fit_jacobian(tiny_mamba, texts(8), CONFIG, layers=[0, last])
    torch.testing.assert_close(lens.jacobians[last], torch.eye(tiny_mamba.d_model))
    assert (lens.jacobians[0] - torch.eye(tiny_mamba.d_model)).norm() > 0.01


def test_batches_texts_and_checkpoints_do_not_change_it(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    some, told = texts(9, 12, 7, 10, 8), []
    expected = fit_jacobian(tiny_mamba, some, JacobianConfig(skip=SKIP), on_text=told.append)
    assert sum(told) == 5
    checkpoints = Checkpoints(tmp_path, {})
    fit_jacobian(tiny_mamba, some, CONFIG, checkpoints=checkpoints)
    continued = fit_jacobian(tiny_mamba, some, CONFIG, resume_from=checkpoints.at(4))
    merged = JacobianLens.merge(tiny_mamba, [fit_jacobian(tiny_mamba, part, CONFIG) for part in (some[:2], some[2:])])
    for lens in (continued, merged):
        for layer, j in expected.jacobians.items():
            torch.testing.assert_close(lens.jacobians[layer], j, rtol=1e-4, atol=1e-5)


class OneOfTwo(Processes):
    """A process beside another whose sums are added by the test."""

    world = 2  # type: ignore[assignment]

    def __init__(self, rank: int, others: list[torch.Tensor], seen: list[torch.Tensor]):
        super().__init__()
        vars(self).update(rank=rank, others=others, seen=seen)

    rank = 0  # type: ignore[assignment]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.seen.append(tensor.clone())
        return tensor + (self.others[len(self.seen) - 1] if self.others else 0)


def test_two_processes_do_the_same_as_one(tiny_mamba: ModelAdapter) -> None:
    some = texts(9, 12, 7)
    of_other: list[torch.Tensor] = []
    fit_jacobian(tiny_mamba, some, CONFIG, processes=OneOfTwo(1, [], of_other))
    seen: list[torch.Tensor] = []
    shared = fit_jacobian(tiny_mamba, some, CONFIG, processes=OneOfTwo(0, of_other, seen))
    alone = fit_jacobian(tiny_mamba, some, CONFIG)
    assert len(seen) == len(of_other) > 0
    for layer, j in alone.jacobians.items():
        np.testing.assert_allclose(shared.jacobians[layer], j, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("some", "words"), [([], "no text"), (texts(9, 3), "text 1 has 3 tokens, and 4 are needed")])
def test_texts_that_are_too_short_are_refused(tiny_mamba: ModelAdapter, some: list, words: str) -> None:
    assert words in refusal(lambda: fit_jacobian(tiny_mamba, some, CONFIG), DataError)
