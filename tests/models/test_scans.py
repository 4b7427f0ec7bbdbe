"""The recurrences in plain torch: equal to their naive twins in float64, in values and gradients, from any state and in
any parts."""

from collections.abc import Callable

from lens_rnn.models import scans
from tests.models.test_recurrences import assert_same, scan_inputs, values_and_gradients, wkv_inputs
from tests.reference import recurrences as naive

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

LENGTHS = [1, 31, 64, 150]  # within a chunk, a whole one, several


def inputs_of(name: str, seq: int, batch: int = 2) -> list[Tensor]:
    """Inputs of one recurrence, the state at the end: all random, also the state."""
    g = torch.Generator().manual_seed(seq)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    if name == "selective_scan":
        return scan_inputs(batch, 5, seq, 4)
    if name == "ssd":
        heads, p, groups, n = 6, 3, 2, 4
        step = F.softplus(normal(batch, seq, heads))
        return [normal(batch, seq, heads, p), step, -torch.rand(heads, generator=g) * 4,
                normal(batch, seq, groups, n), normal(batch, seq, groups, n), normal(batch, heads, p, n)]  # fmt: skip
    return [torch.rand(batch, seq, 7, generator=g), normal(batch, seq, 7), normal(batch, 7)]


@pytest.mark.parametrize("seq", LENGTHS)
@pytest.mark.parametrize("name", ["selective_scan", "ssd", "lru"])
def test_equal_to_the_twin_in_values_and_gradients(name: str, seq: int) -> None:
    inputs = inputs_of(name, seq)
    got = values_and_gradients(getattr(scans, name), inputs, torch.float32)
    expected = values_and_gradients(getattr(naive, name), inputs, torch.float64)
    assert_same(got, expected, tuple(f"{name} {i}" for i in range(len(got))))


@pytest.mark.parametrize("seq", LENGTHS)
def test_wkv4_is_equal_to_its_twin_in_values_and_gradients(seq: int) -> None:
    """Of the state after it num and den depend on which maximum they are relative to: compared without it."""
    g = torch.Generator().manual_seed(seq)
    start = [torch.randn(2, 5, generator=g), torch.rand(2, 5, generator=g) + 0.1, torch.randn(2, 5, generator=g)]

    def ours(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, (num, den, top) = scans.wkv4(w, u, k, v, state)
        return y, num * torch.exp(top), den * torch.exp(top)

    def twin(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return naive.wkv4_from_state(w, u, k, v, state)

    inputs = [*wkv_inputs(2, 5, seq, spread=1.0), *start]
    got, expected = values_and_gradients(ours, inputs, torch.float32), values_and_gradients(twin, inputs, torch.float64)
    assert_same(got, expected, ("y", "num", "den", "w", "u", "k", "v", "num before", "den before", "max before"))


@pytest.mark.parametrize("cuts", [(1, 2), (64, 100), (149,)])
@pytest.mark.parametrize("name", ["selective_scan", "ssd", "lru"])
def test_parts_equal_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    inputs = inputs_of(name, 150)
    *sequences, state = inputs
    along = {"selective_scan": (2, 2, None, 1, 1), "ssd": (1, 1, None, 1, 1), "lru": (1, 1)}[name]
    whole, last = getattr(scans, name)(*inputs)
    parts = []
    for start, end in zip((0, *cuts), (*cuts, 150), strict=True):
        part = [
            t if dim is None else t.narrow(dim, start, end - start) for t, dim in zip(sequences, along, strict=True)
        ]
        y, state = getattr(scans, name)(*part, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, along[0]), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_nothing_overflows_where_everything_is_forgotten_or_kept(scale: float) -> None:
    u, dt, A, B, C, state = inputs_of("selective_scan", 150)
    y, last = scans.selective_scan(u, dt, A * scale, B, C, state)
    expected = naive.selective_scan(*(t.double() for t in (u, dt, A * scale, B, C, state)))
    assert_same([y, last], list(expected), ("y", "last"))
    w, bonus, k, v = wkv_inputs(2, 5, 150, spread=100.0)
    assert scans.wkv4(w * scale, bonus, k, v)[0].isfinite().all()


@pytest.mark.parametrize("function", [scans.selective_scan, scans.ssd])
def test_low_precision_is_computed_in_float32(function: Callable) -> None:
    inputs = [t.bfloat16() for t in inputs_of(function.__name__, 70)]
    y, _ = function(*inputs)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, function(*(t.float() for t in inputs))[0])


@pytest.mark.parametrize("before", [None, 3, 4])
def test_convolution_over_what_came_before(before: int | None) -> None:
    conv = torch.nn.Conv1d(5, 5, 4, groups=5, padding=3)
    x = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    if before is None:
        expected, got = conv(x)[..., :9], scans.causal_conv(conv, x, None)
    else:
        kept = scans.last_inputs(x[..., :5], None, before)
        expected, got = conv(x)[..., 5:9], scans.causal_conv(conv, x[..., 5:], kept)
    torch.testing.assert_close(got, expected)
    assert torch.equal(scans.last_inputs(x[..., 5:], scans.last_inputs(x[..., :5], None, 6), 6), x[..., 3:])
