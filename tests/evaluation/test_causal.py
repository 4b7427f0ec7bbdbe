"""Causal bases and what their ablation does: naive formulas, stock tuned-lens, and properties that any right answer
has."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from lens_rnn.errors import ConfigError
from lens_rnn.evaluation import metrics
from lens_rnn.evaluation.causal import (
    CausalBasis,
    Effects,
    ablate,
    ablation_effects,
    aitchison_similarity,
    extract_causal_bases,
    hidden_states,
)
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter, RecurrentAdapter, wrap_model
from lens_rnn.processes import Processes
from tests.conftest import D_MODEL, VOCAB_SIZE, make_model
from tests.data.blocks import make_blocks
from tests.evaluation.test_metrics import BLOCKS, IDS, First, Second, random_lens
from tests.reference import causal as naive

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tuned_lens import causal as stock
from tuned_lens.nn.lenses import Lens

MODERATE = {"max_iterations": 30}


def first_basis(adapter: ModelAdapter, lens: Lens, k: int, **options: object) -> CausalBasis:
    return next(iter(extract_causal_bases(adapter, lens, hidden_states(adapter, BLOCKS), k, **options)))[1]


def random_bases(adapter: ModelAdapter, k: int = 2) -> dict[int, CausalBasis]:
    """Orthonormal directions, and the true means, for each layer that is not trivial."""
    generator = torch.Generator().manual_seed(5)
    hidden = hidden_states(adapter, BLOCKS)
    bases = {}
    for layer in adapter.fitted_layers:
        vectors = torch.linalg.qr(torch.randn(D_MODEL, k, generator=generator)).Q.T
        bases[layer] = CausalBasis(np.zeros(k), vectors, hidden[layer].mean(0))
    return bases


# --- bases ------------------------------------------------------------------------------------------------------------


def test_energies_are_the_influences_of_orthonormal_directions(tiny_model: ModelAdapter) -> None:
    lens, hidden = random_lens(tiny_model), hidden_states(tiny_model, BLOCKS)
    found = dict(extract_causal_bases(tiny_model, lens, hidden, 2, **MODERATE))
    assert tuple(found) == tiny_model.fitted_layers
    for layer, basis in found.items():
        h = hidden[layer].double().numpy()
        np.testing.assert_allclose(basis.mean, h.mean(0), atol=1e-5)
        torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(2), atol=1e-5, rtol=0)
        expected = [naive.influence(lens, layer, h, v, h.mean(0)) for v in basis.vectors.double().numpy()]
        np.testing.assert_allclose(basis.energies, expected, rtol=1e-3)
        assert basis.energies[0] >= basis.energies[1] > 0.01


def test_no_direction_of_many_has_more_influence(tiny_mamba: ModelAdapter) -> None:
    lens, h = random_lens(tiny_mamba), hidden_states(tiny_mamba, BLOCKS)[0].double().numpy()
    basis = first_basis(tiny_mamba, lens, 1)
    v, random = basis.vectors[0].double().numpy(), np.random.default_rng(0)
    anywhere = random.normal(size=(60, D_MODEL))
    nearby = v + 0.03 * random.normal(size=(60, D_MODEL))
    for w in np.concatenate([anywhere, nearby]):
        assert naive.influence(lens, 0, h, w / np.linalg.norm(w), h.mean(0)) < basis.energies[0] * (1 + 1e-5)


def test_the_first_direction_is_that_of_stock_tuned_lens_or_better(
    tiny_neox: ModelAdapter, capfd: pytest.CaptureFixture
) -> None:
    lens, hidden = LogitLens.from_adapter(tiny_neox), hidden_states(tiny_neox, BLOCKS)
    theirs = list(
        stock.extract_causal_bases(lens, [*hidden, hidden[0]], 1)
    )  # it leaves out the last of what it is given
    capfd.readouterr()  # its progress
    ours = [basis for _, basis in extract_causal_bases(tiny_neox, lens, hidden, 1)]
    assert len(ours) == len(theirs) == 3
    for a, b, h in zip(ours, theirs, hidden, strict=True):
        assert a.energies[0] > float(b.energies[0]) * 0.999
        h, v = h.double().numpy(), b.vectors[:, 0].detach().double().numpy()
        same = naive.influence(lens, 0, h, v / np.linalg.norm(v), h.mean(0))
        assert same == pytest.approx(float(b.energies[0]), rel=1e-3), "both mean the same by influence"


def test_the_first_direction_of_a_tuned_lens_is_that_of_stock_tuned_lens(capfd: pytest.CaptureFixture) -> None:
    """Stock transposes the head the wrong way round for a translator, so it runs only where vocabulary and d_model are
    equal."""
    adapter = wrap_model(make_model("neox", D_MODEL))
    lens, hidden = (
        random_lens(adapter),
        hidden_states(adapter, make_blocks(blocks=8, seq_len=16, vocab_size=D_MODEL, seed=2)),
    )
    theirs = list(stock.extract_causal_bases(lens, [*hidden, hidden[0]], 1))
    capfd.readouterr()
    for (_, a), b in zip(extract_causal_bases(adapter, lens, hidden, 1), theirs, strict=True):
        assert a.energies[0] == pytest.approx(float(b.energies[0]), rel=1e-3)
        assert abs(float(a.vectors[0] @ b.vectors[:, 0].detach())) > 0.999


def test_a_whole_basis(tiny_mamba: ModelAdapter) -> None:
    told: list[tuple[int, int]] = []
    basis = first_basis(
        tiny_mamba, random_lens(tiny_mamba), D_MODEL, max_iterations=3, on_direction=lambda *which: told.append(which)
    )
    torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(D_MODEL), atol=1e-4, rtol=0)
    assert all(a >= b for a, b in pairwise(basis.energies))
    assert told == [(0, number) for number in range(D_MODEL)]


def test_chunks_do_not_matter_and_nothing_is_left_in_the_lens(
    tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = random_lens(tiny_mamba)
    whole = first_basis(tiny_mamba, lens, 1)
    monkeypatch.setattr(metrics, "_SPAN_BYTES", {"cpu": 0})
    parts = first_basis(tiny_mamba, lens, 1)
    assert parts.energies == pytest.approx(whole.energies, rel=1e-4)
    assert all(parameter.grad is None for parameter in lens.parameters())
    assert lens[0].weight.requires_grad, "as it was"


class Pair(Processes):
    """One of two processes, which are threads."""

    world = 2
    rank = 0

    def __init__(self, rank: int, barrier: threading.Barrier, slots: dict[int, Tensor]):
        for name, value in {"rank": rank, "barrier": barrier, "slots": slots}.items():
            object.__setattr__(self, name, value)

    def sum(self, tensor: Tensor) -> Tensor:
        self.slots[self.rank] = tensor
        self.barrier.wait()
        result = self.slots[0] + self.slots[1]
        self.barrier.wait()
        return result

    def share(self, tensor: Tensor) -> None:
        self.slots[self.rank] = tensor
        self.barrier.wait()
        tensor.copy_(self.slots[0])
        self.barrier.wait()


def test_two_processes_find_the_same_basis(tiny_mamba: ModelAdapter) -> None:
    lens = random_lens(tiny_mamba)
    alone = first_basis(tiny_mamba, lens, 2, **MODERATE)
    barrier, slots, found = threading.Barrier(2, timeout=60), {}, {}
    pair = [Pair(rank, barrier, slots) for rank in range(2)]
    hidden = [hidden_states(tiny_mamba, BLOCKS, processes=one, micro_batch_size=2) for one in pair]
    assert [len(states[0]) for states in hidden] == [6 * 16, 5 * 16]

    def work(rank: int) -> None:
        found[rank] = next(
            iter(extract_causal_bases(tiny_mamba, lens, hidden[rank], 2, processes=pair[rank], **MODERATE))
        )[1]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0].vectors, found[1].vectors)
    torch.testing.assert_close(found[0].mean, alone.mean)
    np.testing.assert_allclose(found[0].energies, alone.energies, rtol=1e-3)


@pytest.mark.parametrize("k", [0, D_MODEL + 1])
def test_more_directions_than_there_are(tiny_mamba: ModelAdapter, k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}; a basis of .* has 1 to 32 directions"):
        first_basis(tiny_mamba, random_lens(tiny_mamba), k)


# --- ablation ---------------------------------------------------------------------------------------------------------


def test_mean_ablation_is_that_of_stock_tuned_lens() -> None:
    generator = torch.Generator().manual_seed(1)
    h, v = (
        torch.randn(5, 7, 6, generator=generator),
        torch.nn.functional.normalize(torch.randn(6, generator=generator), dim=0),
    )
    mean = h.flatten(0, 1).mean(0)
    torch.testing.assert_close(ablate(h, v, mean), stock.remove_subspace(h, v, "mean", orthonormal=True))
    np.testing.assert_allclose(ablate(h, v, mean), naive.ablate(*(x.double().numpy() for x in (h, v, mean))), atol=1e-6)


def writer(adapter: ModelAdapter, layer: int) -> tuple[nn.Module, float]:
    """The module that puts out a hidden state, and how many times larger it does: RWKV-4 halves what its sixth block
    puts out."""
    if adapter.states_after_blocks:
        return adapter.blocks[layer], 2.0 if adapter.model_type == "rwkv" and layer == 5 else 1.0
    return (adapter.blocks[layer - 1] if layer else adapter.model.gpt_neox.embed_in), 1.0


def changed_state(basis: CausalBasis, number: int, scale: float) -> Callable[[np.ndarray], np.ndarray]:
    v, mean = basis.vectors[number].double().numpy(), basis.mean.double().numpy()
    return lambda h: naive.ablate(h, v, scale * mean)


def test_effects_are_those_of_the_naive_computation(tiny_model: ModelAdapter) -> None:
    lens, bases = random_lens(tiny_model), random_bases(tiny_model)
    got = ablation_effects(tiny_model, lens, bases, BLOCKS)
    with torch.no_grad():
        clean = tiny_model.model(IDS, output_hidden_states=True, use_cache=False)
    p = clean.logits.double().softmax(-1).numpy()
    for layer, basis in bases.items():
        assert isinstance(got[layer], Effects)
        h = clean.hidden_states[layer].double().numpy()
        module, scale = writer(tiny_model, layer)
        for number in range(2):
            q, r = (naive.read(lens, layer, x) for x in (h, changed_state(basis, number, 1.0)(h)))
            s = naive.run(tiny_model.model, module, changed_state(basis, number, scale), IDS)
            assert got[layer].lens[number] == pytest.approx(naive.kl(q, r).mean(), rel=1e-3)
            assert got[layer].model[number] == pytest.approx(naive.kl(p, s).mean(), rel=1e-3)
            stimulus, response = (x.reshape(-1, VOCAB_SIZE) for x in (naive.perturbed(q, r), naive.perturbed(p, s)))
            weights = p.reshape(-1, VOCAB_SIZE)
            alignment = np.mean([naive.similarity(*row) for row in zip(stimulus, response, weights, strict=True)])
            assert got[layer].alignment[number] == pytest.approx(alignment, rel=1e-2, abs=1e-4)


@contextmanager
def watched(model: ModelAdapter, block: int, seen: list[Tensor]) -> Iterator[None]:
    """Inside it, what a block is given is kept: by a hook, or where the adapter runs the block by its equations,
    there."""
    handle = model.blocks[block].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(model, RecurrentAdapter):
            run_block = model.run_block
            patch.setattr(
                model,
                "run_block",
                lambda i, x, *rest: (seen.append(x) if i == block else None) or run_block(i, x, *rest),
            )
        yield
    handle.remove()


def test_the_state_that_is_read_is_the_one_that_is_ablated(tiny_model: ModelAdapter) -> None:
    """Along v every token is at the mean; elsewhere, and in the layers before, nothing has changed; the layers after
    have."""
    before = tiny_model.forward(IDS)
    for layer, basis in random_bases(tiny_model, 1).items():
        seen: list[Tensor] = []
        block = layer + tiny_model.states_after_blocks
        with (
            tiny_model.edited(layer, lambda h, basis=basis: ablate(h, basis.vectors[0], basis.mean)),
            watched(tiny_model, block, seen),
        ):
            after = tiny_model.forward(IDS)
        torch.testing.assert_close(seen[0], ablate(before.hidden_states[layer], basis.vectors[0], basis.mean))
        torch.testing.assert_close((seen[0] - basis.mean) @ basis.vectors[0], torch.zeros(IDS.shape), atol=1e-5, rtol=0)
        for other in range(layer):
            assert torch.equal(after.hidden_states[other], before.hidden_states[other])
        assert not torch.allclose(after.final, before.final, atol=1e-3)


def test_the_model_is_itself_again_afterwards_even_after_an_error(tiny_model: ModelAdapter) -> None:
    before, basis = tiny_model.forward(IDS).final, random_bases(tiny_model)[0]
    with pytest.raises(KeyError), tiny_model.edited(0, lambda h, basis=basis: ablate(h, basis.vectors[0], basis.mean)):
        raise KeyError
    assert torch.equal(tiny_model.forward(IDS).final, before)


def test_nothing_is_lost_by_setting_a_direction_to_what_it_always_is(tiny_mamba: ModelAdapter) -> None:
    """One token, the same everywhere: the mean is the state itself, so that neither lens nor model notices."""
    same = replace(BLOCKS, tokens=np.full((2, 1), 7, dtype=np.uint16))
    basis = CausalBasis(np.zeros(1), torch.eye(D_MODEL)[:1], hidden_states(tiny_mamba, same)[0].mean(0))
    effects = ablation_effects(tiny_mamba, random_lens(tiny_mamba), {0: basis}, same)[0]
    assert max(abs(effects.lens[0]), abs(effects.model[0])) < 1e-6


def test_a_bfloat16_model_is_ablated() -> None:
    adapter = wrap_model(make_model("mamba").bfloat16())
    effects = ablation_effects(adapter, random_lens(adapter), random_bases(adapter, 1), BLOCKS)
    exact = wrap_model(make_model("mamba"))
    expected = ablation_effects(exact, random_lens(exact), random_bases(exact, 1), BLOCKS)
    np.testing.assert_allclose(effects[0].model, expected[0].model, rtol=0.1)


def test_batches_and_processes_do_not_matter(tiny_rwkv4: ModelAdapter) -> None:
    lens, bases, done, left = random_lens(tiny_rwkv4), random_bases(tiny_rwkv4, 1), [], []
    expected = ablation_effects(tiny_rwkv4, lens, bases, BLOCKS)
    batched = ablation_effects(tiny_rwkv4, lens, bases, BLOCKS, micro_batch_size=4, on_batch=done.append)
    ablation_effects(tiny_rwkv4, lens, bases, BLOCKS, processes=Second(left), micro_batch_size=1)
    together = ablation_effects(tiny_rwkv4, lens, bases, BLOCKS, processes=First(left), micro_batch_size=1)
    assert not left
    assert sum(done) == BLOCKS.tokens.size
    for layer in expected:
        np.testing.assert_allclose(batched[layer], expected[layer], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(together[layer], expected[layer], rtol=1e-4, atol=1e-6)


# --- similarity -------------------------------------------------------------------------------------------------------


def test_aitchison_similarity_is_that_of_geometric_means() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(6, 20, generator=generator).softmax(-1).double() for _ in range(3))
    expected = [naive.similarity(*row) for row in zip(x.numpy(), y.numpy(), w.numpy(), strict=True)]
    np.testing.assert_allclose(aitchison_similarity(x.log(), y.log(), w), expected, rtol=1e-9)
    flat = torch.full_like(w, 1 / 20)
    cosine = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.log().numpy(), y.log().numpy(), strict=True)]
    np.testing.assert_allclose(aitchison_similarity(x.log(), y.log(), flat), cosine, rtol=1e-9)


def test_what_similarity_does_not_see() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(4, 20, generator=generator).double() for _ in range(2))
    w = w.softmax(-1)
    torch.testing.assert_close(aitchison_similarity(x, 3 * x + 5, w), torch.ones(4).double())
    torch.testing.assert_close(aitchison_similarity(x, 2 - x, w), -torch.ones(4).double())
    assert not aitchison_similarity(x, torch.zeros_like(x), w).any(), "where nothing changed there is no direction"
