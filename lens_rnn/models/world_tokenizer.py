"""The RWKV "World" tokenizer: greedy longest match of a text's UTF-8 bytes against the entries of a vocabulary file.

Each line of the file (rwkv_vocab_v20230424.txt) is `id literal length`: a number from 1, a Python literal of type str
or bytes, and the length of its UTF-8 bytes. Id 0 is the end of text and is not in the file. The file may leave out any
other id too: no text becomes it, and where a model predicts it there is no token (None) and it decodes to nothing, as
with transformers' fast tokenizers.
"""

import ast
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lens_rnn.errors import ModelError
from lens_rnn.files import write_text
from lens_rnn.models.vocabularies import WORLD_FILE

from transformers import AddedToken, PreTrainedTokenizer

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_FILES = "rwkv_vocab_*.txt"

_PREFIX = 5  # bytes that decide which lengths are tried: 4 is faster on Chinese and slower on English, 6 the reverse
_SHORT = tuple(range(_PREFIX - 1, 0, -1))


class WorldTokenizer(PreTrainedTokenizer):
    """Bytes to ids as in the `rwkv` package: at each byte, the longest entry that the text goes on with.

    A token's string, where transformers wants one, is its bytes decoded as Latin-1, so that any bytes have one: the
    token of "é" is "Ã©". No text becomes a special token: the end of text, id 0, which is also the padding, is an id
    that only programs write.
    """

    def __init__(self, entries: Mapping[int, bytes], name_or_path: str | Path = ""):
        """entries: the bytes of each id, all different, not empty, and none for id 0. name_or_path: where they are
        from."""
        self._tokens = {index: entry.decode("latin-1") for index, entry in entries.items()}
        self._ids = {token: index for index, token in self._tokens.items()}
        self._entries = frozenset(entries.values())
        self._lengths = _lengths_by_prefix(self._entries)
        super().__init__(
            name_or_path=str(name_or_path),
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            added_tokens_decoder={0: AddedToken(END_OF_TEXT, special=True, normalized=False)},
            split_special_tokens=True,  # "<|endoftext|>" in a text is 13 characters like any others
        )

    @property
    def vocab_size(self) -> int:
        """Number of entries, without the end of text; len() counts it."""
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        """The id of each token's string, the end of text included."""
        return self._ids | self._added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        data = text.encode()
        matches = []
        at = 0
        while at < len(data):
            for length in self._lengths.get(data[at : at + _PREFIX], _SHORT):
                entry = data[
                    at : at + length
                ]  # shorter than `length` at the end of the data, where it is all that is left
                if entry in self._entries:
                    matches.append(entry)
                    at += length
                    break
            else:
                raise ModelError(
                    f"the vocabulary {self.name_or_path} has no entry for byte 0x{data[at]:02X} of a text; "
                    "name one that has all 256 bytes with --tokenizer"
                )
        return [entry.decode("latin-1") for entry in matches]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> Any:
        # A model has more outputs than the vocabulary has entries: 65,536 and 65,529. The rest stand for no bytes.
        return self._tokens.get(index)

    def convert_tokens_to_string(self, tokens: Any) -> str:
        """The text of the tokens' bytes together; bytes that are no UTF-8 become U+FFFD, and ids that have no token
        nothing."""
        return "".join(filter(None, tokens or ())).encode("latin-1").decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary under its own name, led by `rwkv_vocab_` if it is not, so that its folder can be read.
        Returns its path."""
        own = Path(self.name_or_path)
        name = own.name if own.match(VOCABULARY_FILES) else f"rwkv_vocab_{own.stem}.txt"
        path = Path(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        lines = (f"{index} {_literal(token.encode('latin-1'))} {len(token)}\n" for index, token in self._tokens.items())
        write_text(path, "".join(lines))
        return (str(path),)


def _lengths_by_prefix(entries: frozenset[bytes]) -> dict[bytes, tuple[int, ...]]:
    """Of the first bytes of the long entries: the lengths worth trying where they occur, longest first. Elsewhere,
    _SHORT are."""
    lengths: dict[bytes, set[int]] = defaultdict(set)
    for entry in entries:
        if len(entry) >= _PREFIX:
            lengths[entry[:_PREFIX]].add(len(entry))
    return {prefix: (*sorted(some, reverse=True), *_SHORT) for prefix, some in lengths.items()}


def read_world_tokenizer(path: str | Path | None) -> WorldTokenizer:
    """The tokenizer of a vocabulary file, of a folder that holds one named rwkv_vocab_*.txt, or, for None, of the
    `rwkv` package's.

    The file is only read: unlike that package's own reader, this one runs no expression in it.

    Raises ModelError if there is no such file, or naming the first line that is malformed.
    """
    file = official_file() if path is None else Path(path)
    if file is None:
        raise ModelError(
            f"the World vocabulary is not installed: pip install 'lens-rnn[rwkv]', or name {WORLD_FILE} with "
            "--tokenizer"
        )
    if file.is_dir():
        held = sorted(file.glob(VOCABULARY_FILES))
        if len(held) != 1:
            count = f"{len(held)} files" if held else "no file"
            raise ModelError(
                f"the folder {file} holds {count} named {VOCABULARY_FILES}; name the vocabulary file itself"
            )
        file = held[0]
    return WorldTokenizer(_read_entries(file), file)


def official_file() -> Path | None:
    """The vocabulary file of the `rwkv` package, where that is installed."""
    spec = find_spec("rwkv")  # does not import it: its __init__ is not ours to run
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder, WORLD_FILE)).is_file():
            return file
    return None


def _read_entries(path: Path) -> dict[int, bytes]:
    """The bytes of each id of a vocabulary file. Raises ModelError."""
    entries: dict[int, bytes] = {}
    known: set[bytes] = set()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    index, entry = _parse(line.removesuffix("\n"))
                    if index in entries:
                        raise ValueError(f"id {index} occurs a second time")
                    if entry in known:  # its string would stand for two ids
                        raise ValueError(f"the entry {_literal(entry)} occurs a second time")
                except ValueError as error:
                    raise ModelError(
                        f"{path}, line {number}: {error}; write each line as `id literal length`"
                    ) from None
                entries[index] = entry
                known.add(entry)
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text, so no vocabulary; name a file like {WORLD_FILE}") from error
    except OSError as error:
        raise ModelError(
            f"cannot read the vocabulary {path}: {error.strerror}; name a file like {WORLD_FILE}"
        ) from error
    if not entries:
        raise ModelError(f"the vocabulary {path} is empty; name a file like {WORLD_FILE}")
    return entries


def _parse(line: str) -> tuple[int, bytes]:
    """Id and bytes of a line of a vocabulary file. Raises ValueError, saying what is wrong with it."""
    number, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    if not (number.isdecimal() and len(number) < 10 and int(number) > 0):
        raise ValueError(f"{number[:40]!r} is no id from 1 (0 is the end of text)")
    try:
        value = ast.literal_eval(literal)
        entry = value.encode() if isinstance(value, str) else value
    except (
        ValueError,
        SyntaxError,
        TypeError,
        MemoryError,
        RecursionError,
    ):  # all that ast.literal_eval is documented to raise
        entry = None
    if not isinstance(entry, bytes):
        raise ValueError(f"{literal[:40]!r} is no string or bytes literal of Python")
    if length != str(len(entry)) or not entry:
        raise ValueError(
            f"the length {length[:40]!r} is given for {len(entry)} bytes" if entry else "the entry is empty"
        )
    if entry == END_OF_TEXT.encode():  # its string would stand for two ids
        raise ValueError(f"{END_OF_TEXT} is what id 0 is called here, so no entry can be")
    return int(number), entry


def _literal(entry: bytes) -> str:
    """A Python literal of type str, or of type bytes where they are no UTF-8, as in the official file."""
    try:
        return repr(entry.decode())
    except UnicodeDecodeError:
        return repr(entry)
