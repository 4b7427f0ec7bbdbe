"""The settings of a fit. What they come to for some data and model is a `Plan`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lens_rnn.errors import ConfigError
from lens_rnn.fitting.objective import LOSSES, Loss
from lens_rnn.fitting.optimizers import OPTIMIZERS, OptimizerName
from lens_rnn.ranges import SEED, check_ranges, number, whole

Start = Literal["ridge", "zero"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a lens is fitted."""

    batch_size: Annotated[int, whole(1)] = 16
    """Sequences in a step, over all processes together."""
    micro_batch_size: Annotated[int, whole(1)] = 8
    """Sequences in one forward pass of one process: lower it if memory runs out; the result stays the same."""
    passes: Annotated[int | None, whole(1)] = None
    """How often each token is seen. Default: as often as makes 524,288 tokens in all, at most 4 times, and at least
    once."""
    positions: Annotated[float | None, number(most=1, above=0)] = None
    """Share of the positions of the text that the steps look at, others each time: the rest costs a forward pass alone.
    Default: from the cost of that beside a position's, a sixteenth or more; of a text below 524,288 tokens more,
    in proportion."""
    optimizer: OptimizerName = "kfac"
    """kfac, adamw, adam, sgd (with tuned-lens's settings) or muon."""
    learning_rate: Annotated[float | None, number(above=0)] = None
    """Highest learning rate. Default: the optimizer's own, 1e-3 for adamw. kfac measures its step lengths; for it this
    is a factor on them, 1 by default."""
    loss: Loss = "kl"
    """kl: match the model's own distribution; ce: predict the next token."""
    start: Start = "ridge"
    """ridge: closed-form regression onto the final state before the first step; zero: the logit lens, as tuned-lens
    does."""
    start_tokens: Annotated[int | None, whole(1)] = None
    """Tokens that the closed-form start and kfac's input factor look at. Default: 131,072 or 32 × d_model, whichever is
    more, or all there are."""
    choice_tokens: Annotated[int | None, whole(0)] = None
    """Tokens that are kept apart to choose, for each layer, how far to go from the logit lens over the start to the end
    of the fit. Default: one block in 16, and no more than pays. 0: none, and every layer goes to the end."""
    clip: Annotated[float, number(above=0)] = 1.0
    """Highest norm of one layer's gradient, so that a layer's large gradient does not slow the others. kfac has bounds
    of its own."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products with the unembedding, and of their results. auto: bfloat16 for a model in
    it, and where the processor is fast at it, else float32. Softmax and losses are float32, and what is reported is
    computed in the model's own format."""
    chunk_tokens: Annotated[int | None, whole(1)] = None
    """Tokens whose logits are held at a time. Default: what suits the device."""
    seed: Annotated[int, SEED] = 0
    """Decides the order of the blocks, and the labels that kfac draws."""
    checkpoint_every: Annotated[int, whole(1)] = 50
    """Steps between checkpoints, of which the last two are kept."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, allowed in (
            ("products", ("auto", "float32", "bfloat16")),
            ("optimizer", tuple(OPTIMIZERS)),
            ("loss", LOSSES),
            ("start", ("ridge", "zero")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; choose from {', '.join(allowed)}")
