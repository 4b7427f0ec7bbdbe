"""Finding a model's tokenizer: the one that is named, or the one that lies beside the model."""

import logging
import warnings
from pathlib import Path
from typing import Any

from lens_rnn.errors import ModelError
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from lens_rnn.models.vocabularies import BYTES, WORLD_SIZES, hint
from lens_rnn.models.world_tokenizer import VOCABULARY_FILES, official_file, read_world_tokenizer

from transformers import AutoTokenizer, PreTrainedTokenizerBase

TokenizerOrReason = tuple[PreTrainedTokenizerBase | None, str]
"""A tokenizer, or None and what is wrong: a model is usable on token ids without one, so nothing is raised yet."""

NONE_BESIDE = "has no tokenizer beside it"

log = logging.getLogger(__name__)


def read_tokenizer(name: str, **hub: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name in transformers' layout, or of an rwkv_vocab_*.txt file or its folder.

    Raises FileNotFoundError if there is none, ModelError for a bad rwkv_vocab_*.txt, else what transformers raises.
    """
    if name.endswith(".txt") or any(Path(name).glob(VOCABULARY_FILES)):
        return read_world_tokenizer(name)
    tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        # from the model type alone transformers makes a tokenizer with no word in it, which reads every text as nothing
        raise FileNotFoundError("no tokenizer files")
    return tokenizer


def tokenizer_of_bytes(vocab_size: int) -> PreTrainedTokenizerBase:
    """The byte tokenizer of a model of vocab_size ids. The log says what it takes for the end of text.

    Raises ModelError for a size that is not of bytes.
    """
    tokenizer = byte_tokenizer(vocab_size)
    end = "id 256" if tokenizer.eos_token_id else "id 0, the byte NUL,"
    log.info("tokenizer %s: id i is byte i, and %s stands between documents", BYTES, end)
    if Path(BYTES).is_dir():
        log.info("the folder %s here is not read: --tokenizer ./%s would name it", BYTES, BYTES)
    return tokenizer


def check_ids(tokenizer: PreTrainedTokenizerBase, model: str, vocab_size: int) -> None:
    """Raises ModelError if a tokenizer gives ids beyond the vocab_size that the model has, naming one that fits."""
    if (highest := max(tokenizer.get_vocab().values())) >= vocab_size:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path} has ids up to {highest:,}, and {model} a vocabulary of "
            f"{vocab_size:,}; {hint(vocab_size)}"
        )


def own_tokenizer(name: str, hub: dict[str, Any]) -> TokenizerOrReason:
    """The tokenizer in the folder, or under the Hub name, of a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_tokenizer(name, **hub), ""
        except FileNotFoundError:
            return None, NONE_BESIDE
        except Exception as error:  # the tokenizers package raises just this for a damaged file
            return None, f"has no usable tokenizer beside it ({' '.join(str(error).split())[:300]})"


def tokenizer_beside(file: Path, vocab_size: int) -> TokenizerOrReason:
    """The tokenizer of an official RWKV file: what lies in its folder, else the World vocabulary if its size fits."""
    if (file.parent / "tokenizer.json").exists() or any(file.parent.glob(VOCABULARY_FILES)):
        return own_tokenizer(str(file.parent), {})
    world = official_file() if vocab_size in WORLD_SIZES else None
    return (None, NONE_BESIDE) if world is None else own_tokenizer(str(world), {})
