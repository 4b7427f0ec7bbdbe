"""The fused objective against autograd."""

from lens_rnn.fitting.objective import FusedObjective, default_chunk_tokens
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import ModelAdapter
from tests.reference import objective as naive

import pytest
import torch


def _batch(adapter: ModelAdapter, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Unembedding]:
    ids = torch.randint(adapter.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    forward = adapter.forward(ids)
    unembedding = Unembedding(adapter).to(precision)
    z = forward.hidden_states[0].flatten(0, 1).to(precision) * 1.3
    return z, forward.final.flatten(0, 1).to(precision), ids, unembedding


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_values_and_gradients_equal_autograd(tiny_model: ModelAdapter, loss: str, precision: torch.dtype, tolerance: float) -> None:
    z, final, ids, unembedding = _batch(tiny_model, precision)
    objective = FusedObjective(unembedding, loss)
    labels = ids.flatten()
    target = objective.target(final, labels if loss == "ce" else None)
    values, gradient = objective.value_and_gradient(z, target)
    expected_z = z.clone().requires_grad_()
    expected = naive.kl(expected_z, final, unembedding) if loss == "kl" else naive.ce(expected_z, labels, unembedding)
    # HF Mamba's RMSNorm computes in float32 whatever it is given, which bounds what float64 can show there.
    tolerance = max(tolerance, 1e-5) if tiny_model.model_type == "mamba" else tolerance
    torch.testing.assert_close(values, expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), expected_z)[0], rtol=tolerance, atol=tolerance)
    assert values.min() > 0.01, "the check needs losses that are not trivially zero"


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_chunks_cover_every_token_once(tiny_neox: ModelAdapter, loss: str) -> None:
    ids = torch.randint(96, (3, 20))
    forward = tiny_neox.forward(ids)
    lens = TunedLens.from_adapter(tiny_neox)
    totals = []
    for chunk_tokens in (7, 1000):
        objective = FusedObjective(lens.unembed, loss, chunk_tokens=chunk_tokens)
        chunks = list(objective.chunks(forward, ids))
        assert all(len(chunk.hidden[0]) <= chunk_tokens for chunk in chunks)
        assert sum(len(chunk.hidden[0]) for chunk in chunks) == (60 if loss == "kl" else 57)
        totals.append(sum(objective.value_and_gradient(lens.transform_hidden(c.hidden[1], 1), c.target)[0].sum() for c in chunks))
    torch.testing.assert_close(totals[0], totals[1])


def test_cross_entropy_is_of_the_next_token(tiny_neox: ModelAdapter) -> None:
    """On the last hidden state the lens is the model, so its cross-entropy must be transformers' own loss."""
    ids = torch.randint(96, (2, 15))
    objective = FusedObjective(Unembedding(tiny_neox), "ce")
    forward = tiny_neox.forward(ids)
    forward = forward._replace(hidden_states=(forward.norm_input,))
    losses = torch.cat([objective.value_and_gradient(c.hidden[0], c.target)[0] for c in objective.chunks(forward, ids)])
    torch.testing.assert_close(losses.mean(), tiny_neox.model(ids, labels=ids).loss, rtol=1e-5, atol=1e-5)


def test_bfloat16_products_stay_close(tiny_rwkv4: ModelAdapter) -> None:
    z, final, _, unembedding = _batch(tiny_rwkv4, torch.float32)
    results = []
    for products in (torch.float32, torch.bfloat16):
        objective = FusedObjective(unembedding, "kl", products)
        results.append(objective.value_and_gradient(z, objective.target(final)))
    assert results[1][0].dtype == torch.float32
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0.05, atol=0.02)
    cosine = torch.cosine_similarity(results[0][1].flatten(), results[1][1].flatten(), dim=0)
    assert cosine > 0.999


def test_nothing_larger_than_a_chunk_is_held(tiny_neox: ModelAdapter) -> None:
    """No tensor of more than chunk × vocabulary elements is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            is_head = isinstance(out, torch.Tensor) and out.data_ptr() == objective.weight.data_ptr()  # a view of U
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == tiny_neox.vocab_size and not is_head:
                largest = max(largest, out.numel())
            return out

    ids = torch.randint(96, (4, 32))
    objective = FusedObjective(Unembedding(tiny_neox), "kl", chunk_tokens=8)
    forward = tiny_neox.forward(ids)
    with Watch():
        for chunk in objective.chunks(forward, ids):
            objective.value_and_gradient(chunk.hidden[0], chunk.target)
    assert largest == 8 * 96


def test_default_chunk_is_bounded() -> None:
    assert default_chunk_tokens(50_280, "cpu") == 83
    assert default_chunk_tokens(256, "cuda") == 8192
    assert default_chunk_tokens(10**7, "cpu") == 64
