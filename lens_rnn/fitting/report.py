"""What is said of a fit: its identity, its `FitReport`, and the table at its end."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from math import nan
from types import MappingProxyType
from typing import Any

from lens_rnn import artifacts
from lens_rnn.data import TokenBlocks
from lens_rnn.evaluation.metrics import Evaluation
from lens_rnn.fit_report import (
    Baselines,
    DataFacts,
    FitData,
    FitReport,
    LayerChoice,
    LayerReport,
    LayerStart,
    ModelFacts,
    RunFacts,
    TrainingLoss,
    Units,
)
from lens_rnn.fitting.fit import FitResult
from lens_rnn.fitting.reference import distance
from lens_rnn.lens import stock_attaches
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch

_GROUPS = {"kl": "KL from the model (nats/token)", "ce": "CE (bits/byte)"}
_COLUMNS = {
    "kl_logit": "logit lens",
    "kl_start": "at start",
    "kl_tuned": "tuned lens",
    "kl_reference": "best known",
    "ce_logit": "logit lens",
    "ce_tuned": "tuned lens",
}
MOST_ROWS = 2048  # of training losses in fit.json
_NO_NUMBERS = ("name", "stock_attaches")  # of a model, what decides no number
_PACKAGES = ("lens-rnn", "torch", "transformers", "tuned-lens", "accelerate", "numba")


def describe_model(adapter: ModelAdapter, unembedding_sha256: str) -> ModelFacts:
    """What identifies the model. Hashes all weights: call it before they are sharded."""
    return ModelFacts(
        name=adapter.name,
        revision=adapter.revision,
        model_type=adapter.model_type,
        d_model=adapter.d_model,
        n_layers=adapter.n_layers,
        vocab_size=adapter.vocab_size,
        dtype=str(adapter.dtype),
        stock_attaches=stock_attaches(adapter),
        unembedding_sha256=unembedding_sha256,
        weights_sha256=artifacts.sha256_of(adapter.model.state_dict().items()),
    )


def describe_data(blocks: TokenBlocks) -> DataFacts:
    """What identifies the tokens."""
    return DataFacts(
        source=blocks.source,
        tokens=int(blocks.tokens.size),
        seq_len=blocks.seq_len,
        documents=blocks.n_documents,
        bytes=blocks.n_bytes,
        tokens_per_byte=blocks.tokens_per_byte,
        sha256=blocks.sha256,
        held_out=blocks.held_out,
        origin={k: value for k, value in blocks.origin.items() if k in ("python", "sha256", "commit", "split")},
    )


def identity(
    settings: Mapping[str, Any], model: ModelFacts, data: DataFacts, device_type: str, processes: Processes
) -> dict[str, Any]:
    """Everything that decides the numbers of a run, flat, so that a difference can be named."""
    return {
        "world size": processes.world,
        "device": device_type,
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in _PACKAGES},
        **{f"setting {name}": value for name, value in settings.items()},
        **{f"model {name}": value for name, value in asdict(model).items() if name not in _NO_NUMBERS},
        **{f"data {name}": value for name, value in asdict(data).items() if name != "source"},
    }


def fit_report(
    settings: Mapping[str, Any],
    adapter: ModelAdapter,
    model: ModelFacts,
    fit_blocks: TokenBlocks,
    eval_blocks: TokenBlocks,
    result: FitResult,
    evaluation: Evaluation,
    processes: Processes,
    reference: Mapping[int, float] | None = None,
) -> FitReport:
    """The certificate of a fit. settings: as they were resolved. reference: KL of the best known translators, by
    layer."""
    measured = measured_report(adapter, evaluation, eval_blocks.bits_per_byte, reference, result.start, result.choices)
    return replace(
        measured,
        model=model,
        settings=settings,
        data=FitData(fit=describe_data(fit_blocks), eval=describe_data(eval_blocks)),
        training_loss=training_loss(adapter.fitted_layers, result.history),
        run=RunFacts(
            processes=processes.world,
            threads=torch.get_num_threads(),
            device=adapter.device.type,
            python=platform.python_version(),
            machine=platform.machine(),
            versions={name: _version(name) for name in _PACKAGES},
        ),
    )


def training_loss(layers: tuple[int, ...], history: Sequence[Sequence[float]]) -> TrainingLoss:
    """The losses of all steps, (steps, layers), in MOST_ROWS rows at most."""
    a_row = max(1, -(-len(history) // MOST_ROWS))
    means = (np.mean(history[first : first + a_row], axis=0) for first in range(0, len(history), a_row))
    rows = map(tuple, history) if a_row == 1 else (tuple(map(float, mean)) for mean in means)
    return TrainingLoss(layers=layers, steps=tuple(rows), steps_a_row=a_row)


def measured_report(
    adapter: ModelAdapter,
    evaluation: Evaluation,
    bits_per_byte: float,
    reference: Mapping[int, float] | None = None,
    start: Mapping[int, LayerStart] = MappingProxyType({}),
    choices: Mapping[int, LayerChoice] = MappingProxyType({}),
) -> FitReport:
    """What of a fit's report is measured on held-out text, for which no fit is needed: layers, baselines, and the
    distance to the reference. bits_per_byte: of a nat a token. Without a tuned lens its figures are NaN."""
    logit, tuned = evaluation.lenses["logit"], evaluation.lenses.get("tuned")
    before = evaluation.lenses.get("start")
    return FitReport(
        units=Units(bits_per_byte_per_nat=bits_per_byte),
        baselines=Baselines(
            uniform_ce=evaluation.uniform_ce * bits_per_byte,
            unigram_ce=None if evaluation.unigram_ce is None else evaluation.unigram_ce * bits_per_byte,
            model_ce=evaluation.model.ce * bits_per_byte,
        ),
        layers={
            i: LayerReport(
                depth=adapter.depth(i),
                fitted=i not in adapter.trivial_layers,
                kl_logit=logit[i].kl,
                kl_start=before[i].kl if before and i in adapter.fitted_layers else None,
                kl_tuned=tuned[i].kl if tuned else nan,
                kl_reference=reference.get(i) if reference else None,
                ce_logit=logit[i].ce * bits_per_byte,
                ce_tuned=tuned[i].ce * bits_per_byte if tuned else nan,
                start=start.get(i),
                choice=choices.get(i),
            )
            for i in range(adapter.n_layers)
        },
        distance_to_reference=distance({i: tuned[i].kl for i in tuned}, reference, adapter.fitted_layers)
        if reference and tuned
        else None,
    )


def table(report: FitReport, has_lens: bool = True) -> str:
    """The certificate for people: per layer, KL before and after, and cross-entropy beside the baselines. has_lens:
    whether there is a tuned lens in it."""
    rows, fitted = report.layers.values(), [i for i, row in report.layers.items() if row.fitted]
    columns = [
        name
        for name in _COLUMNS
        if any(getattr(row, name) is not None for row in rows) and (has_lens or not name.endswith("_tuned"))
    ]
    groups = [(title, sum(name.startswith(kind) for name in columns)) for kind, title in _GROUPS.items()]
    lines = [
        " " * 12 + "".join(f"{title:>{12 * n}}" for title, n in groups),
        "layer  depth" + "".join(f"{_COLUMNS[name]:>12}" for name in columns),
    ]
    for i, row in report.layers.items():
        values = (getattr(row, name) for name in columns)
        cells = "".join(" " * 12 if value is None else f"{value:12.3f}" for value in values)
        note = "" if row.fitted else "   (trivial: the model itself)"
        lines.append(f"{i:5d}  {row.depth:5.2f}{cells}{note}")
    means = (np.mean([getattr(report.layers[i], name) for i in fitted]) for name in columns if name.startswith("kl"))
    lines.append(" mean       " + "".join(f"{mean:12.3f}" for mean in means))
    if report.distance_to_reference is not None:
        lines.append(f"distance to the best known translators: {report.distance_to_reference:+.1%} in mean KL")
    baselines = {name: getattr(report.baselines, f"{name}_ce") for name in ("model", "unigram", "uniform")}
    known = ", ".join(f"{name} {ce:.3f}" for name, ce in baselines.items() if ce is not None)
    return "\n".join([*lines, f"baselines, bits/byte: {known}"])


def others_table(evaluation: Evaluation) -> str:
    """KL of the other lenses beside the named ones, by layer, in nats a token; empty where there are none."""
    others = {name: of for name, of in evaluation.lenses.items() if name not in ("logit", "tuned", "start")}
    if not others:
        return ""
    lines = ["KL of other lenses, nats a token", "layer" + "".join(f"{name:>16}" for name in others)]
    for layer in sorted({layer for of in others.values() for layer in of}):
        cells = (f"{of[layer].kl:16.3f}" if layer in of else f"{'not read':>16}" for of in others.values())
        lines.append(f"{layer:5d}" + "".join(cells))
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
