"""The fused objective against autograd."""

from lens_rnn.fitting.objective import FusedObjective, default_chunk_tokens
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import LogitMap, ModelAdapter
from tests.reference import objective as naive

import pytest
import torch


def _batch(
    adapter: ModelAdapter, precision: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Unembedding]:
    ids = torch.randint(adapter.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    forward = adapter.forward(ids)
    unembedding = Unembedding(adapter).to(precision)
    z = forward.hidden_states[0].flatten(0, 1).to(precision) * 1.3
    return z, forward.final.flatten(0, 1).to(precision), ids, unembedding


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_values_and_gradients_equal_autograd(
    tiny_model: ModelAdapter, loss: str, precision: torch.dtype, tolerance: float
) -> None:
    z, final, ids, unembedding = _batch(tiny_model, precision)
    objective = FusedObjective(unembedding, loss)
    labels = ids.flatten()
    target, score = objective.target(final, labels if loss == "ce" else None)
    values, gradient, sampled = objective.derivatives(z, target)
    assert score is None
    assert sampled is None
    expected_z = z.clone().requires_grad_()
    expected = naive.kl(expected_z, final, unembedding) if loss == "kl" else naive.ce(expected_z, labels, unembedding)
    # HF Mamba's RMSNorm computes in float32 whatever it is given, which bounds what float64 can show there.
    tolerance = max(tolerance, 1e-5) if tiny_model.model_type == "mamba" else tolerance
    torch.testing.assert_close(values, expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected.sum(), expected_z)[0], rtol=tolerance, atol=tolerance
    )
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
        keep = slice(None) if loss == "kl" else slice(None, -1)
        assert torch.equal(
            torch.cat([chunk.hidden[1] for chunk in chunks]), forward.hidden_states[1][:, keep].flatten(0, 1)
        )
        totals.append(
            sum(objective.derivatives(lens.transform_hidden(c.hidden[1], 1), c.target).loss.sum() for c in chunks)
        )
    torch.testing.assert_close(totals[0], totals[1])


def test_cross_entropy_is_of_the_next_token(tiny_neox: ModelAdapter) -> None:
    """On the last hidden state the lens is the model, so its cross-entropy must be transformers' own loss."""
    ids = torch.randint(96, (2, 15))
    objective = FusedObjective(Unembedding(tiny_neox), "ce")
    forward = tiny_neox.forward(ids)
    forward = forward._replace(hidden_states=(forward.norm_input,))
    losses = torch.cat([objective.derivatives(c.hidden[0], c.target).loss for c in objective.chunks(forward, ids)])
    torch.testing.assert_close(losses.mean(), tiny_neox.model(ids, labels=ids).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_gradients_for_drawn_labels_equal_autograd(
    tiny_model: ModelAdapter, loss: str, precision: torch.dtype, tolerance: float
) -> None:
    z, final, ids, unembedding = _batch(tiny_model, precision)
    objective = FusedObjective(unembedding, loss)
    drawn = torch.randint(tiny_model.vocab_size, (len(z),), generator=torch.Generator().manual_seed(2))
    draws = naive.draws_of(drawn, final, unembedding)
    target, score = objective.target(final, ids.flatten() if loss == "ce" else None, draws)
    values, gradient, sampled = objective.derivatives(z, target, score)
    plain = objective.derivatives(z, target)
    assert torch.equal(values, plain.loss)
    assert torch.equal(gradient, plain.gradient)
    expected = naive.score(z, final, drawn, unembedding)
    tolerance = max(tolerance, 1e-5) if tiny_model.model_type == "mamba" else tolerance
    torch.testing.assert_close(sampled, expected, rtol=tolerance, atol=tolerance)
    assert (sampled - gradient).norm() > 0.1 * gradient.norm(), (
        "the check needs labels that are not what the loss asks for"
    )


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_map_of_the_logits_has_its_derivative(
    models_of_every_family: dict[str, ModelAdapter], loss: str, scale: float, precision: torch.dtype, tolerance: float
) -> None:
    """c · tanh(s x ÷ c), for the loss and for drawn labels, where it bends most logits."""
    adapter = models_of_every_family["recurrent_gemma"]
    z, final, ids, unembedding = _batch(adapter, precision)
    assert unembedding.logit_map == adapter.logit_map == (1.0, 1.5)
    unembedding.logit_map = LogitMap(scale, 1.5)
    assert (unembedding(z).abs() > 1).float().mean() > 0.1, "the check needs logits near the cap"
    objective = FusedObjective(unembedding, loss)
    drawn = torch.randint(adapter.vocab_size, (len(z),), generator=torch.Generator().manual_seed(2))
    draws = naive.draws_of(drawn, final, unembedding)
    target, score = objective.target(final, ids.flatten() if loss == "ce" else None, draws)
    values, gradient, sampled = objective.derivatives(z, target, score)
    expected_z = z.clone().requires_grad_()
    expected = (
        naive.kl(expected_z, final, unembedding) if loss == "kl" else naive.ce(expected_z, ids.flatten(), unembedding)
    )
    tolerance = max(tolerance, 1e-5)  # its RMSNorm computes in float32 whatever it is given
    torch.testing.assert_close(values, expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected.sum(), expected_z)[0], rtol=tolerance, atol=tolerance
    )
    of_drawn = naive.score(z, final, drawn, unembedding)
    torch.testing.assert_close(sampled, of_drawn, rtol=tolerance, atol=tolerance)


def test_drawn_labels_give_the_fisher_information(tiny_model: ModelAdapter) -> None:
    """Over all labels y, weighted by p[y]: E[s] = 0, and E[s sᵀ] = Jᵀ Uᵀ (diag p − p pᵀ) U J; where q = p, the Hessian
    of KL(p ‖ q') in z'."""
    z, _, _, unembedding = _batch(tiny_model, torch.float64)
    z, labels = z[:1], torch.arange(tiny_model.vocab_size)
    objective = FusedObjective(unembedding, "kl")
    every = z.repeat(len(labels), 1)  # (vocab, d_model): one token, once for each label
    final = unembedding.normed(every).to(z)  # so that q = p
    target, score = objective.target(final, draws=naive.draws_of(labels, final, unembedding))
    sampled = objective.derivatives(every, target, score).sampled
    q = unembedding(z)[0].softmax(-1)
    fisher = sampled.T @ (q[:, None] * sampled)

    weight = unembedding.unembedding.weight
    jacobian = torch.autograd.functional.jacobian(lambda x: unembedding.normed(x[None])[0].to(x), z[0])
    of_logits = weight @ jacobian  # (vocab, d_model)
    expected = of_logits.T @ (q.diag() - torch.outer(q, q)) @ of_logits
    tolerance = 1e-5 if tiny_model.model_type == "mamba" else 1e-10
    torch.testing.assert_close(q @ sampled, torch.zeros_like(z[0]), rtol=0, atol=tolerance)
    torch.testing.assert_close(fisher, expected, rtol=tolerance, atol=tolerance)
    hessian = torch.autograd.functional.hessian(
        lambda x: (q * (q.log() - unembedding(x[None])[0].log_softmax(-1))).sum(), z[0]
    )
    torch.testing.assert_close(fisher, hessian, rtol=tolerance, atol=tolerance)
    assert expected.norm() > 0.01


def test_bfloat16_products_stay_close(tiny_rwkv4: ModelAdapter) -> None:
    z, final, _, unembedding = _batch(tiny_rwkv4, torch.float32)
    drawn = torch.randint(96, (len(z),), generator=torch.Generator().manual_seed(2))
    results = []
    for products in (torch.float32, torch.bfloat16):
        objective = FusedObjective(unembedding, "kl", products)
        target, score = objective.target(final, draws=naive.draws_of(drawn, final, unembedding))
        results.append(objective.derivatives(z, target, score))
    exact, close = results
    assert {tensor.dtype for tensor in close} == {torch.float32}
    torch.testing.assert_close(close.loss, exact.loss, rtol=0.05, atol=0.02)
    same_label = (close.sampled - exact.sampled).norm(dim=1) < 0.1 * exact.sampled.norm(
        dim=1
    )  # a rare one has moved across a draw
    assert same_label.float().mean() > 0.9
    for a, b in ((close.gradient, exact.gradient), (close.sampled[same_label], exact.sampled[same_label])):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_nothing_larger_than_a_chunk_is_held(tiny_neox: ModelAdapter, loss: str, fisher: bool) -> None:
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
    objective = FusedObjective(Unembedding(tiny_neox), loss, chunk_tokens=8)
    forward = tiny_neox.forward(ids)
    with Watch():
        draws = torch.rand(4 * objective.targets(32)) if fisher else None
        for chunk in objective.chunks(forward, ids, draws):
            objective.derivatives(chunk.hidden[0], chunk.target, chunk.score)
    assert largest == 8 * 96


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_default_chunk_fills_a_buffer_within_bounds(device: str) -> None:
    sizes = [256, 4_096, 50_280, 131_072, 10**7]
    wide, narrow = (
        [default_chunk_tokens(v, dtype, device) for v in sizes] for dtype in (torch.float32, torch.bfloat16)
    )
    for chunks in (wide, narrow):
        assert chunks == sorted(chunks, reverse=True)
        assert 64 <= chunks[-1] < chunks[0] <= 8192
    assert all(w <= n <= 2 * w + 1 for w, n in zip(wide, narrow, strict=True))
    least, most = wide[-1], wide[0]
    assert all(2**23 <= 4 * v * tokens <= 2**29 for v, tokens in zip(sizes, wide, strict=True) if least < tokens < most)
