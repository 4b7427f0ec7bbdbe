"""What the rest of the package may know of a model: its hidden states, its unembedding, its depth. One subclass per
architecture."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

from lens_rnn.errors import ModelError
from lens_rnn.models.editing import Change, Edits
from lens_rnn.models.head import LogitMap, is_plain
from lens_rnn.models.inputs import checked_layers
from lens_rnn.models.mixing import Mixing
from lens_rnn.models.shapes import Hidden, Ids
from lens_rnn.models.sharding import spread
from lens_rnn.models.state import RecurrentState
from lens_rnn.models.tokenizers import NONE_BESIDE, check_ids
from lens_rnn.models.vocabularies import hint

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a model may have beyond that which a lens needs.
FUSED, STATE, ATTENTION = "fused path", "recurrent state", "hidden attention"


class Forward(NamedTuple):
    """One pass of a model over a batch of tokens, in the model's own dtypes."""

    hidden_states: tuple[Hidden, ...]
    """One a layer, exactly as transformers returns them in evaluation mode."""
    norm_input: Hidden
    """What enters the final norm. A perfect translator maps every hidden state to it."""
    final: Hidden
    """What leaves the final norm. The head applied to it gives the model's logits."""

    @classmethod
    def joined(cls, steps: Sequence["Forward"]) -> "Forward":
        """Passes over parts of a text, one after another, as one."""
        hidden = tuple(torch.cat(layer, 1) for layer in zip(*(step.hidden_states for step in steps), strict=True))
        return cls(
            hidden, torch.cat([step.norm_input for step in steps], 1), torch.cat([step.final for step in steps], 1)
        )


class ModelAdapter(ABC):
    """A causal language model seen as a stack of blocks on a residual stream, followed by a final norm and a head. Not
    thread-safe.

    Subclasses name the parts; everything else is derived. `load_model` builds one, which `lens_rnn.models.check` then
    checks.
    """

    states_after_blocks: ClassVar[bool]
    """Whether hidden_states[i] is the output of block i (the recurrent families) or its input (transformers)."""
    state_names: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors of the recurrent state in `RecurrentState.blocks`; empty where it cannot be reached or there
    is none."""

    lora_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the linear maps that take a low-rank adapter in fine-tuning; empty for every linear map of the
    blocks."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, revision: str | None = None
    ):
        self.model = model.eval().requires_grad_(False)
        self.revision = revision
        self.off: dict[str, str] = {}
        """Capabilities that this model has to do without, and why: found by `lens_rnn.models.check`."""
        self.logit_map = LogitMap()
        """From the head's product to logits: measured by `lens_rnn.models.check`."""
        self.sharded = False
        self.edits = Edits()
        self._tokenizer = tokenizer
        self.tokenizer_trouble = NONE_BESIDE
        """What is told to who asks for a tokenizer where there is none, after the model's name."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, in the order in which they are applied."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""

    @property
    def head(self) -> nn.Linear:
        """The map from the normed hidden state to logits."""
        return self.model.get_output_embeddings()

    @property
    def name(self) -> str:
        return str(self.model.config.name_or_path)

    @property
    def model_type(self) -> str:
        return str(self.model.config.model_type)

    @property
    def family(self) -> str:
        """What results are grouped and coloured by: mamba, rwkv, or the model type."""
        return self.model_type

    @property
    def d_model(self) -> int:
        return self.head.in_features

    @property
    def vocab_size(self) -> int:
        """Rows of the head: the tokenizer's vocabulary may be smaller."""
        return self.head.out_features

    @property
    def n_layers(self) -> int:
        """Number of hidden states, hence of translators."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the head's products: of a quantised model, what its embeddings are in."""
        weight = self.head.weight if is_plain(self.head) else self.model.get_input_embeddings().weight
        return weight.dtype if weight.dtype.is_floating_point else torch.float32

    @property
    def is_quantised(self) -> bool:
        """Whether its weights have fewer bits than they are computed with, as transformers has loaded them."""
        return bool(getattr(self.model, "is_quantized", False))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which may know fewer ids than the model.

        Raises ModelError if there is none, or if it gives ids that the model has not; by the size of the vocabulary,
        the error names one that fits.
        """
        if self._tokenizer is None:
            raise ModelError(f"{self.name} {self.tokenizer_trouble}; {hint(self.vocab_size)}")
        check_ids(self._tokenizer, self.name, self.vocab_size)
        return self._tokenizer

    @property
    def longest_sequence(self) -> int | None:
        """Most tokens in one sequence that the model can read; None where there is no limit."""
        return None

    @property
    def trivial_layers(self) -> frozenset[int]:
        """Layers whose hidden state is already the final norm's input: KL is 0 with no translator, so none is
        fitted."""
        return frozenset({self.n_layers - 1}) if self.states_after_blocks else frozenset()

    @property
    def fitted_layers(self) -> tuple[int, ...]:
        """Layers that have something to fit."""
        return tuple(i for i in range(self.n_layers) if i not in self.trivial_layers)

    def depth(self, layer: int) -> float:
        """Fraction of the blocks that have been applied where hidden state `layer` is read: the x axis of every
        plot."""
        return (layer + self.states_after_blocks) / self.n_layers

    @property
    def has_state(self) -> bool:
        """Whether the recurrent state can be read, copied and changed (`advance`)."""
        return bool(self.state_names) and STATE not in self.off

    @property
    def no_state(self) -> str:
        """What to tell who asks for a recurrent state that cannot be reached."""
        why = self.off.get(STATE) or "lens_rnn.models.supported() says where it can"
        return f"the recurrent state of model type {self.model_type!r} cannot be reached: {why}"

    @torch.no_grad()
    def forward(self, input_ids: Ids) -> Forward:
        """Run the model without its head."""
        return self.run(input_ids)

    def run(self, input_ids: Ids) -> Forward:
        """`forward`, with gradients where the model's parameters ask for them."""
        return self._pass(input_ids, use_cache=False)[0]

    def _pass(self, input_ids: Tensor, **kwargs: Any) -> tuple[Forward, Any]:
        """A pass by the model's own code, and its own output."""
        changed: dict[int, Tensor] = {}
        seen: list[Tensor] = []
        readers = [*self.blocks, self.final_norm][self.states_after_blocks :]
        hooks = [self.edits.hook(layer, readers[layer], changed) for layer in self.edits.layers]
        hooks.append(self.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        try:
            output = self.model.base_model(input_ids, output_hidden_states=True, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) != 1:
            raise ModelError(
                f"model type {self.model_type!r}: the final norm ran {len(seen)} times in one pass, not once"
            )
        states = tuple(changed.get(i, h) for i, h in enumerate(output.hidden_states[: self.n_layers]))
        return Forward(states, seen[0], output.last_hidden_state), output

    @torch.no_grad()
    def advance(self, input_ids: Ids, state: RecurrentState | None = None) -> tuple[Forward, RecurrentState]:
        """Read input_ids from a state on, by default from before the first token; the given state is left
        as it is.

        Returns what `forward` returns for these tokens, and the state after them. Raises ModelError where there is no
        recurrent state to reach (`has_state`), for no token, or for a state of another family or batch.
        """
        if not self.has_state:
            raise ModelError(self.no_state)
        if not input_ids.shape[1]:
            raise ModelError("there is no token to read; give at least one a sequence")
        if state is not None and not (
            state.names >= set(self.state_names)
            and state.batch == len(input_ids)
            and len(state.blocks) == len(self.blocks)
        ):
            raise ModelError(
                f"a state of {state.batch} sequences and {len(state.blocks)} blocks with "
                f"{', '.join(sorted(state.names))} cannot be "
                f"continued with {len(input_ids)} sequences by model type {self.model_type!r}, whose state has "
                f"{len(self.blocks)} blocks "
                f"with {', '.join(self.state_names)}"
            )
        return self._advance(input_ids, state)

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        """`advance` of a family that names its states, for input that fits. One that names none is never asked."""
        raise NotImplementedError

    def switch_off(self, capability: str, reason: str) -> None:
        """Do without a capability, for a reason in one line that whoever asks for it will be told."""
        self.off[capability] = reason

    @property
    def mixing_kinds(self) -> tuple[tuple[str, ...], ...]:
        """Of each block, how it mixes tokens, where there is a matrix to look at: kinds of `Mixing`, most often one, or
        none."""
        return ((),) * len(self.blocks)

    @property
    def attention_heads(self) -> int:
        """How many heads a block has whose number is not known before it runs, for estimates of memory."""
        return 0

    @property
    def attention_matrices(self) -> int:
        """How many matrices are in memory at once where softmax attention is asked for, of whichever block."""
        return 0

    def mixings(self, _input_ids: Int[Tensor, "1 tokens"], _layers: Sequence[int]) -> Iterator[Mixing]:
        """How these blocks mix the tokens of one text: of each block what `mixing_kinds`
        says."""
        raise ModelError(
            f"model type {self.model_type!r} has no block whose mixing of tokens is known as a matrix here"
        )

    def set_training(self, training: bool) -> None:
        """Put the model into training mode, in which its weights are those of the checkpoint, to train, save or add to
        them; or back into evaluation mode, for which a family may change them."""
        self.model.train(training)

    def logits(self, final: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of a state after the final norm, through the model's own head and
        its map."""
        return self.logit_map(self.head(final.to(self.dtype)))

    def unembed(self, z: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of a state before the final norm, through the model's own norm, head
        and map."""
        return self.logits(self.final_norm(z))

    def edited(self, layer: int, change: Change) -> AbstractContextManager[None]:
        """Inside it the model goes on from change(h) in place of its hidden state h (batch, seq, d_model) at `layer`;
        `Forward` shows it. Raises ConfigError for a layer that the model does not have.

        The state is changed where the next block, or the final norm, reads it: it is what `Forward.hidden_states`
        holds, also where RWKV-4 has halved it. `run`, `forward` and `advance` heed it; nothing of it stays, also after
        an error.
        """
        checked_layers(self, layer)
        return self.edits.begun(layer, change)

    def shard(self, device: torch.device, processes: int) -> None:
        """Spread the blocks' weights over all processes, each block gathered only while it runs; the rest of the model
        moves to `device`. Load the model on the CPU first, so that no device ever holds all of it."""
        spread(self.model, self.blocks, device, processes)
        self.sharded = True
