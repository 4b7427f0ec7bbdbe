"""Text sources to packed blocks of tokens on disk.

source (python-stdlib | files | Hub data set)  →  documents  →  one half of a fixed split  →  tokens  →  blocks
"""

from lens_rnn.data.packing import (
    DEFAULT_EVAL_TOKENS,
    DEFAULT_FIT_TOKENS,
    TokenBlocks,
    cache_folder,
    load_blocks,
    tokenizer_sha256,
    unigram_cross_entropy,
)
from lens_rnn.data.sources import (
    HELD_OUT_ONE_IN,
    STDLIB,
    DataConfig,
    Document,
    FileSource,
    HubSource,
    Role,
    Source,
    StdlibSource,
    is_held_out,
    open_source,
)

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
