"""Pairs of texts to patch between: read from a file, or made for a demonstration on a model of Python code."""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.models import ModelAdapter
from lens_rnn.views.patching import Pair

_FIELDS = ("clean", "corrupted", "answer", "foil")


class PairTexts(NamedTuple):
    """A pair in words."""

    clean: str
    corrupted: str
    answer: str
    foil: str


NAMES = ("name", "value", "path", "key", "data", "line", "result", "text", "file", "index")
_ROWS = ("1, 2, 3", "2, 4, 6", "1, 3, 2", "3, 2, 1", "4, 1, 2", "5, 6, 7", "2, 3, 5", "6, 1, 4")


def _identifiers() -> Iterator[PairTexts]:
    """A parameter that is named once, and asked for in the next line."""
    for asked, other in (*pairwise(NAMES), (NAMES[-1], NAMES[0])):
        clean, corrupted = (f"def check(self, {name}):\n    if not" for name in (asked, other))
        yield PairTexts(clean, corrupted, f" {asked}", f" {other}")


def _brackets() -> Iterator[PairTexts]:
    """Which kind of bracket is open."""
    for row in _ROWS:
        yield PairTexts(f"    y = [{row}", f"    y = ({row}", "]", ")")


DEMONSTRATIONS: Mapping[str, tuple[PairTexts, ...]] = MappingProxyType(
    {"identifier": tuple(_identifiers()), "bracket": tuple(_brackets())}
)


def read_pairs(path: Path) -> list[PairTexts]:
    """Pairs in a file of JSON lines with the fields clean, corrupted, answer and foil. Raises DataError for what is
    none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the pairs {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) and row[name] for name in _FIELDS):
            raise DataError(f"{path}, line {number}: a pair is JSON with texts as {', '.join(_FIELDS)}")
        pairs.append(PairTexts(*(row[name] for name in _FIELDS)))
    if not pairs:
        raise DataError(f"there is no pair in {path}")
    return pairs


def tokenised(adapter: ModelAdapter, pair: PairTexts) -> Pair:
    """A pair as the model reads it. Raises ConfigError where answer or foil is not one token."""
    answer, foil = (one_token(adapter, text) for text in (pair.answer, pair.foil))
    return Pair(clean=pair.clean, corrupted=pair.corrupted, answer=answer, foil=foil)


def one_token(adapter: ModelAdapter, text: str) -> int:
    """The id of a text of one token. Raises ConfigError for others."""
    ids = adapter.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(f"{text!r} is {len(ids)} tokens to {adapter.name}; give answers and foils of one token each")
    return int(ids[0])
