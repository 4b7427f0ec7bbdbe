"""The settings of a fit, and what they come to for some data and model."""

from dataclasses import dataclass
from typing import Any, Literal

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError
from lens_rnn.fitting.objective import LOSSES, Loss, default_chunk_tokens
from lens_rnn.fitting.optimizers import LEARNING_RATES, OptimizerName
from lens_rnn.models import DTYPES, ModelAdapter

import numpy as np
import torch

START_TOKENS = 131_072
SEEN_TOKENS, MOST_PASSES = (
    524_288,
    4,
)  # of the default number of passes: few tokens are worth seeing again, many are not
Start = Literal["ridge", "zero"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a lens is fitted."""

    batch_size: int = 16
    """Sequences in a step, over all processes together."""
    micro_batch_size: int = 8
    """Sequences in one forward pass of one process: lower it if memory runs out; the result stays the same."""
    passes: int | None = None
    """How often each token is seen. Default: as often as makes 524,288 tokens in all, at most 4 times, and at least
    once."""
    optimizer: OptimizerName = "kfac"
    """kfac, adamw, adam, sgd (with tuned-lens's settings) or muon."""
    learning_rate: float | None = None
    """Highest learning rate. Default: the optimizer's own, 1e-3 for adamw. kfac measures its step lengths; for it this
    is a factor on them, 1 by default."""
    loss: Loss = "kl"
    """kl: match the model's own distribution; ce: predict the next token."""
    start: Start = "ridge"
    """ridge: closed-form regression onto the final state before the first step; zero: the logit lens, as tuned-lens
    does."""
    start_tokens: int | None = None
    """Tokens that the closed-form start and kfac's input factor look at. Default: 131,072 or 32 × d_model, whichever is
    more, or all there are."""
    clip: float = 1.0
    """Highest norm of one layer's gradient, so that a layer's large gradient does not slow the others. kfac has bounds
    of its own."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products with the unembedding, and of their results. auto: bfloat16 for a model in
    it, and where the processor is fast at it, else float32. Softmax and losses are float32, and what is reported is
    computed in the model's own format."""
    chunk_tokens: int | None = None
    """Tokens whose logits are held at a time. Default: what suits the device."""
    seed: int = 0
    """Decides the order of the blocks."""
    checkpoint_every: int = 50
    """Steps between checkpoints, of which the last two are kept."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "passes", "checkpoint_every", "chunk_tokens", "start_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0")
        for name, allowed in (
            ("products", ("auto", "float32", "bfloat16")),
            ("optimizer", LEARNING_RATES),
            ("loss", LOSSES),
            ("start", ("ridge", "zero")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; choose from {', '.join(allowed)}")

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or LEARNING_RATES[self.optimizer]

    def steps_a_pass(self, blocks: TokenBlocks) -> int:
        """Optimizer steps that see each block at most once: a last part of a batch is left out."""
        return len(blocks) // self.batch_size

    def passes_over(self, blocks: TokenBlocks) -> int:
        """How often each block is seen."""
        return self.passes or max(1, min(MOST_PASSES, SEEN_TOKENS // (len(blocks) * blocks.seq_len)))

    def steps(self, blocks: TokenBlocks) -> int:
        """Optimizer steps in all."""
        return self.passes_over(blocks) * self.steps_a_pass(blocks)

    def rows(self, step: int, blocks: TokenBlocks) -> np.ndarray:
        """The blocks of a step, of which each pass has an order of its own."""
        in_a_pass = self.steps_a_pass(blocks)
        return self.order(step // in_a_pass, blocks)[step % in_a_pass * self.batch_size :][: self.batch_size]

    def order(self, number: int, blocks: TokenBlocks) -> np.ndarray:
        """The order of the blocks in a pass."""
        return np.random.default_rng((self.seed, number)).permutation(len(blocks))

    def start_rows(self, blocks: TokenBlocks, d_model: int) -> int:
        """Blocks that the closed-form start looks at."""
        wanted = self.start_tokens or max(START_TOKENS, 32 * d_model)
        return min(len(blocks), max(1, wanted // blocks.seq_len))

    def resolved(self, blocks: TokenBlocks, adapter: ModelAdapter) -> dict[str, Any]:
        """What was left to its default, as it is for this data and model."""
        return {
            "learning_rate": self.peak_learning_rate,
            "start_tokens": self.start_rows(blocks, adapter.d_model) * blocks.seq_len if self.needs_moments else 0,
            "products": str(self.product_dtype(adapter.dtype, adapter.device)).removeprefix("torch."),
            "chunk_tokens": self.chunk_tokens_on(adapter, adapter.device),
            "dtype": str(adapter.dtype).removeprefix("torch."),
            "tokens": self.steps_a_pass(blocks) * self.batch_size * blocks.seq_len,
            "passes": self.passes_over(blocks),
            "checkpoint_every": self.checkpoint_every,
        }

    @property
    def needs_moments(self) -> bool:
        """Whether the fit begins with a pass over the tokens for the moments of the hidden states."""
        return self.start == "ridge" or self.optimizer == "kfac"

    def product_dtype(self, head: torch.dtype, device: torch.device) -> torch.dtype:
        """What `products` means for a model whose head has this dtype: float16 would lose the small entries of q −
        p."""
        if self.products != "auto":
            return DTYPES[self.products]
        if head in (torch.float16, torch.float32):
            return torch.bfloat16 if _is_fast_at_bfloat16(device) else torch.float32
        return head

    def chunk_tokens_on(self, adapter: ModelAdapter, device: torch.device) -> int:
        """Tokens whose logits are held at a time."""
        return self.chunk_tokens or default_chunk_tokens(
            adapter.vocab_size, self.product_dtype(adapter.dtype, device), device.type
        )


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own: elsewhere they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
