"""Finding a model, in a folder or on the Hub, and handing it to its adapter. Each way in which that can fail is one line."""

import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lens_rnn.errors import ModelError
from lens_rnn.models.adapter import ModelAdapter, adapter_class

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger(__name__)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, revision: str | None = None) -> ModelAdapter:
    """The checked adapter of a transformers model that is already in memory.

    Raises ModelError for an unknown architecture or a model that does not behave as its adapter declares.
    """
    adapter = adapter_class(model.config.model_type)(model, tokenizer, revision)
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

    dtype: torch dtype or its name, or "auto", the checkpoint's own; by default float32 on the CPU and "auto" elsewhere.
    device: by default a GPU if there is one.
    tokenizer: folder or Hub name of another tokenizer than the model's own.

    Raises ModelError if the model cannot be found or read, lacks weights, has an unknown architecture, or fails its check.
    """
    name = str(name_or_path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    declared, _ = _load(name, "model", PreTrainedConfig.get_config_dict, revision=revision)
    if isinstance(declared, dict) and "model_type" in declared:
        adapter_class(declared["model_type"])  # refused before transformers, which may not know it either, reads anything more
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
    if unread := sorted(report["unexpected_keys"]):
        log.warning("%s holds weights that its config.json has no place for: %s", name, _first(unread))
    text, trouble = (_load(str(tokenizer), "tokenizer", _read_tokenizer), "") if tokenizer else _own_tokenizer(name, hub)
    adapter = wrap_model(model.to(device), text, revision or getattr(config, "_commit_hash", None))
    adapter._tokenizer_trouble = trouble
    return adapter


def _resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    if isinstance(dtype, str) and dtype != "auto":
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
