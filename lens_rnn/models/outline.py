"""A model without its weights, from its configuration alone: enough to plan with."""

from pathlib import Path

from lens_rnn.errors import ModelError
from lens_rnn.models.adapter import ModelAdapter
from lens_rnn.models.generic import GenericAdapter
from lens_rnn.models.registry import adapter_class
from lens_rnn.models.tokenizers import own_tokenizer, read_tokenizer, tokenizer_of_bytes
from lens_rnn.models.vocabularies import BYTES

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def has_weights_here(name: str, revision: str | None = None) -> bool:
    """Whether the weights of a model lie on this machine: in the folder of that name, or in the cache of the Hub. True
    for what is no folder and no name of a repository, such as an RWKV file: only loading tells."""
    path = Path(name).expanduser()
    if path.is_dir():
        return not (path / "config.json").exists() or any(
            file.suffix in (".safetensors", ".bin") for file in path.iterdir()
        )
    if path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        return True
    cached = (try_to_load_from_cache(name, file, revision=revision) for file in _WEIGHTS)
    return any(isinstance(file, str) for file in cached)


def outline_model(
    name: str,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    *,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> ModelAdapter:
    """The adapter of a model in the layout of transformers whose tensors have shapes and no values. It is not checked,
    and computes nothing.

    dtype: by default the configuration's own. Raises ModelError if configuration or tokenizer cannot be read, or if the
    parts of such a model are found only by running it.
    """
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **hub)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype or torch.float32, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers raises a dozen types for what it cannot read
        raise ModelError(f"cannot plan {name} from its configuration: {' '.join(str(error).split())[:300]}") from error
    model.config.name_or_path = name
    text: PreTrainedTokenizerBase | None
    trouble = ""
    if tokenizer == BYTES:
        text = tokenizer_of_bytes(int(config.get_text_config().vocab_size))
    elif tokenizer:
        text = read_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    else:
        text, trouble = own_tokenizer(name, hub)
    try:
        adapter = (adapter_class(config.model_type) or GenericAdapter)(model, text, revision)
        adapter.forward(torch.zeros(1, 2, dtype=torch.long, device="meta"))
    except Exception as error:  # whatever a model does with tensors that have no values
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name} cannot be planned without its weights: {reason}") from error
    adapter.tokenizer_trouble = trouble
    return adapter
