"""The fused recurrences against their naive twins in float64, and inside the models against transformers' own code.

With them `models/kernels.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lens_rnn.models import ModelAdapter, RecurrentAdapter, fused, recurrences
from lens_rnn.models.adapter import FUSED
from lens_rnn.models.families.recurrent import Passage
from lens_rnn.models.recurrences import selective_scan, wkv4
from tests.reference import recurrences as naive

import numba
import pytest
import torch
from torch import Tensor, nn

SCAN_NAMES = ("u", "dt", "A", "B", "C", "state")
WKV_NAMES = ("w", "u", "k", "v")


def scan_inputs(batch: int, channels: int, seq: int, n: int) -> list[Tensor]:
    """u, dt, A, B, C and a nonzero start state."""
    g = torch.Generator().manual_seed(batch + channels + seq + n)
    return [
        torch.randn(batch, channels, seq, generator=g),
        nn.functional.softplus(torch.randn(batch, channels, seq, generator=g)),
        -torch.rand(channels, n, generator=g) * 4,
        torch.randn(batch, seq, n, generator=g),
        torch.randn(batch, seq, n, generator=g),
        torch.randn(batch, channels, n, generator=g),
    ]


def wkv_inputs(batch: int, channels: int, seq: int, spread: float = 3.0) -> list[Tensor]:
    """w, u, k, v with keys of standard deviation `spread`."""
    g = torch.Generator().manual_seed(batch + channels + seq)
    w = -torch.exp(2 * torch.randn(channels, generator=g) - 1)
    u = torch.randn(channels, generator=g)
    return [
        w,
        u,
        spread * torch.randn(batch, seq, channels, generator=g),
        torch.randn(batch, seq, channels, generator=g),
    ]


def values_and_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Outputs and the gradients at all inputs of a fixed random weighting of all outputs."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    result = function(*inputs)
    outputs = list(result) if isinstance(result, tuple) else [result]
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=g).to(y.dtype) for y in outputs]
    gradients = torch.autograd.grad(
        outputs, inputs, weights, materialize_grads=True
    )  # zeros where an output does not depend
    return [*(y.detach() for y in outputs), *gradients]


def assert_same(got: list[Tensor], expected: list[Tensor], names: tuple[str, ...], tolerance: float = 1e-5) -> None:
    """Each tensor within `tolerance` of the largest entry of the expected one, or of 0.1 where that is less."""
    for name, ours, theirs in zip(names, got, expected, strict=True):
        assert ours.shape == theirs.shape, name
        error = (ours.double() - theirs.double()).abs().max() / theirs.abs().max().clamp(min=0.1)
        assert error < tolerance, f"{name}: {error:.1e}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize(("batch", "channels", "seq"), [(2, 40, 33), (1, 5, 1), (3, 32, 7)])
def test_scan_equals_its_twin_in_values_and_gradients(batch: int, channels: int, seq: int, n: int) -> None:
    inputs = scan_inputs(batch, channels, seq, n)
    got = values_and_gradients(selective_scan, inputs, torch.float32)
    expected = values_and_gradients(naive.selective_scan, inputs, torch.float64)
    assert_same(got, expected, ("y", "last", *(f"gradient of {name}" for name in SCAN_NAMES)))


def test_scan_starts_from_zero_and_continues_from_a_state() -> None:
    u, dt, A, B, C, _ = scan_inputs(2, 5, 12, 4)
    y, last = selective_scan(u, dt, A, B, C)
    zero = torch.zeros(2, 5, 4)
    assert torch.equal(y, selective_scan(u, dt, A, B, C, zero)[0])
    first, middle = selective_scan(u[..., :7], dt[..., :7], A, B[:, :7], C[:, :7])
    second, end = selective_scan(u[..., 7:], dt[..., 7:], A, B[:, 7:], C[:, 7:], middle)
    assert torch.equal(torch.cat([first, second], dim=-1), y)
    assert torch.equal(end, last)


def test_scan_gradient_when_only_one_output_is_used() -> None:
    inputs = scan_inputs(2, 5, 6, 4)
    for which in (0, 1):
        got = values_and_gradients(lambda *x, i=which: selective_scan(*x)[i], inputs, torch.float32)
        expected = values_and_gradients(lambda *x, i=which: naive.selective_scan(*x)[i], inputs, torch.float64)
        assert_same(got, expected, ("output", *SCAN_NAMES))


def test_scan_forgets_at_very_large_steps() -> None:
    """dt·A far below the smallest exponent of float32: the state is replaced, never inf or NaN."""
    u, dt, A, B, C, state = scan_inputs(1, 4, 5, 4)
    dt, A = dt + 1000, A - 1
    y, last = selective_scan(u, dt, A, B, C, state)
    assert_same([y, last], list(naive.selective_scan(*(x.double() for x in (u, dt, A, B, C, state)))), ("y", "last"))


@pytest.mark.parametrize(("batch", "channels", "seq"), [(2, 70, 33), (1, 5, 1), (3, 64, 7)])
def test_wkv_equals_its_twin_in_values_and_gradients(batch: int, channels: int, seq: int) -> None:
    inputs = wkv_inputs(batch, channels, seq)
    got = values_and_gradients(wkv4, inputs, torch.float32)
    expected = values_and_gradients(naive.wkv4, inputs, torch.float64)
    assert_same(got, expected, ("y", *(f"gradient of {name}" for name in WKV_NAMES)))


def test_wkv_with_extreme_keys() -> None:
    """e^±60 overflows float32 products of two; the running exponent must keep every sum in range."""
    w, u, k, v = wkv_inputs(2, 66, 24)
    k = torch.where(k > 0, 60.0, -60.0) + 0.1 * k
    got = values_and_gradients(wkv4, [w, u, k, v], torch.float32)
    expected = values_and_gradients(naive.wkv4, [w, u, k, v], torch.float64)
    assert all(x.isfinite().all() for x in got)
    assert_same(got, expected, ("y", *(f"gradient of {name}" for name in WKV_NAMES)), tolerance=3e-5)


@pytest.mark.parametrize("key", [-1000.0, 1000.0])
def test_wkv_depends_only_on_differences_of_keys(key: float) -> None:
    w, u, k, v = wkv_inputs(1, 5, 9, spread=1.0)
    k = (k * 64).round() / 64  # exact after the shift
    torch.testing.assert_close(wkv4(w, u, k + key, v), wkv4(w, u, k, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "inputs"), [(selective_scan, scan_inputs(3, 70, 9, 4)), (wkv4, wkv_inputs(3, 150, 9))]
)
def test_the_number_of_threads_does_not_change_a_bit(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(values_and_gradients(function, inputs, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("name", SCAN_NAMES)
def test_scan_passes_nan_on_exactly_where_its_twin_does(name: str, n: int) -> None:
    """The kernels are compiled with relaxed arithmetic and clamp exponents with max and min, which must not swallow a
    NaN."""
    for place in (0, -1):  # a vector lane, and the remainder of a vectorised loop
        inputs = scan_inputs(2, 37, 6, n)
        inputs[SCAN_NAMES.index(name)].view(-1)[place] = torch.nan
        got = values_and_gradients(selective_scan, inputs, torch.float32)
        expected = values_and_gradients(naive.selective_scan, inputs, torch.float64)
        assert got[0].isnan().any() or got[1].isnan().any()
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("name", WKV_NAMES)
def test_wkv_passes_nan_on_exactly_where_its_twin_does(name: str) -> None:
    for place in (0, -70):
        inputs = wkv_inputs(2, 69, 6)
        inputs[WKV_NAMES.index(name)].view(-1)[max(place, -69 if name in "wu" else place)] = torch.nan
        got = values_and_gradients(wkv4, inputs, torch.float32)
        expected = values_and_gradients(naive.wkv4, inputs, torch.float64)
        assert got[0].isnan().any()
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize(
    ("function", "twin", "inputs"),
    [
        (selective_scan, naive.selective_scan, scan_inputs(2, 9, 8, 4)),
        (wkv4, naive.wkv4, wkv_inputs(2, 9, 8, spread=1.0)),
    ],
)
def test_bfloat16_inputs_are_computed_in_float32(function: Callable, twin: Callable, inputs: list[Tensor]) -> None:
    rounded = [x.bfloat16() for x in inputs]
    got = values_and_gradients(function, rounded, torch.bfloat16)
    expected = values_and_gradients(twin, rounded, torch.float64)
    outputs = len(got) - len(inputs)
    assert all(y.dtype == torch.float32 for y in got[:outputs])
    assert all(g.dtype == torch.bfloat16 for g in got[outputs:])
    assert_same(got[:outputs], expected[:outputs], SCAN_NAMES[:outputs])
    assert_same(got[outputs:], expected[outputs:], SCAN_NAMES[: len(inputs)], tolerance=2**-8)


def test_inputs_that_are_not_contiguous() -> None:
    u, dt, A, B, C, _ = scan_inputs(2, 6, 5, 4)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (u, dt, A, B, C)]
    assert not strided[0].is_contiguous()
    assert torch.equal(selective_scan(*strided)[0], selective_scan(u, dt, A, B, C)[0])


# --- inside the models ------------------------------------------------------------------------------------------------


def block_values_and_gradients(block: nn.Module, run: Callable[[Tensor], Tensor], hidden: Tensor) -> dict[str, Tensor]:
    """Output of a block, and gradients at its input and at each of its weights."""
    hidden = hidden.detach().clone().requires_grad_()
    weights = dict(block.named_parameters())
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        y = run(hidden)
        coefficients = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(y, [hidden, *weights.values()], coefficients)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return {"output": y.detach(), "input": gradients[0], **dict(zip(weights, gradients[1:], strict=True))}


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "mamba2", "rwkv4", "recurrent_gemma"])
def test_a_block_equals_the_one_of_transformers(name: str, models_of_every_family: dict[str, ModelAdapter]) -> None:
    """In values, and in gradients of a training step: of input and of all weights."""
    adapter = models_of_every_family[name]
    assert isinstance(adapter, RecurrentAdapter)
    block: Any = adapter.blocks[1]

    def theirs(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])[None]
        result = block(x, positions, None, use_cache=False) if name == "recurrent_gemma" else block(x)
        return result[0] if isinstance(result, tuple) else result

    def ours(x: Tensor) -> Tensor:
        return adapter.run_block(1, x, None, Passage(keeps=False))[0]

    hidden = torch.randn(2, 17, adapter.d_model, generator=torch.Generator().manual_seed(0))
    expected = block_values_and_gradients(block, theirs, hidden)
    assert_same(
        list(block_values_and_gradients(block, ours, hidden).values()), list(expected.values()), tuple(expected)
    )


@pytest.mark.parametrize(
    ("fixture", "module", "kernel"),
    [("tiny_mamba", fused, "gated_scan"), ("tiny_rwkv4", recurrences, "wkv4")],
    ids=["mamba", "rwkv4"],
)
def test_the_fused_path_is_taken_in_every_block(
    fixture: str, module: Any, kernel: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: ModelAdapter = request.getfixturevalue(fixture)
    original = getattr(module, kernel)
    calls = []
    monkeypatch.setattr(module, kernel, lambda *inputs: calls.append(1) or original(*inputs))
    ids = torch.zeros(1, 4, dtype=torch.long)
    adapter.forward(ids)
    assert len(calls) == adapter.n_layers
    monkeypatch.setitem(adapter.off, FUSED, "for this test")
    adapter.forward(ids)
    assert len(calls) == adapter.n_layers
