"""What is said of a fit: the plan before it starts, its identity, fit.json, and the table at its end."""

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from math import isfinite, log
from typing import Any

from lens_rnn import artifacts
from lens_rnn.data import TokenBlocks
from lens_rnn.evaluation.metrics import Evaluation
from lens_rnn.fitting.closed_form import Moments
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.fit import FitResult
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.optimizers import STATES
from lens_rnn.fitting.reference import distance
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import stock_attaches
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch

_GROUPS = {"kl": "KL from the model (nats/token)", "ce": "CE (bits/byte)"}
_NO_NUMBERS = ("name", "stock_attaches")  # of a model, what decides no number
_PACKAGES = ("lens-rnn", "torch", "transformers", "tuned-lens", "accelerate", "numba")


def describe_model(adapter: ModelAdapter, unembedding_sha256: str) -> dict[str, Any]:
    """What identifies the model. Hashes all weights: call it before they are sharded."""
    return {
        "name": adapter.name,
        "revision": adapter.revision,
        "model_type": adapter.model_type,
        "d_model": adapter.d_model,
        "n_layers": adapter.n_layers,
        "vocab_size": adapter.vocab_size,
        "dtype": str(adapter.dtype),
        "stock_attaches": stock_attaches(adapter),
        "unembedding_sha256": unembedding_sha256,
        "weights_sha256": artifacts.sha256_of(adapter.model.state_dict().items()),
    }


def describe_data(blocks: TokenBlocks) -> dict[str, Any]:
    """What identifies the tokens."""
    return {
        "source": blocks.source,
        "tokens": int(blocks.tokens.size),
        "seq_len": blocks.seq_len,
        "documents": blocks.n_documents,
        "bytes": blocks.n_bytes,
        "tokens_per_byte": blocks.n_tokens / blocks.n_bytes,
        "sha256": blocks.sha256,
        "origin": {
            name: value for name, value in blocks.origin.items() if name in ("python", "sha256", "commit", "split")
        },
    }


def identity(
    settings: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    device_type: str,
    processes: Processes,
) -> dict[str, Any]:
    """Everything that decides the numbers of a run, flat, so that a difference can be named."""
    return {
        "world size": processes.world,
        "device": device_type,
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in _PACKAGES},
        **{f"setting {name}": value for name, value in settings.items()},
        **{f"model {name}": value for name, value in model.items() if name not in _NO_NUMBERS},
        **{f"data {name}": value for name, value in data.items() if name != "source"},
    }


def plan(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    config: FitConfig,
    device: torch.device,
    processes: Processes,
    sharded: bool = False,
) -> list[str]:
    """What the run derived from its settings, in lines for people: shapes, steps, memory of one process by part."""
    layers, chunk = len(adapter.fitted_layers), config.chunk_tokens_on(adapter, device)
    memory = _memory(adapter, blocks, config, device, processes, sharded)
    steps, needed, there = config.steps(blocks), sum(memory.values()), _memory_of(device, processes)
    used, passes = config.steps_a_pass(blocks) * config.batch_size * blocks.seq_len, config.passes_over(blocks)
    rest = f" ({blocks.tokens.size - used:,} are left over)" if blocks.tokens.size > used else ""
    rate = f" at {config.peak_learning_rate:g}" if config.optimizer != "kfac" or config.learning_rate else ""
    lines = [
        f"model      {adapter.name}: {adapter.model_type}, {adapter.n_layers} layers, d_model {adapter.d_model}, "
        f"vocabulary {adapter.vocab_size:,}, {adapter.dtype}",
        f"data       {blocks.source}: {used:,} tokens in blocks of {blocks.seq_len}{rest}, {passes} "
        f"pass{'es' if passes > 1 else ''}",
        f"fit        {layers} translators, {steps} steps of {config.batch_size} × {blocks.seq_len} tokens, "
        f"{config.loss}, "
        f"{config.optimizer}{rate}, {config.start} start, products in {config.product_dtype(adapter.dtype, device)}",
        f"processes  {processes.world} on {device.type}, {torch.get_num_threads()} threads each; "
        f"{_micro_batch(config, blocks, processes):,} tokens a forward pass, logits of {chunk:,} tokens at a time",
        "memory     "
        + ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if size)
        + f"; sum {_bytes(needed)}",
    ]
    if there and needed > there:
        lines.append(
            f"warning    that is more than the {_bytes(there)} there are; a lower --micro-batch-size or --shard may "
            "help"
        )
        with_adamw = sum(
            _memory(adapter, blocks, replace(config, optimizer="adamw"), device, processes, sharded).values()
        )
        if config.optimizer == "kfac" and with_adamw < needed:
            lines[-1] += f", and --optimizer adamw needs {_bytes(with_adamw)}"
    return lines


def _micro_batch(config: FitConfig, blocks: TokenBlocks, processes: Processes) -> int:
    """Most tokens in one forward pass of one process."""
    return min(config.micro_batch_size, config.batch_size // processes.world) * blocks.seq_len


def _memory(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    config: FitConfig,
    device: torch.device,
    processes: Processes,
    sharded: bool,
) -> dict[str, int]:
    """Bytes that one process needs, by part."""
    d, vocab, layers, item = adapter.d_model, adapter.vocab_size, len(adapter.fitted_layers), adapter.dtype.itemsize
    products, kfac = config.product_dtype(adapter.dtype, device), config.optimizer == "kfac"
    translators = layers * d * (d + 1) * 4
    whole = sum(p.numel() * p.element_size() for p in adapter.model.parameters())
    return {
        "model": whole // processes.world if sharded else whole,
        "copy of the unembedding": vocab * d * (item + (products.itemsize if products != adapter.dtype else 0)),
        "translators": adapter.n_layers * d * (d + 1) * 4,
        "gradients and factors of a step": (2 if processes.world > 1 else 1) * StepSums.bytes_needed(layers, d, kfac)
        + (0 if kfac else translators),
        f"states of {config.optimizer}": KFAC.bytes_needed(layers, d)
        if kfac
        else STATES[config.optimizer] * translators,
        "hidden states of a micro-batch": (adapter.n_layers + 2) * _micro_batch(config, blocks, processes) * d * item,
        "logits of a chunk": (3 if kfac else 2) * config.chunk_tokens_on(adapter, device) * vocab * products.itemsize,
        "moments, during the start": Moments.bytes_needed(layers, d) if config.needs_moments else 0,
    }


def _memory_of(device: torch.device, processes: Processes) -> int:
    """Bytes that a process can have on its device; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes.on_this_machine
            if device.type == "cpu"
            else 0
        )
    except (AttributeError, OSError, ValueError):
        return 0


def fit_report(
    settings: Mapping[str, Any],
    adapter: ModelAdapter,
    model: Mapping[str, Any],
    fit_blocks: TokenBlocks,
    eval_blocks: TokenBlocks,
    result: FitResult,
    evaluation: Evaluation,
    processes: Processes,
    reference: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """The content of fit.json. reference: KL of the best known translators, by layer."""
    factor = eval_blocks.bits_per_byte
    logit, tuned = evaluation.lenses["logit"], evaluation.lenses["tuned"]
    return {
        "model": dict(model),
        "settings": dict(settings),
        "data": {"fit": describe_data(fit_blocks), "eval": describe_data(eval_blocks)},
        "units": {
            "kl": "nats per token",
            "ce": "bits per byte",
            "distance_to_reference": "relative",
            "bits_per_byte_per_nat": factor,
        },
        "baselines": {
            "uniform_ce": evaluation.uniform_ce * factor,
            "unigram_ce": None if evaluation.unigram_ce is None else evaluation.unigram_ce * factor,
            "model_ce": evaluation.model.ce * factor,
        },
        "layers": {
            str(i): {
                "depth": adapter.depth(i),
                "fitted": i not in adapter.trivial_layers,
                "kl_logit": logit[i].kl,
                "kl_start": result.start.get(str(i), {}).get("kl"),
                "kl_tuned": tuned[i].kl,
                "kl_reference": reference.get(i) if reference else None,
                "ce_logit": logit[i].ce * factor,
                "ce_tuned": tuned[i].ce * factor,
                "start": result.start.get(str(i)),
            }
            for i in range(adapter.n_layers)
        },
        "distance_to_reference": distance({i: tuned[i].kl for i in tuned}, reference, adapter.fitted_layers)
        if reference
        else None,
        "training_loss": {
            "unit": "nats per token",
            "layers": list(adapter.fitted_layers),
            "steps": [[x if isfinite(x) else None for x in row] for row in result.history],
        },
        "run": {
            "processes": processes.world,
            "threads": torch.get_num_threads(),
            "device": adapter.device.type,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "versions": {name: _version(name) for name in _PACKAGES},
        },
    }


def table(adapter: ModelAdapter, report: Mapping[str, Any]) -> str:
    """The certificate of a fit, from the content of fit.json: per layer, KL before and after, and cross-entropy beside
    the baselines."""
    rows, columns = report["layers"], ["kl_logit", "kl_start", "kl_tuned", "kl_reference", "ce_logit", "ce_tuned"]
    titles = {
        "kl_logit": "logit lens",
        "kl_start": "at start",
        "kl_tuned": "tuned lens",
        "kl_reference": "best known",
        "ce_logit": "logit lens",
        "ce_tuned": "tuned lens",
    }
    columns = [name for name in columns if any(row[name] is not None for row in rows.values())]
    groups = [(title, sum(name.startswith(kind) for name in columns)) for kind, title in _GROUPS.items()]
    lines = [
        " " * 12 + "".join(f"{title:>{12 * n}}" for title, n in groups),
        "layer  depth" + "".join(f"{titles[name]:>12}" for name in columns),
    ]
    for i in range(adapter.n_layers):
        row = rows[str(i)]
        cells = "".join(f"{row[name]:12.3f}" if row[name] is not None else " " * 12 for name in columns)
        note = "   (trivial: the model itself)" if i in adapter.trivial_layers else ""
        lines.append(f"{i:5d}  {row['depth']:5.2f}{cells}{note}")
    means = {
        name: np.mean([rows[str(i)][name] for i in adapter.fitted_layers]) for name in columns if name.startswith("kl")
    }
    lines.append(" mean       " + "".join(f"{mean:12.3f}" for mean in means.values()))
    if report["distance_to_reference"] is not None:
        lines.append(f"distance to the best known translators: {report['distance_to_reference']:+.1%} in mean KL")
    baselines = ((name, report["baselines"][f"{name}_ce"]) for name in ("model", "unigram", "uniform"))
    return "\n".join(
        [*lines, "baselines, bits/byte: " + ", ".join(f"{name} {ce:.3f}" for name, ce in baselines if ce is not None)]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _bytes(size: float) -> str:
    power = 0 if size < 1 else min(3, int(log(size, 1024)))
    return f"{size / 1024**power:.{0 if power < 2 else 1}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
