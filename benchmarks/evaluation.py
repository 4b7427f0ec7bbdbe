"""Evaluation beside the same figures in plain torch, pass by pass over the logits, as versions up to 0.6.0 had it.

    python benchmarks/evaluation.py

Both get the same hidden states, without a model's forward pass, and both use the lens's own float32 products, which are
timed alone as well.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.metrics import figure_sums, token_spans
from lens_rnn.lens import TunedLens
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.ranges import THREADS, whole

import torch
from torch import Tensor

from common import medians, report
from contenders import random_forward, random_mamba


@dataclass(frozen=True, kw_only=True)
class Config:
    """Processor time of an evaluation, without the forward pass."""

    shapes: Annotated[tuple[int, ...], whole(2)] = (192, 4096, 768, 50_280)
    """d_model and vocabulary of each model, one after another."""
    tokens: Annotated[int, whole(2)] = 2048
    layers: Annotated[int, whole(1)] = 4
    rounds: Annotated[int, whole(1)] = 5
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """File for the figures, as JSON."""

    def __post_init__(self) -> None:
        if len(self.shapes) % 2:
            raise ConfigError("shapes are pairs of d_model and vocabulary; one number is left over")


class Contenders:
    """An evaluation of one lens at every layer of some tokens."""

    def __init__(self, adapter: ModelAdapter, forward: Forward, ids: Tensor):
        self.adapter, self.forward, self.ids = adapter, forward, ids
        self.lens = TunedLens.from_adapter(adapter).requires_grad_(False)

    @torch.no_grad()
    def ours(self) -> Tensor:
        """Σ over tokens of ce, kl and entropy, (layers, 3), in one pass over each row of logits."""
        sums = torch.zeros(len(self.adapter.fitted_layers), 3, dtype=torch.float64)
        for span in token_spans(self.adapter, self.forward, self.ids):
            for k, layer in enumerate(self.adapter.fitted_layers):
                sums[k] += figure_sums(self.lens(span.hidden[layer], layer), span)
        return sums

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The same in torch: log_softmax, exp and two products of rows, each a pass over memory."""
        sums = torch.zeros(len(self.adapter.fitted_layers), 3, dtype=torch.float64)
        for span in token_spans(self.adapter, self.forward, self.ids):
            log_p, p = span.aim
            for k, layer in enumerate(self.adapter.fitted_layers):
                log_q = torch.log_softmax(self.lens(span.hidden[layer], layer).float(), dim=-1)
                ce = -log_q.gather(-1, span.labels.clamp(min=0)[:, None])[span.labels >= 0]
                kl = torch.linalg.vecdot(p, log_p - log_q)
                entropy = -torch.linalg.vecdot(log_q.exp(), log_q)
                sums[k] += torch.stack([x.sum(dtype=torch.float64) for x in (ce, kl, entropy)])
        return sums

    @torch.no_grad()
    def products(self) -> None:
        """The products with translators and unembedding alone."""
        for span in token_spans(self.adapter, self.forward, self.ids):
            for layer in self.adapter.fitted_layers:
                self.lens(span.hidden[layer], layer)


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    rows, data = [], {}
    for d_model, vocab in zip(config.shapes[::2], config.shapes[1::2], strict=True):
        adapter = random_mamba(d_model, vocab, config.layers, torch.float32, torch.device("cpu"))
        it = Contenders(adapter, *random_forward(adapter, config.tokens))
        torch.testing.assert_close(it.ours(), it.plain(), rtol=1e-4, atol=1e-2)
        times = medians({"plain": it.plain, "ours": it.ours, "products": it.products}, config.rounds)
        seconds = {name: time["cpu_seconds"] for name, time in times.items()}
        data[f"{d_model} × {vocab}"] = times
        ratios = [f"{seconds[a] / seconds['ours']:.1f}" for a in ("plain",)]
        rows.append(
            [
                f"{d_model}, {vocab:,}",
                *(f"{seconds[name]:.2f}" for name in ("plain", "ours", "products")),
                *ratios,
                f"{seconds['ours'] / seconds['products']:.2f}",
            ]
        )
    report(
        "Evaluation of one lens, without the forward pass: processor seconds",
        ["d_model, vocabulary", "plain torch", "ours", "products alone", "plain ÷ ours", "ours ÷ products"],
        rows,
        [f"Random states, {config.tokens:,} tokens, {config.layers} layers; medians of {config.rounds} rounds."],
        config.output,
        seconds=data,
    )


if __name__ == "__main__":
    cli.run(main, Config)
