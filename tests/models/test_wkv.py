"""The chunkwise recurrences of RWKV-5 to 7 against their naive twins, in values, states and gradients."""

from lens_rnn.models import wkv
from tests.reference import wkv as reference

import pytest
import torch
from torch import Tensor

B, H, N = 2, 3, 8


def inputs(version: int, seq: int, seed: int = 0) -> list[Tensor]:
    """r, k, v, log w, then what the version takes, with a state that is not zero."""
    g = torch.Generator().manual_seed(seed)
    r, k, v, w, x, a = (torch.randn(B, seq, H, N, generator=g) for _ in range(6))
    state = torch.randn(B, H, N, N, generator=g)
    if version == 6:
        return [
            r,
            k,
            v,
            -torch.exp(2 * w),
            torch.randn(H, N, generator=g),
            state,
        ]  # decays from nearly 1 to exp(−100) and less
    x = torch.nn.functional.normalize(x, dim=-1)
    return [r, k, v, -0.606531 * torch.sigmoid(4 * w), -x, x * torch.sigmoid(a), state]


def pair(version: int):
    return {6: (wkv.wkv6, reference.wkv6), 7: (wkv.wkv7, reference.wkv7)}[version]


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("seq", [1, 2, 16, 17, 32, 33, 150])
def test_chunks_give_what_one_token_at_a_time_gives(version: int, seq: int) -> None:
    fast, naive = pair(version)
    given = inputs(version, seq)
    for ours, theirs in zip(fast(*given), naive(*given), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("version", [6, 7])
def test_gradients(version: int) -> None:
    fast, naive = pair(version)
    given = inputs(version, 40)
    ours = [t.clone().requires_grad_() for t in given]
    exact = [t.double().requires_grad_() for t in given]
    y, state = fast(*ours)
    expected_y, expected_state = naive(*exact)
    g = torch.Generator().manual_seed(1)
    gy, gs = torch.randn(y.shape, generator=g), torch.randn(state.shape, generator=g)
    ((y * gy).sum() + (state * gs).sum()).backward()
    ((expected_y * gy).sum() + (expected_state * gs).sum()).backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


@pytest.mark.parametrize("version", [6, 7])
def test_a_cut_anywhere_changes_nothing(version: int) -> None:
    fast, _ = pair(version)
    given = inputs(version, 50)
    per_token, constant, state = (given[:4], given[4:-1], given[-1]) if version == 6 else (given[:-1], [], given[-1])
    whole, last = fast(*per_token, *constant, state)
    parts = []
    for cut in (slice(0, 7), slice(7, 8), slice(8, 50)):
        y, state = fast(*(t[:, cut] for t in per_token), *constant, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_a_state_that_is_forgotten_at_once_leaves_nothing_behind() -> None:
    """Decays that underflow to 0 give neither NaN nor infinity, in values and gradients."""
    r, k, v, log_w, u, state = inputs(6, 20)
    log_w = torch.full_like(log_w, -1e4).requires_grad_()
    y, last = wkv.wkv6(r, k, v, log_w, u, state)
    torch.testing.assert_close(last, torch.einsum("bhk,bhv->bhkv", k[:, -1], v[:, -1]))
    y.sum().backward()
    assert log_w.grad.isfinite().all()
