"""The tokenizer of models that read bytes: id i is byte i of a text's UTF-8. Made here, without a file or the Hub."""

from lens_rnn.errors import ModelError
from lens_rnn.models.vocabularies import BYTE_SIZES, BYTES, hint

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

END_OF_TEXT = "<|endoftext|>"


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer for a model of vocab_size ids, from 256 to 260. A text is its bytes, and nothing is added to them.

    What stands between documents, and pads, is id 256 or, where the model has only 256 ids, id 0: byte NUL, which text
    hardly holds. Ids from 257 stand for nothing, and decode to nothing. No text becomes the end of text, whatever it
    spells, except that with 256 ids a NUL is the same id. Bytes that are no UTF-8 decode to U+FFFD.

    A token's string is the letter that GPT-2's tokenizer writes for the byte.

    Raises ModelError, naming the size, for any other number of ids.
    """
    if vocab_size not in BYTE_SIZES:
        for_whom = f"--tokenizer {BYTES} is for models of {BYTE_SIZES[0]} to {BYTE_SIZES[-1]} ids"
        raise ModelError(f"{for_whom}, and this one has {vocab_size:,}; {hint(vocab_size)}")
    letters = bytes_to_unicode()
    ids = {letter: byte for byte, letter in letters.items()}
    end = letters[0]
    if vocab_size > len(letters):
        end = END_OF_TEXT
        ids[end] = len(letters)
    backend = Tokenizer(models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=BYTES,
        eos_token=end,
        pad_token=end,
        split_special_tokens=True,  # the letter or "<|endoftext|>" in a text is characters like any others
    )
