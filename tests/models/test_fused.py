"""The one-pass parts of a block against torch's several passes in float64, from a state and without, in any layout."""

from collections.abc import Callable

from lens_rnn.models import fused, scans
from tests.reference import recurrences as naive

import numba
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("error")


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=2e-5, atol=2e-6 * float(expected.abs().max() + 1))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@torch.no_grad()
def test_it_is_for_what_no_gradient_is_asked_of() -> None:
    assert fused.can_fuse(torch.zeros(1))
    assert not fused.can_fuse(torch.zeros(1, dtype=torch.float64))
    assert not fused.can_fuse(torch.zeros(1, dtype=torch.bfloat16))
    assert not fused.can_fuse(torch.zeros(1, device="meta"))
    with torch.enable_grad():
        assert not fused.can_fuse(torch.zeros(1))


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 33, 40), (7, 192)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, weight = 10 * random(*shape), random(shape[-1])
    close(fused.rms_norm(x, weight, 1e-5), F.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5))


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("seq", [1, 2, 70])
def test_convolution(kernel: int, bias: bool, seq: int) -> None:
    """x is half of a product's columns; past inputs may be more than the kernel reaches."""
    conv = nn.Conv1d(6, 6, kernel, groups=6, bias=bias)
    x = 8 * random(3, seq, 12)
    for before in (None, random(3, 6, kernel)):
        half = x[..., :6].double().transpose(1, 2)
        expected = F.silu(scans.causal_conv(conv.double(), half, before)).transpose(1, 2)
        close(fused.conv_silu(x, conv.float(), before), expected)


def scan_inputs(batch: int, seq: int, channels: int, n: int) -> tuple[Tensor, ...]:
    u, dt = random(batch, seq, channels), 3 * random(batch, seq, channels, seed=1)
    A, B, C = -4 * random(channels, n).abs(), random(batch, seq, n, seed=2), random(batch, seq, n, seed=3)
    return u, dt, A, B, C, random(channels), 5 * random(batch, seq, 2 * channels)


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize(("batch", "seq", "channels"), [(2, 33, 40), (1, 1, 5), (3, 300, 32)])
def test_scan(batch: int, seq: int, channels: int, n: int) -> None:
    u, dt, A, B, C, D, z = scan_inputs(batch, seq, channels, n)
    for start in (None, random(batch, channels, n)):
        wide = (t.double() for t in (u.transpose(1, 2), F.softplus(dt.double()).transpose(1, 2), A, B, C))
        y, last = naive.selective_scan(*wide, (torch.zeros(batch, channels, n) if start is None else start).double())
        expected = (y.transpose(1, 2) + D.double() * u) * F.silu(z[..., channels:].double())
        given = None if start is None else start.clone()
        got, got_last = fused.gated_scan(u, dt, A, B, C, D, z, given)
        close(got, expected)
        close(got_last, last)
        assert start is None or torch.equal(given, start), "a state that is given is left as it is"


def test_scan_goes_on_from_a_state() -> None:
    u, dt, A, B, C, D, z = scan_inputs(2, 140, 5, 4)
    whole, end = fused.gated_scan(u, dt, A, B, C, D, z, None)
    first, middle = fused.gated_scan(u[:, :9], dt[:, :9], A, B[:, :9], C[:, :9], D, z[:, :9], None)
    second, last = fused.gated_scan(u[:, 9:], dt[:, 9:], A, B[:, 9:], C[:, 9:], D, z[:, 9:], middle)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(last, end)


def test_steps_of_any_size() -> None:
    """softplus as torch's, for steps that are next to nothing and for huge ones."""
    dt = torch.linspace(-80, 80, 4001)[None, :, None]
    one, zero = torch.ones_like(dt), torch.zeros(1)
    _, last = fused.gated_scan(one, dt, torch.full((1, 1), -1e9), one, one, zero, one, None)
    y, _ = fused.gated_scan(one, dt, torch.full((1, 1), -1e30), one, one, zero, 50 * one, None)
    close(y[0, :, 0] / 50, F.softplus(dt.double())[0, :, 0])
    assert float(last[0, 0, 0]) == pytest.approx(80)


@pytest.mark.parametrize("count", [1, 3])
def test_mixed_with_the_token_before(count: int) -> None:
    x, shares = random(3, 50, 8), random(count, 8)
    for last in (None, random(3, 8)):
        previous = scans.token_shift(x, last)
        for got, share in zip(fused.mixed(x, last, shares), shares, strict=True):
            close(got, x * share + previous * (1 - share))


@pytest.mark.parametrize(
    ("ours", "plain"), [(fused.sigmoid, torch.sigmoid), (fused.squared_relu, lambda x: torch.square(torch.relu(x)))]
)
def test_what_is_done_in_place_where_no_gradient_is_asked_for(ours: Callable, plain: Callable) -> None:
    x = random(3, 5)
    expected = plain(x)
    assert torch.equal(ours(x), expected)
    assert not torch.equal(x, expected), "with gradients x stays"
    with torch.no_grad():
        assert ours(x).data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_threads_do_not_change_results() -> None:
    inputs, conv, before, results = (
        scan_inputs(2, 70, 40, 4),
        nn.Conv1d(40, 40, 4, groups=40),
        numba.get_num_threads(),
        [],
    )
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            parts = [*fused.gated_scan(*inputs, None), fused.conv_silu(inputs[0], conv, None)]
            results.append([*parts, *fused.mixed(inputs[0], None, inputs[5][None])])
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(alone, shared) for alone, shared in zip(*results, strict=True))
