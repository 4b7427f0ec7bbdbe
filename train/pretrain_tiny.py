"""Pretrain a demo model, Mamba or RWKV-4, or a GPT-NeoX to compare with, on the sources of the Python standard library.

    python train/pretrain_tiny.py --family mamba --output checkpoints/tiny-mamba

Writes a transformers folder: configuration, weights in half precision, tokenizer and a model card with what was reached on the held-out
files. The corpus itself is never written anywhere but the token cache.
"""

import math
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from lens_rnn import cli
from lens_rnn.data import DataConfig, StdlibSource, TokenBlocks, load_blocks
from lens_rnn.models import load_model
from lens_rnn.models.generic import GenericAdapter
from lens_rnn.models.registry import adapter_class
from lens_rnn.ranges import SEED, THREADS, number, whole

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RwkvConfig,
    RwkvForCausalLM,
)

END_OF_TEXT = "<|endoftext|>"
RECIPES = {
    "mamba": {"steps": 4000, "learning_rate": 6e-3},
    "rwkv4": {"steps": 3200, "learning_rate": 3e-3},
    "gpt-neox": {"steps": 1200, "learning_rate": 3e-3},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pretrain a demo model on the sources of the Python standard library."""

    family: Literal["mamba", "rwkv4", "gpt-neox"]
    """Architecture. gpt-neox is the control of the benchmarks and is not shipped."""
    output: Path
    """Folder of the model."""
    d_model: Annotated[int, whole(1)] = 192
    layers: Annotated[int, whole(1)] = 8
    vocab_size: Annotated[int, whole(1)] = 4096
    seq_len: Annotated[int, whole(2)] = 256
    """Tokens in a sequence."""
    batch_size: Annotated[int, whole(1)] = 8
    """Sequences in a step."""
    steps: Annotated[int, whole()] = 0
    """Optimizer steps. Default: the family's own."""
    learning_rate: Annotated[float, number(0)] = 0.0
    """Highest learning rate of AdamW, after a linear warm-up and before a cosine decay to a hundredth. Default: the family's own."""
    warmup: Annotated[int, whole()] = 100
    """Steps of warm-up."""
    weight_decay: Annotated[float, number(0)] = 0.1
    seed: Annotated[int, SEED] = 0
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""

    def with_recipe(self) -> Self:
        """The same configuration with the family's settings where none were given."""
        own = RECIPES[self.family]
        return replace(
            self, steps=self.steps or int(own["steps"]), learning_rate=self.learning_rate or own["learning_rate"]
        )


def train_tokenizer(source: StdlibSource, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, from the files that are trained on only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in source.documents("fit")), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def make_model(config: Config) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "vocab_size": config.vocab_size,
    }
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    width: dict[str, Any]
    model: PreTrainedModel
    if config.family == "mamba":
        model = MambaForCausalLM(MambaConfig(**shape, **ends, pad_token_id=0))
    elif config.family == "gpt-neox":
        width = {"intermediate_size": 4 * config.d_model, "num_attention_heads": config.d_model // 48}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **ends, **width, max_position_embeddings=1024))
    else:
        width = {"attention_hidden_size": config.d_model, "intermediate_size": 3 * config.d_model}
        model = RwkvForCausalLM(RwkvConfig(**shape, **ends, **width, context_length=1024))
    return model.train()


def make_optimizer(
    model: PreTrainedModel, config: Config
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    decayed = {name for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith("A_log")}
    matrices = [p for name, p in model.named_parameters() if name in decayed]
    others = [p for name, p in model.named_parameters() if name not in decayed]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    def scale(step: int) -> float:
        progress = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
        return min(1.0, (step + 1) / config.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def train(model: PreTrainedModel, blocks: TokenBlocks, config: Config) -> None:
    kind = adapter_class(model.config.model_type) or GenericAdapter
    adapter = kind(model)  # whose passes are fused; not checked, for the model is in training
    adapter.set_training(True)
    model.requires_grad_(True)
    optimizer, schedule = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.empty(0, dtype=torch.long)
    bar = tqdm(range(config.steps), desc="pretraining", mininterval=10)
    for step in bar:
        if len(rows) < config.batch_size:
            rows = torch.cat([rows, torch.randperm(len(blocks), generator=generator)])
        now, rows = rows[: config.batch_size], rows[config.batch_size :]
        ids = blocks.batch(now.numpy())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = adapter.logits(adapter.run(ids).final)[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(bits_per_byte=f"{loss.item() * blocks.bits_per_byte:.3f}")


@torch.no_grad()
def held_out_bits_per_byte(folder: Path, blocks: TokenBlocks) -> float:
    """Of the model as a user loads it, from half precision, over all whole blocks of the held-out files."""
    adapter = load_model(folder, device="cpu")
    total = 0.0
    for start in range(0, len(blocks), 8):
        ids = blocks.batch(slice(start, start + 8))
        logits = adapter.logits(adapter.forward(ids).final)[:, :-1]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    return total / (len(blocks) * (blocks.seq_len - 1)) * blocks.bits_per_byte


CARD = """---
license: mit
library_name: transformers
tags: [lens-rnn, demo]
---
# {name}

A {family} language model of {parameters:.1f} M parameters ({layers} blocks, d_model {d_model}, vocabulary {vocab_size:,}), trained to be
small enough to ship and good enough to look inside. It knows Python's standard library and nothing else.

| | |
|---|---|
| Held-out bits per byte | **{reached:.3f}** (float32 from the half-precision weights, blocks of {seq_len} tokens, {eval_tokens:,} tokens) |
| Data | sources of the standard library of Python {python}: {documents} files, {fit_bytes:,} bytes; {eval_documents} files held out by a hash of their name and never trained on |
| SHA-256 of the training tokens | `{fit_sha}` |
| SHA-256 of the held-out tokens | `{eval_sha}` |
| Training | {steps} steps of {batch_size} × {seq_len} tokens, AdamW, learning rate {learning_rate}, {warmup} steps of warm-up, cosine decay, weight decay {weight_decay}, bfloat16 products, seed {seed} |
| Time | {minutes:.0f} minutes on {threads} cores ({machine}), torch {torch}, while other work ran on them |

Made by `python train/pretrain_tiny.py --family {family} --output checkpoints/{name}`.
"""


def write_card(
    config: Config, model: PreTrainedModel, fit: TokenBlocks, held_out: TokenBlocks, reached: float, minutes: float
) -> None:
    card = CARD.format(
        **cli.plain(config) | {"threads": torch.get_num_threads()},
        name=config.output.name,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        reached=reached,
        eval_tokens=held_out.tokens.size,
        python=platform.python_version(),
        documents=fit.n_documents,
        fit_bytes=fit.n_bytes,
        eval_documents=held_out.n_documents,
        fit_sha=fit.sha256,
        eval_sha=held_out.sha256,
        minutes=minutes,
        machine=platform.machine(),
        torch=torch.__version__,
    )
    (config.output / "README.md").write_text(card)


def main(config: Config) -> None:
    config = config.with_recipe()
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    torch.manual_seed(config.seed)
    started = time.monotonic()

    source = StdlibSource()
    tokenizer = train_tokenizer(source, config.vocab_size)
    data = DataConfig(seq_len=config.seq_len, tokens=None)
    fit = load_blocks(data, "fit", tokenizer, source, everything=True)
    held_out = load_blocks(data, "eval", tokenizer, source, everything=True)

    model = make_model(config)
    train(model, fit, config)

    # Saved in training mode: in evaluation mode RWKV's weights are rescaled in place.
    model.half().save_pretrained(config.output)
    tokenizer.save_pretrained(config.output)
    reached = held_out_bits_per_byte(config.output, held_out)
    write_card(config, model, fit, held_out, reached, (time.monotonic() - started) / 60)
    print(f"{config.output}: {reached:.3f} bits per byte on held-out files")


if __name__ == "__main__":
    cli.run(main, Config)
