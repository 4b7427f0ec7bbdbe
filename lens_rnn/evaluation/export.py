"""An evaluation as files that others read: aggregate_metrics.json and per_layer.csv."""

import csv
import io
from collections.abc import Mapping
from math import exp
from typing import Any

from lens_rnn.evaluation.metrics import Evaluation, aggregate_metrics
from lens_rnn.models import ModelAdapter


def result(
    adapter: ModelAdapter, evaluation: Evaluation, bits_per_byte: float, extras: Mapping[str, Any]
) -> dict[str, Any]:
    """aggregate_metrics.json: tuned-lens's schema in bits per byte and, under "lens_rnn", `extras` and what a plot
    needs."""
    unigram = evaluation.unigram_ce
    ours = {
        "model": adapter.name,
        "family": adapter.family,
        "n_layers": adapter.n_layers,
        "depth": {f"layer_{i}": adapter.depth(i) for i in range(adapter.n_layers)},
        "units": "bits per byte",
        "bits_per_byte_per_nat": bits_per_byte,
        "uniform_ce": evaluation.uniform_ce * bits_per_byte,
        "unigram_ce": None if unigram is None else unigram * bits_per_byte,
        **extras,
    }
    return aggregate_metrics(evaluation, bits_per_byte) | {"lens_rnn": ours}


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
