"""An evaluation as files that others read: aggregate_metrics.json and per_layer.csv."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.evaluation.curves import UNITS
from lens_rnn.evaluation.metrics import Evaluation, LayerMetrics
from lens_rnn.evaluation.result_file import Conditions, EvaluationResult, LensValues, TransferValues
from lens_rnn.evaluation.transfer import Transfer
from lens_rnn.models import ModelAdapter

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TextsRead:
    """The texts of an evaluation."""

    source: str
    blocks: TokenBlocks
    """What was evaluated on."""
    counted: TokenBlocks
    """What the unigram baseline was counted on."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What was measured beside cross-entropy, KL and entropy."""

    transfer: Transfer | None = None
    marginal: Mapping[str, Any] | None = None
    js_nats: Sequence[float] | None = None


def result(
    adapter: ModelAdapter, evaluation: Evaluation, texts: TextsRead, lens: str | None, extras: Extras | None = None
) -> EvaluationResult:
    """What aggregate_metrics.json holds. lens: the name of the tuned lens, if there is one."""
    extras = extras or Extras()
    factor, unigram, transfer = texts.blocks.bits_per_byte, evaluation.unigram_ce, extras.transfer
    layers = tuple(range(adapter.n_layers))
    about = Conditions(
        depth=np.array([adapter.depth(i) for i in layers]),
        model=adapter.name,
        family=adapter.family,
        n_layers=adapter.n_layers,
        units=UNITS,
        bits_per_byte_per_nat=factor,
        uniform_ce=evaluation.uniform_ce * factor,
        unigram_ce=None if unigram is None else unigram * factor,
        lens=lens,
        data=texts.source,
        tokens=int(texts.blocks.tokens.size),
        tokens_sha256=texts.blocks.sha256,
        unigram_counted_on={"tokens": int(texts.counted.tokens.size), "sha256": texts.counted.sha256},
        marginal=extras.marginal,
        js_nats=extras.js_nats,
        others={
            name: _by_kind(layers, factor)
            for name, layers in evaluation.lenses.items()
            if name not in ("logit", "tuned", "start")
        }
        or None,
    )
    in_bits = None
    if transfer is not None:
        in_bits = TransferValues(translators=layers, sources=layers, ce=transfer.ce * factor, kl=transfer.kl * factor)
    tuned = evaluation.lenses.get("tuned")
    return EvaluationResult(
        logit=_lens_values(evaluation.lenses["logit"], factor),
        tuned=None if tuned is None else _lens_values(tuned, factor, in_bits),
        model_ce=evaluation.model.ce * factor,
        model_entropy=evaluation.model.entropy * factor,
        about=about,
    )


def _by_kind(layers: Mapping[int, LayerMetrics], factor: float) -> dict[str, dict[str, float]]:
    return {
        kind: {f"layer_{i}": getattr(figures, kind) * factor for i, figures in sorted(layers.items())}
        for kind in LayerMetrics._fields
    }


def _lens_values(
    layers: Mapping[int, LayerMetrics], factor: float, transfer: TransferValues | None = None
) -> LensValues:
    ce, kl, entropy = np.array([layers[i] for i in range(len(layers))]).T * factor
    return LensValues(ce=ce, entropy=entropy, kl=kl, transfer=transfer)


def layer_table(adapter: ModelAdapter, evaluation: Evaluation, bits_per_byte: float) -> str:
    """per_layer.csv: every figure of every lens and layer, cross-entropy in both units and as perplexity per token."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    columns = [
        "ce_nats_per_token",
        "ce_bits_per_byte",
        "perplexity_per_token",
        "kl_nats_per_token",
        "entropy_nats_per_token",
    ]
    rows.writerow(["lens", "layer", "depth", *columns])
    for name, layers in evaluation.lenses.items():
        for i, f in sorted(layers.items()):
            rows.writerow([name, i, adapter.depth(i), f.ce, f.ce * bits_per_byte, exp(min(f.ce, 700)), f.kl, f.entropy])
    model = evaluation.model
    rows.writerow(["model", "", 1.0, model.ce, model.ce * bits_per_byte, exp(min(model.ce, 700)), 0.0, model.entropy])
    return text.getvalue()
