"""Text sources to packed blocks of tokens on disk.

source (python-stdlib | files | Hub data set)  →  documents  →  one half of a split  →  tokens  →  blocks
"""

from lens_rnn.data.blocks import TokenBlocks, unigram_cross_entropy
from lens_rnn.data.config import STDLIB, DataConfig, Role
from lens_rnn.data.documents import Document, Source
from lens_rnn.data.file_source import FileSource
from lens_rnn.data.packing import (
    DEFAULT_EVAL_TOKENS,
    DEFAULT_FIT_TOKENS,
    cache_folder,
    load_blocks,
    tokenizer_sha256,
)
from lens_rnn.data.sources import HubSource, StdlibSource, open_source
from lens_rnn.data.splits import HELD_OUT_ONE_IN, is_held_out

__all__ = [
    "DEFAULT_EVAL_TOKENS",
    "DEFAULT_FIT_TOKENS",
    "HELD_OUT_ONE_IN",
    "STDLIB",
    "DataConfig",
    "Document",
    "FileSource",
    "HubSource",
    "Role",
    "Source",
    "StdlibSource",
    "TokenBlocks",
    "cache_folder",
    "is_held_out",
    "load_blocks",
    "open_source",
    "tokenizer_sha256",
    "unigram_cross_entropy",
]
