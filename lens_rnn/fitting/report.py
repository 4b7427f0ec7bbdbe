"""What is said of a fit: the plan before it starts, its identity, fit.json, and the table at its end."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from math import log
from typing import Any

from lens_rnn import artifacts
from lens_rnn.data import TokenBlocks
from lens_rnn.evaluation.metrics import Evaluation
from lens_rnn.fitting.closed_form import Moments
from lens_rnn.fitting.fit import FitConfig, FitResult
from lens_rnn.fitting.objective import default_chunk_tokens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch

_PACKAGES = ("lens-rnn", "torch", "transformers", "tuned-lens", "accelerate", "numba")
_OPTIMIZER_STATES = {"adamw": 2, "adam": 3, "sgd": 1, "muon": 1}


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
        "origin": {name: value for name, value in blocks.origin.items() if name in ("python", "sha256", "commit", "split")},
    }


def identity(
    settings: Mapping[str, Any], model: Mapping[str, Any], data: Mapping[str, Any], device_type: str, processes: Processes
) -> dict[str, Any]:
    """Everything that decides the numbers of a run, flat, so that a difference can be named."""
    return {
        "world size": processes.world,
        "device": device_type,
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in _PACKAGES},
        **{f"setting {name}": value for name, value in settings.items()},
        **{f"model {name}": value for name, value in model.items() if name != "name"},
        **{f"data {name}": value for name, value in data.items() if name != "source"},
    }


def plan(
    adapter: ModelAdapter, blocks: TokenBlocks, config: FitConfig, device: torch.device, processes: Processes, sharded: bool = False
) -> list[str]:
    """What the run derived from its settings, in lines for people: shapes, steps, memory of one process by part."""
    steps, d, vocab = config.steps(blocks), adapter.d_model, adapter.vocab_size
    layers = len(adapter.fitted_layers)
    chunk = config.chunk_tokens or default_chunk_tokens(vocab, device.type)
    micro = min(config.micro_batch_size, config.batch_size // processes.world) * blocks.seq_len
    translators = layers * d * (d + 1) * 4
    item = adapter.dtype.itemsize
    whole = sum(p.numel() * p.element_size() for p in adapter.model.parameters())
    memory = {
        "model": whole // processes.world if sharded else whole,
        "copy of the unembedding": vocab * d * item,
        "translators": adapter.n_layers * d * (d + 1) * 4,
        "gradients": 2 * translators,
        f"states of {config.optimizer}": _OPTIMIZER_STATES[config.optimizer] * translators,
        "hidden states of a micro-batch": (adapter.n_layers + 2) * micro * d * item,
        "logits of a chunk": 3 * chunk * vocab * 4,
        "moments, during the start": Moments.bytes_needed(layers, d) if config.start == "ridge" else 0,
    }
    used = steps * config.batch_size * blocks.seq_len
    rest = f" ({blocks.tokens.size - used:,} are left over)" if blocks.tokens.size > used else ""
    return [
        f"model      {adapter.name}: {adapter.model_type}, {adapter.n_layers} layers, d_model {d}, vocabulary {vocab:,}, {adapter.dtype}",
        f"data       {blocks.source}: {used:,} tokens in blocks of {blocks.seq_len}{rest}",
        f"fit        {layers} translators, {steps} steps of {config.batch_size} × {blocks.seq_len} tokens, {config.loss}, "
        f"{config.optimizer} at {config.peak_learning_rate:g}, {config.start} start",
        f"processes  {processes.world} on {device.type}, {torch.get_num_threads()} threads each; {micro:,} tokens a forward pass, "
        f"logits of {chunk:,} tokens at a time",
        "memory     "
        + ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if size)
        + f"; sum {_bytes(sum(memory.values()))}",
    ]


def fit_report(
    settings: Mapping[str, Any],
    adapter: ModelAdapter,
    model: Mapping[str, Any],
    fit_blocks: TokenBlocks,
    eval_blocks: TokenBlocks,
    result: FitResult,
    evaluation: Evaluation,
    processes: Processes,
) -> dict[str, Any]:
    """The content of fit.json."""
    factor = eval_blocks.bits_per_byte
    logit, tuned = evaluation.lenses["logit"], evaluation.lenses["tuned"]
    return {
        "model": dict(model),
        "settings": dict(settings),
        "data": {"fit": describe_data(fit_blocks), "eval": describe_data(eval_blocks)},
        "units": {"kl": "nats per token", "ce": "bits per byte", "bits_per_byte_per_nat": factor},
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
                "kl_tuned": tuned[i].kl,
                "ce_logit": logit[i].ce * factor,
                "ce_tuned": tuned[i].ce * factor,
                "start": result.start.get(str(i)),
            }
            for i in range(adapter.n_layers)
        },
        "training_loss": {"unit": "nats per token", "layers": list(adapter.fitted_layers), "steps": result.history},
        "run": {
            "processes": processes.world,
            "threads": torch.get_num_threads(),
            "device": adapter.device.type,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "versions": {name: _version(name) for name in _PACKAGES},
        },
    }


def table(adapter: ModelAdapter, evaluation: Evaluation, bits_per_byte: float) -> str:
    """Per layer: logit-lens KL, tuned KL, and cross-entropy beside the baselines."""
    logit, tuned = evaluation.lenses["logit"], evaluation.lenses["tuned"]
    lines = [
        "              KL from the model (nats/token)    cross-entropy (bits/byte)",
        "layer  depth      logit lens    tuned lens    logit lens    tuned lens",
    ]
    for i in range(adapter.n_layers):
        note = "   (trivial: the model itself)" if i in adapter.trivial_layers else ""
        figures = [logit[i].kl, tuned[i].kl, logit[i].ce * bits_per_byte, tuned[i].ce * bits_per_byte]
        lines.append(f"{i:5d}  {adapter.depth(i):5.2f}  " + "  ".join(f"{x:12.3f}" for x in figures) + note)
    fitted = adapter.fitted_layers
    means = [float(np.mean([lens[i].kl for i in fitted])) for lens in (logit, tuned)]
    lines.append(f" mean         {means[0]:12.3f}  {means[1]:12.3f}")
    baselines = {"model": evaluation.model.ce, "unigram": evaluation.unigram_ce, "uniform": evaluation.uniform_ce}
    lines.append(
        "baselines, bits/byte: " + ", ".join(f"{name} {ce * bits_per_byte:.3f}" for name, ce in baselines.items() if ce is not None)
    )
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _bytes(size: float) -> str:
    power = 0 if size < 1 else min(3, int(log(size, 1024)))
    return f"{size / 1024**power:.{0 if power < 2 else 1}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
