"""A forward pass on the CPU beside the matrix products in it.

    python benchmarks/forward.py

Two blocks of each family with random weights, and the shipped models: the pass as a fit makes it, float32 and without
gradients; the same without the one-pass parts of `lens_rnn.models.fused`; and the products of the linear maps alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

from lens_rnn import cli
from lens_rnn.models import ModelAdapter, fused, load_model, wrap_model
from lens_rnn.models.families.rwkv import RWKVForCausalLM
from lens_rnn.models.families.rwkv_config import RWKVConfig
from lens_rnn.ranges import THREADS, whole
from lens_rnn.run import ModelConfig

import torch
from torch import nn
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from common import medians, report

SHIPPED = Path(ModelConfig.model).parent
_ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Processor seconds of a forward pass and of its products."""

    d_model: Annotated[int, whole(64)] = 768
    """Of the blocks with random weights; a multiple of 64."""
    shape: Annotated[tuple[int, int], whole(1)] = (8, 512)
    """Sequences and tokens in each, of the pass through a block."""
    shipped: bool = True
    """Measure the shipped models too, on 8 × 256 tokens."""
    rounds: Annotated[int, whole(1)] = 5
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """File for the figures, as JSON."""


def random_models(d_model: int) -> Iterator[tuple[str, PreTrainedModel]]:
    """Two blocks of each family, with random weights and a vocabulary of 256."""
    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": d_model, "num_hidden_layers": 2}
    yield "Mamba", MambaForCausalLM(MambaConfig(**sizes, **_ENDS))
    heads: dict[str, Any] = {"num_heads": 2 * d_model // 64, "head_dim": 64, "state_size": 128, "n_groups": 1}
    yield "Mamba-2", Mamba2ForCausalLM(Mamba2Config(**sizes, **heads, **_ENDS))
    yield "RWKV-4", RwkvForCausalLM(RwkvConfig(**sizes, attention_hidden_size=d_model, context_length=1024, **_ENDS))
    lora: dict[str, dict[str, int]] = {
        "5.2": {},
        "6": {"time_maa": 32, "time_decay": 64},
        "7": {"w": 64, "a": 64, "v": 32, "g": 128},
    }
    for version, inner in lora.items():
        config = RWKVConfig(version, **sizes, attention_size=d_model, intermediate_size=4 * d_model, lora=inner)
        model = RWKVForCausalLM(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5 / d_model**0.5)
        yield f"RWKV-{version[0]}", model


@torch.no_grad()
def measure(
    name: str, adapter: ModelAdapter, shape: tuple[int, int], rounds: int
) -> tuple[list[str], dict[str, float]]:
    """A row, and its processor seconds."""
    ids = torch.randint(adapter.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    linear = [m for m in adapter.blocks.modules() if isinstance(m, nn.Linear)]
    inputs = [torch.randn(*shape, m.in_features) for m in linear]

    def plain() -> None:
        """Every block as torch does it, around the compiled recurrences."""
        with patch.object(fused, "can_fuse", return_value=False):
            adapter.forward(ids)

    def products() -> None:
        for m, x in zip(linear, inputs, strict=True):
            nn.functional.linear(x, m.weight, m.bias)

    times = medians({"plain": plain, "ours": lambda: adapter.forward(ids), "products": products}, rounds)
    seconds = {kind: time["cpu_seconds"] for kind, time in times.items()}
    ratios = [f"{seconds[kind] / seconds['products']:.2f}" for kind in ("plain", "ours")]
    return [f"{name}, {shape[0]}×{shape[1]} tokens", *(f"{s:.3f}" for s in seconds.values()), *ratios], seconds


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    torch.manual_seed(0)
    measured = {
        name: measure(name, wrap_model(model), config.shape, config.rounds)
        for name, model in random_models(config.d_model)
    }
    for name in ("tiny-mamba", "tiny-rwkv4") if config.shipped else ():
        measured[name] = measure(name, load_model(SHIPPED / name, device="cpu"), (8, 256), config.rounds)
    report(
        "A forward pass on the CPU: processor seconds",
        ["", "without fused parts", "ours", "its products", "without ÷ products", "ours ÷ products"],
        [row for row, _ in measured.values()],
        [f"Two blocks of d_model {config.d_model} of each named family, float32; medians of {config.rounds} rounds."],
        config.output,
        cpu_seconds={name: seconds for name, (_, seconds) in measured.items()},
    )


if __name__ == "__main__":
    cli.run(main, Config)
