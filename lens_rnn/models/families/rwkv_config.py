"""The sizes of an RWKV-5, 6 or 7."""

from typing import Any

from lens_rnn.errors import ConfigError

from transformers import PreTrainedConfig

MODEL_TYPE = "rwkv_official"
VERSIONS = ("5.0", "5.1", "5.2", "6", "7")


class RWKVConfig(PreTrainedConfig):
    """Sizes of an RWKV-5, 6 or 7. `lora` has the inner width of each LoRA, by the name of its matrices."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        version: str = "7",
        vocab_size: int = 65536,
        hidden_size: int = 768,
        attention_size: int = 768,
        head_size: int = 64,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        lora: dict[str, int] | None = None,
        group_norm_eps: float = 64e-5,
        layer_norm_eps: float = 1e-5,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ):
        if version not in VERSIONS:
            raise ConfigError(f"RWKV version {version!r} is unknown; choose from {', '.join(VERSIONS)}")
        self.version = version
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.attention_size = attention_size
        self.head_size = head_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.lora = lora or {}
        self.group_norm_eps = group_norm_eps
        self.layer_norm_eps = layer_norm_eps
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def heads(self) -> int:
        return int(self.attention_size // self.head_size)
