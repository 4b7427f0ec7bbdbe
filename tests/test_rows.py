"""The fast passes over rows of logits against `PlainRows` in float64, and that against autograd.

The Triton passes run on the GPU where there is one, else in a process of their own under Triton's interpreter.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from lens_rnn.compiled import read_bfloat16, write_bfloat16
from lens_rnn.rows import Aim, RowKernels, Target, _log_once, rows_for
from lens_rnn.rows.cpu import CompiledRows
from lens_rnn.rows.plain import PlainRows

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads this once, when it is imported
TRITON_RUNS = importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())
KINDS = ["compiled", "triton"] if TRITON_RUNS else ["compiled"]
DTYPES = [torch.float32, torch.bfloat16]
# Kinds of logits, and (tokens, vocab) around and across the kernels' blocks.
COMMON = [("common", shape) for shape in [(1, 1), (2, 7), (1, 129), (2, 4096), (1, 5001)]]
UNCOMMON = [(case, shape) for case in ["near", "far", "wide", "low", "masked"] for shape in [(3, 129), (1, 5001)]]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter's numpy on masked entries


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def device(kind: str) -> torch.device:
    return torch.device("cuda" if kind == "triton" and not INTERPRETED else "cpu")


@pytest.fixture
def rows(kind: str) -> RowKernels:
    if kind == "compiled":
        return CompiledRows()
    from lens_rnn.rows.cuda import TritonRows

    return TritonRows()


def _logits(case: str, tokens: int, vocab: int, seed: int = 0) -> Tensor:
    """Logits (tokens, vocab) in float32."""
    torch.manual_seed(seed)
    if case == "far":
        return 80.0 * torch.randn(tokens, vocab).sign()
    if case == "wide":
        return 200 * torch.rand(tokens, vocab) - 100
    if case == "low":
        return -1100 - 100 * torch.rand(tokens, vocab)
    logits = 3 * torch.randn(tokens, vocab)
    if case == "masked":
        logits[:, torch.arange(vocab) % 3 == 1] = -1e30
    return logits


def _one_hot(labels: Tensor) -> Target:
    empty = torch.empty(0, device=labels.device)
    return Target(empty, empty, labels)


def _targets(rows: RowKernels, logits: Tensor, case: str) -> list[tuple[Target, Target]]:
    """Targets for logits, as the fit makes them, beside their float64 twins: a distribution, and labels."""
    tokens, vocab = logits.shape
    teacher = (_logits(case, tokens, vocab, seed=1) if case != "near" else logits + 0.1 * torch.randn_like(logits)).to(
        logits
    )
    normalizers = rows.normalizers(teacher)
    labels = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(2)).to(logits.device)
    return [
        (Target(teacher, normalizers), Target(teacher.double(), normalizers.double())),
        (_one_hot(labels), _one_hot(labels)),
    ]


def _check_rounded(values: Tensor, exact: Tensor, slack: Tensor) -> None:
    """Values within `slack` of the exact ones, before they were rounded to their dtype."""
    rounding = 0.0
    if values.dtype == torch.bfloat16:
        rounding = 2.0**-8 if not INTERPRETED else 2.0**-7  # the interpreter cuts off
    error = (values.double() - exact).abs()
    assert (error <= slack + rounding * (exact.abs() + slack) + 1e-37).all(), (
        f"{(error / (exact.abs() + 1e-37)).max():.3g}"
    )


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_plain_passes_equal_autograd(loss: str) -> None:
    torch.manual_seed(0)
    logits, teacher, labels = (
        torch.randn(4, 9).double().requires_grad_(),
        torch.randn(4, 9).double(),
        torch.tensor([0, 8, 3, 3]),
    )
    p = teacher.softmax(-1)
    normalizers = PlainRows().normalizers(teacher)
    torch.testing.assert_close(normalizers, teacher.exp().sum(-1).log(), rtol=1e-12, atol=1e-12)
    target = Target(teacher, normalizers) if loss == "kl" else _one_hot(labels)
    log_q = logits.log_softmax(-1)
    expected = (
        (p * (p.log() - log_q)).sum(-1)
        if loss == "kl"
        else torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    )
    difference = logits.detach().clone()
    values = PlainRows().difference_(difference, target)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(difference, torch.autograd.grad(expected.sum(), logits)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "shape"), COMMON + UNCOMMON, ids=str)
def test_values(rows: RowKernels, device: torch.device, case: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits = _logits(case, *shape).to(device, dtype)
    size = logits[logits > -1e29].abs().max().item()
    fine = max(1e-5, 1e-7 * size)  # log q is a difference of two numbers of that size, in float32

    exact = logits.double().softmax(-1)
    exact_normalizers = PlainRows().normalizers(logits.double())
    centred = logits.clone()
    again, labels = rows.sample_(centred, torch.rand(len(logits), device=device))
    for normalizers in (rows.normalizers(logits), again):
        assert normalizers.dtype == torch.float32
        torch.testing.assert_close(normalizers.double(), exact_normalizers, rtol=1e-6, atol=1e-6)
    assert labels.dtype == torch.int64
    less_one = exact.scatter_add(-1, labels[:, None], -torch.ones_like(exact[:, :1]))
    _check_rounded(centred, less_one, fine * exact + 2.0**-23 * (less_one < 0))  # float32 of a number near 1

    for target, twin in _targets(rows, logits, case):
        before = target.logits.clone()
        difference, exact_difference = logits.clone(), logits.double()
        loss = rows.difference_(difference, target)
        exact_loss = PlainRows().difference_(exact_difference, twin)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-5, atol=1e-6 + 1e-7 * size)
        _check_rounded(difference, exact_difference, fine * (2 * exact - exact_difference))  # q + p
        assert torch.equal(target.logits, before), "the target serves every layer"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "shape"), COMMON + UNCOMMON, ids=str)
def test_what_an_evaluation_says(
    rows: RowKernels, device: torch.device, case: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Figures, Jensen–Shannon divergence and sums of probabilities, and that no logits are changed."""
    logits = _logits(case, *shape).to(device, dtype)
    size = logits[logits > -1e29].abs().max().item()
    target, twin = _targets(rows, logits, case)[0]
    labels = (torch.arange(shape[0]) % shape[1]).to(device)
    labels[-1] = -1 if shape[0] > 1 else 0
    before = logits.clone(), target.logits.clone()
    aim, exact_aim = Aim.of(target.logits), Aim.of(twin.logits)
    exact = PlainRows().figures(logits.double(), exact_aim, labels)
    kept = slice(None) if case != "masked" else slice(1, None)  # a label that is ruled out costs 1e30
    got = rows.figures(logits, aim, labels).double()
    torch.testing.assert_close(got[:, kept], exact[:, kept], rtol=2e-5, atol=1e-5 + 1e-6 * size)
    divergence = rows.js(logits, target.logits).double()
    torch.testing.assert_close(divergence, PlainRows().js(logits.double(), twin.logits), rtol=1e-4, atol=1e-5)
    total, expected = (torch.ones(shape[1], dtype=torch.float64, device=device) for _ in range(2))
    rows.add_probabilities(logits, total)
    PlainRows().add_probabilities(logits.double(), expected)
    torch.testing.assert_close(total, expected, rtol=1e-5 + 1e-7 * size, atol=1e-6)
    assert torch.equal(logits, before[0])
    assert torch.equal(target.logits, before[1])


def test_sums_of_probabilities_hold_what_float32_does_not(rows: RowKernels, device: torch.device) -> None:
    """A token that a lens never thinks of has a logarithm all the same."""
    logits = torch.zeros(3, 5, device=device)
    logits[:, 2] = -300.0
    total = torch.zeros(5, dtype=torch.float64, device=device)
    rows.add_probabilities(logits, total)
    assert float(total[2].log()) == pytest.approx(-300 + np.log(3 / 4), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")], ids=["nan", "nan with sign", "inf"])
@pytest.mark.parametrize("at", [0, 200, 599])
def test_a_broken_row_has_no_loss_and_harms_no_other(
    rows: RowKernels, device: torch.device, at: int, bad: float, dtype: torch.dtype
) -> None:
    clean = _logits("common", 3, 600).to(device, dtype)
    logits = clean.clone()
    logits[1, at] = bad
    labels = torch.tensor([1, 2, 3], device=device)
    draws = torch.full((3,), 0.5, device=device)
    centred = logits.clone()
    broken, drawn = rows.sample_(centred, draws)
    assert ((drawn >= 0) & (drawn < 600)).all(), "it will be an index"
    assert centred[::2].isfinite().all()
    for normalizers in (rows.normalizers(logits), broken):
        assert normalizers.isfinite().tolist() == [True, False, True]
    in_lens, in_target = Target(clean, rows.normalizers(clean)), Target(logits, broken)
    for ours, target in ((logits, in_lens), (logits, _one_hot(labels)), (clean, in_target)):
        difference = ours.clone()
        assert rows.difference_(difference, target).isnan().tolist() == [False, True, False]
        assert difference[::2].isfinite().all()
        if target.labels is None:
            assert rows.figures(ours, Aim.of(target.logits), labels)[:, 1].isnan().tolist() == [False, True, False]


def test_a_target_that_rules_labels_out(rows: RowKernels, device: torch.device) -> None:
    """Heads are padded with large negative biases: with p = 0 such an entry must add nothing to KL."""
    logits, teacher = _logits("common", 2, 300), _logits("common", 2, 300, seed=1)
    teacher[:, 10:] = -1e30
    logits, teacher = logits.to(device), teacher.to(device)
    normalizers = rows.normalizers(teacher)
    loss = rows.difference_(logits.clone(), Target(teacher, normalizers))
    exact = PlainRows().difference_(logits.double(), Target(teacher.double(), normalizers.double()))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


# --- drawn labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "shape"), [*COMMON, ("common", (1, 13000)), ("wide", (1, 5001)), ("masked", (1, 129))], ids=str
)
def test_labels_are_drawn_by_inverse_cdf(
    rows: RowKernels, device: torch.device, case: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """The naive label, but where a draw is next to a boundary."""
    tokens, vocab = 10 if INTERPRETED else 300, shape[1]
    logits = _logits(case, tokens, vocab).to(device, dtype)
    draws = torch.rand(tokens, generator=torch.Generator().manual_seed(3)).to(device)
    draws[0], draws[1] = 2.0**-24, 1 - 2.0**-24
    (_, samples), (_, exact) = (
        passes.sample_(copy, uniform)
        for passes, copy, uniform in ((rows, logits.clone(), draws), (PlainRows(), logits.double(), draws.double()))
    )
    assert ((samples >= 0) & (samples < vocab)).all()
    ends = logits.double().softmax(-1).cumsum(-1)
    near = ((ends[:, :-1] - draws[:, None].double()).abs() < 1e-5).any(-1)
    near[:2] = True
    assert near.float().mean() < 0.5, "the check needs draws that have one answer"
    assert torch.equal(samples[~near], exact[~near])
    end = ends.gather(-1, samples[:, None])[:, 0]
    start = torch.where(samples > 0, ends.gather(-1, (samples - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    assert ((start < draws + 1e-5) & (end > draws - 1e-5)).all()


def test_labels_follow_p(rows: RowKernels, device: torch.device) -> None:
    tokens, vocab = 150 if INTERPRETED else 20_000, 7
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(4))
    draws = torch.rand(tokens, generator=torch.Generator().manual_seed(5))
    _, samples = rows.sample_(logits.repeat(tokens, 1).to(device), draws.to(device))
    expected = tokens * logits.softmax(-1)
    chi_square = ((samples.cpu().bincount(minlength=vocab) - expected).square() / expected).sum()
    assert chi_square < 16.8, "the 99 % quantile for 6 degrees of freedom"


# --- the CPU's --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_results(dtype: torch.dtype) -> None:
    rows, logits, draws = CompiledRows(), _logits("common", 37, 1000).to(dtype), torch.rand(37)
    before, results = numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            centred = logits.clone()
            result = [rows.normalizers(logits), *rows.sample_(centred, draws), centred]
            for target, _ in _targets(rows, logits, "common"):
                difference = logits.clone()
                result += [rows.difference_(difference, target), difference]
            total, target = torch.zeros(1000, dtype=torch.float64), _targets(rows, logits, "common")[0][0]
            rows.add_probabilities(logits, total)
            result += [
                total,
                rows.figures(logits, Aim.of(target.logits), torch.arange(37)),
                rows.js(logits, target.logits),
            ]
            results.append(result)
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(alone, shared) for alone, shared in zip(*results, strict=True))


def test_bfloat16_is_read_exactly_and_written_to_nearest_even() -> None:
    """Every bfloat16 is read; floats on, between and half-way between bfloat16s are written as torch writes them."""

    @numba.njit
    def convert(floats, halves, written, read):
        for i in range(len(floats)):
            written[i] = write_bfloat16(floats[i])
        for i in range(len(halves)):
            read[i] = read_bfloat16(halves[i])

    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    every = every[every.view(torch.bfloat16).isfinite()]
    high = every.to(torch.int32)[:, None] << 16
    floats = (
        (high | torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)).flatten().view(torch.float32)
    )
    written, read = torch.empty(len(floats), dtype=torch.int16), torch.empty(len(every))
    convert(floats.numpy(), every.numpy(), written.numpy(), read.numpy())
    assert torch.equal(written, floats.bfloat16().view(torch.int16))
    assert np.array_equal(read.numpy().view(np.int32), high[:, 0].numpy())


# --- the GPU's --------------------------------------------------------------------------------------------------------


def test_the_gpu_passes_under_the_interpreter() -> None:
    """All of the above for Triton's kernels, without a GPU. A process apart: Triton may have been imported here for
    compilation."""
    pytest.importorskip("triton")
    if TRITON_RUNS:
        pytest.skip("they have run in this process")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-k",
        "triton",
        str(Path(__file__)),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with 8 GB")
def test_more_than_int32_can_count() -> None:
    pytest.importorskip("triton")
    from lens_rnn.rows.cuda import TritonRows

    vocab = 50_280
    logits = torch.zeros(2**31 // vocab + 2, vocab, dtype=torch.bfloat16, device="cuda")
    logits[-1, 7] = 20.0
    tail = logits[-2:].double()
    labels = torch.full((len(logits),), 7, device="cuda")
    loss = TritonRows().difference_(logits, _one_hot(labels))
    exact = PlainRows().difference_(tail, _one_hot(labels[-2:]))
    torch.testing.assert_close(loss[-2:].double(), exact, rtol=1e-5, atol=1e-5)
    _check_rounded(logits[-2:], tail, 1e-5 * tail.abs())


# --- which ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.float32, "CompiledRows"),
        ("cpu", torch.bfloat16, "CompiledRows"),
        ("cpu", torch.float64, "PlainRows"),
        ("cpu", torch.float16, "PlainRows"),
        ("mps", torch.float32, "PlainRows"),
        ("cuda", torch.float32, "TritonRows"),
        ("cuda", torch.bfloat16, "TritonRows"),
        ("cuda", torch.float64, "PlainRows"),
        ("cuda", torch.float16, "PlainRows"),
    ],
)
def test_the_passes_fit_device_and_dtype(
    device: str, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = ModuleType("rows_cuda")  # for what needs triton
    stand_in.TritonRows = type("TritonRows", (), {})
    monkeypatch.setitem(sys.modules, "lens_rnn.rows.cuda", stand_in)
    assert type(rows_for(dtype, torch.device(device))).__name__ == expected


def test_without_triton_the_plain_passes_serve_and_say_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "lens_rnn.rows.cuda", raising=False)
    _log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "lens_rnn"):
        picked = [rows_for(dtype, torch.device("cuda")) for dtype in DTYPES]
    assert [type(passes) for passes in picked] == [PlainRows, PlainRows]
    assert [record.getMessage().count("triton") for record in caplog.records] == [1]
