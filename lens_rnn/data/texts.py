"""Texts out of files: lines of JSON, plain or compressed, and .txt files in pieces. Every fault is one line."""

import json
from collections.abc import Iterator
from pathlib import Path

from lens_rnn.errors import DataError

import zstandard

SUFFIXES = (".jsonl", ".jsonl.zst", ".txt")

_TXT_PIECE = 32_768  # characters that are tokenised together
_CHUNK = 2**20  # bytes of a compressed file read at a time


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain or zstd-compressed file. Raises ZstdError for compressed data that are damaged or stop inside a
    frame."""
    with path.open("rb") as file:
        if path.suffix != ".zst":
            yield from file
            return
        rest = b""
        frame = None  # zstandard's own reader takes a truncated file for a shorter one, so frames are followed here
        while chunk := file.read(_CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                *whole, rest = (rest + frame.decompress(chunk)).split(b"\n")
                yield from whole
                chunk = b""
                if frame.eof:
                    chunk, frame = frame.unused_data, None
        if frame is not None:
            raise zstandard.ZstdError("the file ends before its data do")
        if rest:
            yield rest


def json_lines(path: Path, text_field: str) -> Iterator[str]:
    """The texts of a file of JSON records, one a line. Raises DataError, with the line, for what is no such record."""
    number = 0
    try:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            record = json.loads(line.decode("utf-8"))
            text = record.get(text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: no text in the field {text_field!r}")
            yield text
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: damaged zstd data after line {number} ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:  # numbers too long or nesting too deep for Python's reader
        raise DataError(f"{path}, line {number}: not readable as JSON ({error})") from error


def txt_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces that end at a line end. Raises DataError if it is not UTF-8."""
    try:
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(_TXT_PIECE):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})") from error
