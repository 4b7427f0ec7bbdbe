"""What the rest of the package may know of a model: its hidden states, its unembedding, its depth. One subclass per architecture."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lens_rnn.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBE_SHAPE = (2, 9)  # sequences × tokens of the input that an adapter checks itself on


class Forward(NamedTuple):
    """One pass of a model over a batch of tokens, in the model's own dtypes."""

    hidden_states: tuple[Tensor, ...]
    """One (batch, seq, d_model) per layer, exactly as transformers returns them in evaluation mode."""
    norm_input: Tensor
    """(batch, seq, d_model): what enters the final norm. A perfect translator maps every hidden state to it."""
    final: Tensor
    """(batch, seq, d_model): what leaves the final norm. The head applied to it gives the model's logits."""


class ModelAdapter(ABC):
    """A causal language model seen as a stack of blocks on a residual stream, followed by a final norm and a head.

    Subclasses name the parts; everything else is derived. `load_model` builds one and runs `check`.
    """

    states_after_blocks: ClassVar[bool]
    """Whether hidden_states[i] is the output of block i (the recurrent families) or its input (transformers)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, revision: str | None = None):
        self.model = model.eval().requires_grad_(False)
        self.revision = revision
        self._tokenizer = tokenizer
        self._tokenizer_trouble = "has no tokenizer beside it"

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
        return self.head.weight.dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            raise ModelError(f"{self.name} {self._tokenizer_trouble}; name one with --tokenizer")
        return self._tokenizer

    @property
    def trivial_layers(self) -> frozenset[int]:
        """Layers whose hidden state is already the final norm's input: KL is 0 with no translator, so none is fitted."""
        return frozenset({self.n_layers - 1}) if self.states_after_blocks else frozenset()

    @property
    def fitted_layers(self) -> tuple[int, ...]:
        """Layers that have something to fit."""
        return tuple(i for i in range(self.n_layers) if i not in self.trivial_layers)

    def depth(self, layer: int) -> float:
        """Fraction of the blocks that have been applied where hidden state `layer` is read: the x axis of every plot."""
        return (layer + self.states_after_blocks) / self.n_layers

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Forward:
        """Run the model without its head over input_ids (batch, seq)."""
        seen: list[Tensor] = []
        hook = self.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            output = self.model.base_model(input_ids, output_hidden_states=True, use_cache=False)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise ModelError(f"model type {self.model_type!r}: the final norm ran {len(seen)} times in one pass, not once")
        return Forward(tuple(output.hidden_states[: self.n_layers]), seen[0], output.last_hidden_state)

    def unembed(self, z: Tensor) -> Tensor:
        """Logits (…, vocab_size) of z (…, d_model), a state before the final norm, through the model's own norm and head."""
        return self.head(self.final_norm(z).to(self.head.weight.dtype))

    @torch.no_grad()
    def check(self) -> None:
        """Compare what this adapter declares with what the model does on a probe input.

        Raises ModelError, naming the model type and what disagreed.
        """

        def refuse(what: str) -> None:
            raise ModelError(f"model type {self.model_type!r} ({self.name}): {what}; its adapter does not fit this model")

        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocab_size, _PROBE_SHAPE, generator=generator).to(self.device)
        expected = self.model(ids, output_hidden_states=True, use_cache=True)
        got = self.forward(ids)
        shape = (*_PROBE_SHAPE, self.d_model)
        if len(expected.hidden_states) != self.n_layers + 1:
            refuse(f"{len(expected.hidden_states)} hidden states where {self.n_layers + 1} are declared")
        for i, (ours, theirs) in enumerate(zip(got.hidden_states, expected.hidden_states[:-1], strict=True)):
            if ours.shape != shape:
                refuse(f"hidden state {i} has shape {tuple(ours.shape)} where {shape} is declared")
            if not _agree(ours, theirs):
                refuse(f"hidden state {i} differs from the one transformers returns")
        if not _agree(self.unembed(got.norm_input), expected.logits):
            refuse("unembedding(final hidden state) does not reproduce the logits")
        if not _agree(self.head(got.final.to(self.dtype)), expected.logits):
            refuse("head(normed final hidden state) does not reproduce the logits")
        if self.trivial_layers and not torch.equal(got.hidden_states[-1], got.norm_input):
            refuse("the last hidden state is not the final norm's input")

    def shard(self) -> None:
        """Spread the blocks' weights over the processes of the default group (torch's fully_shard), gathered block by block.

        Norm and head are used through copies, so take those (lens_rnn.lens.Unembedding) first.
        """
        from torch.distributed.fsdp import fully_shard

        for block in self.blocks:
            fully_shard(block)
        fully_shard(self.model.base_model)


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same up to rounding in the coarser of their dtypes. NaN never agrees."""
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= 64 * eps * b.abs().max().clamp(min=1.0))


_REGISTRY: dict[str, type[ModelAdapter]] = {}


def register(*model_types: str) -> Callable[[type[ModelAdapter]], type[ModelAdapter]]:
    """Class decorator: use this adapter for models whose transformers `config.model_type` is one of `model_types`."""

    def add(cls: type[ModelAdapter]) -> type[ModelAdapter]:
        _REGISTRY.update(dict.fromkeys(model_types, cls))
        return cls

    return add


def known_architectures() -> list[str]:
    """Model types that load_model accepts."""
    return sorted(_REGISTRY)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, revision: str | None = None) -> ModelAdapter:
    """The checked adapter of a transformers model that is already in memory.

    Raises ModelError for an unknown architecture or a model that does not behave as its adapter declares.
    """
    adapter = _adapter_class(model.config.model_type)(model, tokenizer, revision)
    adapter.check()
    return adapter


def load_model(
    name_or_path: str | Path,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    tokenizer: str | Path | None = None,
    trust_remote_code: bool = False,
) -> ModelAdapter:
    """Load a causal language model from a folder or the Hub and return its checked adapter.

    dtype: torch dtype or its name; by default float32 on the CPU and the checkpoint's own dtype elsewhere.
    device: by default a GPU if there is one.
    tokenizer: folder or Hub name of another tokenizer than the model's own.

    Raises ModelError if the model cannot be found or read, lacks weights, has an unknown architecture, or fails its check.
    """
    name = str(name_or_path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    declared, _ = _load(name, "model", PreTrainedConfig.get_config_dict, revision=revision)
    if isinstance(declared, dict) and "model_type" in declared:
        _adapter_class(declared["model_type"])  # refused before transformers, which may not know it either, reads anything more
    config = _load(name, "model", AutoConfig.from_pretrained, **hub)
    model, report = _load(
        name,
        "model",
        AutoModelForCausalLM.from_pretrained,
        config=config,
        dtype=_resolve_dtype(dtype, device),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below by name
        **hub,
    )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelError(f"{name} lacks the weights of {_first(absent)}; the checkpoint is incomplete")
    misfits = sorted(f"{key} (stored {tuple(stored)}, config.json says {tuple(said)})" for key, stored, said in report["mismatched_keys"])
    if misfits:
        raise ModelError(f"{name} does not fit its config.json: {_first(misfits)}")
    text, trouble = (_load(str(tokenizer), "tokenizer", _read_tokenizer), "") if tokenizer else _own_tokenizer(name, hub)
    adapter = wrap_model(model.to(device), text, revision or getattr(config, "_commit_hash", None))
    adapter._tokenizer_trouble = trouble
    return adapter


def _adapter_class(model_type: str) -> type[ModelAdapter]:
    try:
        return _REGISTRY[model_type]
    except KeyError:
        raise ModelError(
            f"model type {model_type!r} is not supported (known: {', '.join(known_architectures())}); to add it, subclass "
            f"lens_rnn.models.ModelAdapter and decorate it with @lens_rnn.models.register({model_type!r})"
        ) from None


def _resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype or (torch.float32 if device.type == "cpu" else "auto")


def _load(name: str, what: str, loader: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a from_pretrained, turning each way in which it reports a missing or broken checkpoint into one line."""
    if (Path(name).is_absolute() or name.startswith(".")) and not Path(name).exists():
        raise ModelError(f"cannot load {what} {name}: there is no such folder")
    if Path(name).is_file():
        raise ModelError(f"cannot load {what} {name}: it is a file; name the folder that holds it")
    try:
        return loader(name, **kwargs)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        where = "from this folder" if Path(name).is_dir() else "(no such folder here, and the Hub did not give it)"
        raise ModelError(f"cannot load {what} {name} {where}: {_one_line(error)}") from error
    except Exception as error:  # safetensors and tokenizers raise their own types for a damaged file
        raise ModelError(f"cannot load {what} {name}: {type(error).__name__}: {_one_line(error)}") from error


def _read_tokenizer(name: str, **hub: Any) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        # from the model type alone transformers makes a tokenizer with no word in it, which would read every text as nothing
        raise FileNotFoundError("no tokenizer files")
    return tokenizer


def _own_tokenizer(name: str, hub: dict[str, Any]) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer beside a model, or None and what is wrong with it: a model is usable on token ids without one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read_tokenizer(name, **hub), ""
        except FileNotFoundError:
            return None, "has no tokenizer beside it"
        except Exception as error:  # the tokenizers package raises just this for a damaged file
            return None, f"has no usable tokenizer beside it ({_one_line(error)})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _first(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
