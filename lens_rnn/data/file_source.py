"""A .jsonl, .jsonl.zst or .txt file in the Pile's record format, or a folder of such files, as a source."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lens_rnn.data.config import Role
from lens_rnn.data.documents import Document, Source
from lens_rnn.data.splits import BY_HASH, Piece, Split, choose_split, texts_of_half
from lens_rnn.data.texts import SUFFIXES, json_lines, txt_pieces
from lens_rnn.errors import DataError

_SMALL_BYTES = 2**24  # of files that are packed whole, in about ten seconds


class FileSource(Source):
    """Files of JSON records, each a document, and .txt files, each a document.

    Of a small source, and of .txt files, the sizes of all documents are known before it is decided what is held out.
    Large files of records are read no further than is needed, so there a hash of each alone decides.
    """

    def __init__(self, path: Path, text_field: str = "text"):
        self.name = str(path)
        self.text_field = text_field
        if not path.exists():
            raise DataError(f"no such data file or folder: {path}")
        self.paths = (
            sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file()) if path.is_dir() else [path]
        )
        if not self.paths:
            raise DataError(f"the folder {path} holds no {', '.join(SUFFIXES)} file")
        if not self.paths[0].name.endswith(SUFFIXES):
            raise DataError(f"cannot read {path}: its name must end in {', '.join(SUFFIXES)}")
        self.is_small = sum(p.stat().st_size for p in self.paths) <= _SMALL_BYTES

    @cached_property
    def split(self) -> Split:  # reads everything
        if self.is_small or all(path.suffix == ".txt" for path in self.paths):
            return choose_split(self._pieces())
        return BY_HASH

    def identity(self, _: Role | None) -> dict[str, Any]:
        stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return {"files": stats, "text_field": self.text_field}

    def documents(self, role: Role | None) -> Iterator[Document]:
        if role is None:
            yield from (Document(piece.text, piece.text) for piece in self._pieces() if piece.text)
        else:
            yield from (Document(text, text) for text in texts_of_half(self._pieces(), self.split, role))

    def _pieces(self) -> Iterator[Piece]:
        number = 0
        for path in self.paths:
            is_txt = path.suffix == ".txt"
            for text in txt_pieces(path) if is_txt else json_lines(path, self.text_field):
                yield Piece(number, text)
                number += not is_txt
            number += is_txt
