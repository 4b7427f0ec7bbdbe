"""The benchmarks at sizes that say nothing: that each runs and prints its table, and that tuned-lens's loop is what it
says it is."""

import json
from copy import deepcopy
from importlib import import_module, metadata
from pathlib import Path

from lens_rnn.data import TokenBlocks
from lens_rnn.lens import Unembedding
from lens_rnn.models import ModelAdapter
from tests.reference import objective
from tests.scripts.launch import ROOT, run_in_process, run_script

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script finds the modules beside it, as it does when Python runs it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def made_blocks(adapter: ModelAdapter, blocks: int, seq_len: int) -> TokenBlocks:
    tokens = np.random.default_rng(0).integers(adapter.vocab_size, size=(blocks, seq_len)).astype(np.uint16)
    return TokenBlocks.of_tokens(tokens)


def test_two_steps_of_tuned_lenss_loop_by_hand(tiny_neox: ModelAdapter) -> None:
    """Of two equal passes each, so that the mean over passes is that over tokens; the first step's gradient is
    clipped."""
    adapter = deepcopy(tiny_neox)
    adapter.final_norm.weight.data *= 1.1  # larger gradients
    blocks = made_blocks(adapter, blocks=160, seq_len=64)
    lens = import_module("tuned_lens_loop").train(adapter, blocks, 80)

    unembedding, layers = Unembedding(adapter), adapter.fitted_layers
    parameters = [torch.zeros(32, 33) for _ in layers]  # [W, b]
    momentum = [torch.zeros(32, 33) for _ in layers]
    order = np.random.default_rng(0).permutation(160)
    for step, rate in enumerate([0.1, 0.05]):
        forward = adapter.forward(blocks.batch(order[80 * step : 80 * (step + 1)]))
        gradients = []
        for i, parameter in zip(layers, parameters, strict=True):
            parameter = parameter.clone().requires_grad_()
            h = forward.hidden_states[i].flatten(0, 1)
            z = h + h @ parameter[:, :32].T + parameter[:, 32]
            loss = objective.kl(z, forward.final.flatten(0, 1), unembedding).mean()
            gradients += torch.autograd.grad(loss, parameter)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        assert (norm > 1) == (step == 0), "one step is clipped, one is not"
        for parameter, m, g in zip(parameters, momentum, gradients, strict=True):
            g = g / max(1.0, norm) + 1e-3 * parameter
            m.mul_(0.9).add_(g)
            parameter -= rate * (g + 0.9 * m)
    for i, parameter in zip(layers, parameters, strict=True):
        torch.testing.assert_close(lens[i].weight.detach(), parameter[:, :32], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lens[i].bias.detach(), parameter[:, 32], rtol=1e-4, atol=1e-5)


def test_our_gradients_take_tuned_lenss_loop_the_same_way(tiny_model: ModelAdapter) -> None:
    loop = import_module("tuned_lens_loop")
    blocks = made_blocks(tiny_model, blocks=12, seq_len=16)
    theirs = loop.train(tiny_model, blocks, 4)
    ours = loop.train(tiny_model, blocks, 4, gradients=loop.fused_gradients(tiny_model, torch.float32))
    for a, b in zip(ours.layer_translators.parameters(), theirs.layer_translators.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_quality_per_token_continues(
    model_folders: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budgets = ("--tokens", 2048, 4096, "--recipe-tokens", 4096, "--recipe-batches", 256, 512, 1024)
    words = (
        "--models",
        model_folders["neox"],
        "--data",
        text_file,
        "--seq-len",
        64,
        "--eval-tokens",
        1024,
        "--output",
        tmp_path,
        *budgets,
    )
    assert run_in_process("benchmarks/quality_per_token.py", monkeypatch, *words) == 0
    table = capsys.readouterr().out
    assert "| layer 2 " in table
    assert "4,096 tokens" in table
    runs = json.loads((tmp_path / "neox.json").read_text())
    assert {
        "its recipe on our gradients, 512 tokens a step",
        "ours, 2048 tokens",
        "ours, 4096 tokens",
        "logit lens",
    } <= runs.keys()

    del runs["ours, 4096 tokens"]
    runs["ours, 2048 tokens"]["seconds"] = 1234.5
    (tmp_path / "neox.json").write_text(json.dumps(runs))
    assert run_in_process("benchmarks/quality_per_token.py", monkeypatch, *words) == 0
    assert "1234.5" in capsys.readouterr().out, "what is there is not run again"
    assert run_in_process("benchmarks/quality_per_token.py", monkeypatch, *words, "--every", 512) == 2
    assert "every" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "row"),
    [
        (
            "throughput",
            ("--d-models", 32, "--vocab-size", 512, "--tokens", 64, "--layers", 1, "--rounds", 1),
            "K-FAC takes",
        ),
        ("scan", ("--d-model", 16, "--forward", 2, 16, "--training", 2, 8, "--rounds", 1), "training step, 2×8 tokens"),
        ("coverage_elk", ("--layers", 2, "--noise-runs", 1, "--runs", 1, "--questions", 64), "AUROC, 4+12 rows"),
        ("forward", ("--d-model", 64, "--shape", 1, 8, "--rounds", 1, "--no-shipped"), "RWKV-7, 1×8 tokens"),
        ("evaluation", ("--shapes", 16, 96, "--tokens", 64, "--layers", 1, "--rounds", 1), "16, 96"),
        (
            "small_fits",
            ("--cases", 2, "--eval-tokens", 1024, "--random-layers", 2),
            "0 of 14 layers worse than the logit lens, 0 worse than their start",
        ),
        ("packing", ("--tokens", 20_000, "--every", 5_000), "packed, hashed, on disk"),
        ("gpu_fit", ("--device", "cpu", "--tiny", "--tokens", 2048, "--seq-len", 32, "--batch-size", 16), "tiny, kfac"),
    ],
)
def test_a_benchmark_prints_its_table(
    script: str,
    arguments: tuple,
    row: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results.json"
    assert run_in_process(f"benchmarks/{script}.py", monkeypatch, *arguments, "--output", output) == 0
    assert row in capsys.readouterr().out
    assert json.loads(output.read_text())["machine"]["torch"] == metadata.version("torch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_fit_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("benchmarks/gpu_fit.py", monkeypatch) == 0
    assert capsys.readouterr().out == "no GPU was there: torch sees no CUDA device, and nothing was measured\n"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("contender", ["tuned-lens's loop", "ours, AdamW", "ours, K-FAC"])
def test_memory_of_one_contender(
    contender: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--d-model", 32, "--vocab-size", 512, "--tokens", 64, "--layers", 1, "--device", "cpu")
    assert run_in_process("benchmarks/memory.py", monkeypatch, *size, "--only", contender) == 0
    figures = json.loads(capsys.readouterr().out)
    layers = 2 if contender == "tuned-lens's loop" else 1  # its loop holds a translator for the trivial layer, too
    assert figures["translators"] == 4 * 32 * 33 * layers
    assert figures["peak"] >= 0


def test_ranks_of_a_lens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--ranks", 4, 16, "--tokens", 1024, "--eval-tokens", 1024, "--output", tmp_path / "ranks.json")
    assert run_in_process("benchmarks/low_rank.py", monkeypatch, *size) == 0
    rows = json.loads((tmp_path / "ranks.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["logit lens", "rank 4", "rank 16", "tuned lens"]
    kl = [float(row[1]) for row in rows]
    assert kl == sorted(kl, reverse=True)


def test_writing_with_all_layers_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--tokens", 20, "--parts", 2, "--output", tmp_path / "live.json")
    assert run_in_process("benchmarks/writing.py", monkeypatch, *size) == 0
    rows = json.loads((tmp_path / "live.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["0 to 10", "10 to 19"]
    assert all(float(row[1]) > 0 for row in rows)


def test_a_worker_of_the_scaling_benchmark(model_folders: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    words = ("--model", model_folders["mamba"], "--data", text_file, "--tokens", 8192, "--worker", tmp_path)
    done = run_script("benchmarks/scaling.py", *words)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["steps"] >= 2
    assert figures["seconds"] > 0
    assert (tmp_path / "params.pt").exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_a_fit_takes_the_memory_that_its_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 20 %, at two sizes: one where vocabulary and moments are what counts, one with many layers."""
    words = ("--shapes", 384, 4, 16_384, 256, 16, 2_048, "--dtypes", "float32", "--optimizers", "kfac")
    assert run_in_process("benchmarks/plan_memory.py", monkeypatch, *words, "--output", tmp_path / "sizes.json") == 0
    assert "planned ÷ taken" in capsys.readouterr().out
    fits = json.loads((tmp_path / "sizes.json").read_text())["bytes"]
    assert len(fits) == 2
    for name, sizes in fits.items():
        assert sizes["taken"] > 100 * 2**20, name
        assert sizes["planned"] == pytest.approx(sizes["taken"], rel=0.2), name


def test_coverage_of_made_populations_and_of_the_demonstration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    size = ("--repetitions", 20, "--output", tmp_path / "coverage.json")
    assert run_in_process("benchmarks/interval_coverage.py", monkeypatch, *size, "--clusters", 25) == 0
    rows = json.loads((tmp_path / "coverage.json").read_text())["rows"]
    shares = {(row[0], row[1]): float(row[3].rstrip(" %")) for row in rows}
    ours = [share for (interval, _), share in shares.items() if not interval.startswith("(")]
    assert np.mean(ours) > 90
    assert np.mean(list(shares.values())) < np.mean(ours)  # the others do not hold
    assert "What 95 % intervals cover" in capsys.readouterr().out


def test_documents_are_drawn_as_the_demonstration_draws_them() -> None:
    coverage = import_module("interval_coverage")
    documents = [([0, 1], []), ([2], [3]), ([], [4])]
    sample = coverage.drawn_as_the_demonstration(np.arange(5.0)[None], documents, 3)
    values, clusters = sample(np.random.default_rng(0), 0)
    assert values.shape == (1, 6)
    assert np.isin(values, [0, 1, 2]).sum() == np.isin(values, [3, 4]).sum() == 3
    assert len(clusters) == 6
    for cluster in np.unique(clusters):
        drawn = values[0, clusters == cluster].tolist()
        assert any(set(drawn) <= {*a, *b} for a, b in documents)
