"""Finding a model, in a folder or on the Hub, and handing it to its adapter. Each way in which that can fail is one
line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lens_rnn import versions
from lens_rnn.errors import ModelError
from lens_rnn.models.adapter import ModelAdapter
from lens_rnn.models.check import check
from lens_rnn.models.generic import GenericAdapter
from lens_rnn.models.native import is_native_config, read_rwkv4, read_state_spaces
from lens_rnn.models.registry import adapter_class, known_architectures
from lens_rnn.models.rwkv_files import SUFFIXES, read_rwkv, version_of
from lens_rnn.models.supported import supported
from lens_rnn.models.tokenizers import own_tokenizer, read_tokenizer, tokenizer_beside, tokenizer_of_bytes
from lens_rnn.models.vocabularies import BYTES
from lens_rnn.models.weights import listed, read_weights

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger(__name__)


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, revision: str | None = None
) -> ModelAdapter:
    """The checked adapter of a causal language model that is already in memory: its family's, or one whose parts are
    found by watching it.

    Raises ModelError for a model that cannot be taken apart or does not behave as its adapter declares.
    """
    kind = adapter_class(model.config.model_type) or GenericAdapter
    adapter = kind(model, tokenizer, revision)
    check(adapter)
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
    """Load a causal language model and return its checked adapter.

    name_or_path: a folder or a Hub name, in the layout of transformers or of mamba_ssm (state-spaces/mamba-130m); or an
    official RWKV file, .pth or .safetensors, here or on the Hub as OWNER/REPOSITORY/FILE.
    dtype: torch dtype or its name, or "auto", the checkpoint's own; by default float32 on the CPU and "auto" elsewhere.
    device: by default a GPU if there is one.
    tokenizer: folder or Hub name of another tokenizer than the model's own, or an rwkv_vocab_*.txt file. Or "bytes",
    made here for models of 256 to 260 ids: a text ends in id 256 or, of 256 ids, in id 0. A folder of that name is
    "./bytes", or a Path.

    Raises ModelError if the model cannot be found or read, lacks weights, has an unknown architecture, or fails its
    check, and if the tokenizer that is named cannot be read or made.
    """
    name = _expanded(str(name_or_path))
    device = _resolve_device(device)
    wanted = _resolve_dtype(dtype, device)
    stored = None if wanted == "auto" else wanted
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model: PreTrainedModel
    if file := _rwkv_file(name, revision):
        model, commit = _read_file(file, name, stored), _commit_of(file)
    else:
        declared, _ = _load(name, "model", PreTrainedConfig.get_config_dict, revision=revision)
        native = is_native_config(declared)
        model, commit = (
            _read_native(name, stored, revision) if native else _read_pretrained(name, declared, wanted, device, hub)
        )
    text: PreTrainedTokenizerBase | None
    trouble = ""
    if tokenizer == BYTES:
        text = tokenizer_of_bytes(_vocab_size(model))
    elif tokenizer:
        text = _load(_expanded(str(tokenizer)), "tokenizer", read_tokenizer, trust_remote_code=trust_remote_code)
    elif file:
        text, trouble = tokenizer_beside(file, _vocab_size(model))
    else:
        text, trouble = own_tokenizer(name, hub)
    if not getattr(model, "is_quantized", False):  # quantised weights lie where they were loaded to
        torch.nn.Module.to(model, device)
    adapter = wrap_model(model, text, commit)
    adapter.tokenizer_trouble = trouble
    return adapter


def _read_pretrained(
    name: str, declared: Any, dtype: Any, device: torch.device, hub: dict[str, Any]
) -> tuple[PreTrainedModel, str | None]:
    """A model in the layout of transformers, and the commit that the Hub gave."""
    if isinstance(declared, dict) and not hub["trust_remote_code"]:
        _refuse_unknown(name, declared)
    config = _load(name, "model", AutoConfig.from_pretrained, **hub)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "auto_map", None):
        raise ModelError(
            f"model type {config.model_type!r} of {name} is no causal language model: it predicts no next token from "
            "those before"
        )
    quantised = isinstance(declared, dict) and "quantization_config" in declared
    placed = (
        {"device_map": {"": device}} if quantised else {}
    )  # the libraries of quantisation do not move weights afterwards
    model, report = _load(
        name,
        "model",
        AutoModelForCausalLM.from_pretrained,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below by name
        **placed,
        **hub,
    )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelError(f"{name} lacks the weights of {listed(absent)}; the checkpoint is incomplete")
    misfits = sorted(
        f"{key} (stored {tuple(stored)}, config.json says {tuple(expected)})"
        for key, stored, expected in report["mismatched_keys"]
    )
    if misfits:
        raise ModelError(f"{name} does not fit its config.json: {listed(misfits)}")
    if unread := sorted(report["unexpected_keys"]):
        log.warning("%s holds weights that its config.json has no place for: %s", name, listed(unread))
    return model, None if Path(name).is_dir() else hub["revision"] or getattr(config, "_commit_hash", None)


def _refuse_unknown(name: str, declared: dict[str, Any]) -> None:
    """Refuse what only code beside the weights can run, or nothing here, before anything more is read."""
    model_type = declared.get("model_type")
    if model_type is None or model_type in CONFIG_MAPPING or model_type in known_architectures():
        return
    if declared.get("auto_map"):
        raise ModelError(
            f"model type {model_type!r} of {name} is run by code that lies beside its weights; read that code, and "
            "give "
            "--trust-remote-code if you trust it"
        )
    since = next((f": it came with {family.since}" for family in supported() if model_type in family.model_types), "")
    raise ModelError(
        f"model type {model_type!r} of {name} is unknown to the installed "
        f"{versions.describe('transformers')}{since}; a newer one may "
        "have it"
    )


def _read_native(name: str, dtype: torch.dtype | None, revision: str | None) -> tuple[PreTrainedModel, str | None]:
    """A model in the layout of mamba_ssm, and the commit that the Hub gave."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(
            _load(
                name, "model", snapshot_download, revision=revision, allow_patterns=["*.json", "*.bin", "*.safetensors"]
            )
        )
    model = read_state_spaces(folder, dtype)
    model.config.name_or_path = name
    return model, None if folder == Path(name) else folder.name


def _rwkv_file(name: str, revision: str | None) -> Path | None:
    """The official RWKV file that a name means: a file, a folder with one .pth and no config.json, or
    OWNER/REPOSITORY/FILE on the Hub."""
    path = Path(name)
    if path.is_file() and path.suffix in SUFFIXES:
        if (path.parent / "config.json").exists() and path.suffix == ".safetensors":
            raise ModelError(
                f"{path} belongs to the model of its folder, whose config.json lies beside it; name the folder"
            )
        return path
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and f.is_file())
        if len(files) > 1:
            raise ModelError(
                f"the folder {path} holds {len(files)} files of weights; name one of them: "
                f"{listed([f.name for f in files])}"
            )
        return files[0] if files else None
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if path.exists() or path.is_absolute() or name.startswith(".") or not file or path.suffix not in SUFFIXES:
        return None
    from huggingface_hub import hf_hub_download

    def fetch(_: str) -> str:
        return str(hf_hub_download(f"{owner}/{repository}", file, revision=revision))

    return Path(_load(name, "model", fetch))


def _commit_of(file: Path) -> str | None:
    """The commit of a file that lies in the cache of the Hub."""
    parts = file.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-2] else None


def _read_file(file: Path, name: str, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model in an official RWKV file of any version."""
    weights = read_weights(file)
    version = version_of(weights, str(file))
    model = (
        read_rwkv4(weights, dtype=dtype, where=str(file)) if version == "4" else read_rwkv(weights, str(file), dtype)
    )
    model.config.name_or_path = name
    return model


def _vocab_size(model: PreTrainedModel) -> int:
    """Rows of a model's head, as ModelAdapter.vocab_size; what its configuration says where it names no head."""
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def _resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | Literal["auto"]:
    dtype = dtype or ("float32" if device.type == "cpu" else "auto")
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype == "auto":
        return "auto"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _resolve_device(device: torch.device | str | None) -> torch.device:
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch that was built without it
        raise ModelError(
            f"the device {str(device)!r} cannot be used here ({_one_line(error)}); choose cpu or cuda"
        ) from None
    return chosen


def _expanded(name: str) -> str:
    """A name that starts with ~ with the home folder in its place. Raises ModelError for an empty one."""
    if not name:
        raise ModelError("the name of a model or tokenizer is empty; give a folder, a file or a name on the Hub")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _load(name: str, kind: str, loader: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a from_pretrained, turning each way in which it reports a missing or broken checkpoint into one line."""
    if (Path(name).is_absolute() or name.startswith(".")) and not Path(name).exists():
        raise ModelError(f"cannot load {kind} {name}: there is no such file or folder")
    if Path(name).is_file() and not (kind == "tokenizer" and name.endswith(".txt")):
        raise ModelError(f"cannot load {kind} {name}: it is a file; name the folder that holds it")
    try:
        return loader(name, **kwargs)
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        where = (
            "from this folder" if Path(name).is_dir() else "(no such file or folder here, and the Hub did not give it)"
        )
        hint = "; an official RWKV file is named as OWNER/REPOSITORY/FILE.pth" if "model_type" in str(error) else ""
        raise ModelError(f"cannot load {kind} {name} {where}: {_one_line(error)}{hint}") from error
    except Exception as error:  # safetensors and tokenizers raise their own types for a damaged file
        raise ModelError(f"cannot load {kind} {name}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
