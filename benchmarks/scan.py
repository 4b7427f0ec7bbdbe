"""Mamba on a CPU: the fused scan that the adapters use, beside transformers' own loop over time.

    python benchmarks/scan.py

Blocks of mamba-130m's shape with random weights, float32. One forward pass as a fit makes it, and one training step
(forward and backward) of fewer tokens: the backward pass of transformers' path takes time quadratic in the length. The
recurrence alone is the part of a forward pass that differs; the rest is products that both make alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.models.families.mamba import MambaAdapter
from lens_rnn.models.recurrences import selective_scan
from lens_rnn.ranges import THREADS, whole

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.models.mamba import modeling_mamba

from common import medians, report


@dataclass(frozen=True, kw_only=True)
class Config:
    """Seconds of a forward pass and of a training step of Mamba on a CPU, ours and transformers'."""

    d_model: Annotated[int, whole(1)] = 768
    layers: Annotated[int, whole(1)] = 1
    """Blocks of the model."""
    forward: Annotated[tuple[int, int], whole(1)] = (16, 512)
    """Sequences and tokens in each, of the forward pass."""
    training: Annotated[tuple[int, int], whole(1)] = (4, 128)
    """The same of the training step."""
    rounds: Annotated[int, whole(1)] = 3
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """JSON file for the same figures."""


Pass = Callable[[Tensor], Tensor]
"""From token ids (batch, seq) to last hidden states (batch, seq, d_model)."""


def forward(run: Pass, ids: Tensor) -> Tensor:
    """The last hidden states, without a graph."""
    with torch.no_grad():
        return run(ids)


def train(run: Pass, model: PreTrainedModel, ids: Tensor) -> Tensor:
    """All gradients of the language-modelling loss, one after another in one tensor."""
    model.zero_grad()
    logits = model.get_output_embeddings()(run(ids))[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def scans(d_model: int, shape: tuple[int, int]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]] | None:
    """The recurrence alone, of all channels of one block: transformers' and ours. None where this transformers has no
    such function."""
    loop = getattr(modeling_mamba, "mamba_selective_scan", None)
    if loop is None:
        return None
    batch, seq, channels, n = *shape, 2 * d_model, 16
    u, dt = torch.randn(batch, channels, seq), 0.1 * torch.rand(batch, channels, seq)
    A, B, C = -torch.arange(1.0, n + 1).repeat(channels, 1), torch.randn(batch, seq, n), torch.randn(batch, seq, n)
    return lambda: loop(u, dt, A, B.mT, C.mT), lambda: selective_scan(u, dt, A, B, C)[0]


def compare(
    name: str, shape: tuple[int, int], theirs: Callable[[], Tensor], ours: Callable[[], Tensor], rounds: int
) -> list[str]:
    """One row: seconds of each, their ratio, and how far the results are apart."""
    times = medians({"theirs": theirs, "ours": ours}, rounds)
    expected = theirs()
    difference = float((ours() - expected).abs().max() / expected.abs().max())
    seconds = [time["seconds"] for time in times.values()]
    return [
        f"{name}, {shape[0]}×{shape[1]} tokens",
        *(f"{s:.3f}" for s in seconds),
        f"{seconds[0] / seconds[1]:.1f}",
        f"{difference:.0e}",
    ]


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=config.d_model, num_hidden_layers=config.layers, vocab_size=1024))
    adapter = MambaAdapter(model)
    model.train().requires_grad_(True)

    def theirs(ids: Tensor) -> Tensor:
        return model.base_model(ids, use_cache=False).last_hidden_state

    def ours(ids: Tensor) -> Tensor:
        return adapter.run(ids).final

    rows = []
    ids = torch.randint(1024, config.forward)
    rows.append(
        compare("forward", config.forward, partial(forward, theirs, ids), partial(forward, ours, ids), config.rounds)
    )
    ids = torch.randint(1024, config.training)
    steps = [partial(train, run, model, ids) for run in (theirs, ours)]
    rows.append(compare("training step", config.training, steps[0], steps[1], config.rounds))
    if alone := scans(config.d_model, config.forward):
        rows.append(compare("the recurrence alone", config.forward, *alone, config.rounds))
    notes = [
        f"{config.layers} Mamba block(s) of d_model {config.d_model}, state size 16, float32; medians of "
        f"{config.rounds} rounds in turn. "
        "Difference: the largest one over the largest value, of the last hidden states, of all gradients, of the "
        "recurrence's output."
    ]
    report("Mamba on a CPU", ["", "transformers, s", "ours, s", "ratio", "difference"], rows, notes, config.output)


if __name__ == "__main__":
    cli.run(main, Config)
