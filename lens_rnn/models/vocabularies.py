"""Which tokenizer fits a model, told by the size of its vocabulary, so that an error can name one."""

BYTES = "bytes"
"""What `--tokenizer` calls the tokenizer of `lens_rnn.models.byte_tokenizer`."""

BYTE_SIZES = range(256, 261)
WORLD_SIZES = range(65_530, 65_537)
"""Ids of a model of the World vocabulary, whose file holds ids 1 to 65,529; official models round up to 65,536."""

WORLD_FILE = "rwkv_vocab_v20230424.txt"

# Models have as many ids as the tokenizer, or more: up to a multiple of 8 to 512. The last of the Pile's is Pythia-12B.
_NAMED = {
    BYTES: BYTE_SIZES,
    "openai-community/gpt2": range(50_257, 50_265),
    "EleutherAI/gpt-neox-20b": range(50_277, 50_689),
}


def hint(vocab_size: int) -> str:
    """What to do for a model without its tokenizer, as the end of an error. It names none if the size suggests none."""
    if vocab_size in WORLD_SIZES:
        brought = f"pip install 'lens-rnn[rwkv]', or name {WORLD_FILE} with --tokenizer"
        return f"its {vocab_size:,} ids fit RWKV's World vocabulary: {brought}"
    for name, sizes in _NAMED.items():
        if vocab_size in sizes:
            return f"--tokenizer {name} fits its {vocab_size:,} ids"
    return "name one with --tokenizer"
