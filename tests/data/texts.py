"""Texts, their halves of the split, and what is done with them in all tests of data."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lens_rnn.data import DataConfig, Role, Source, is_held_out
from lens_rnn.errors import DataError
from tests import refusals

TEXTS = [f"Document {i}: {'grüße, ' * (i % 7)}{'x' * (i % 13)}\n" for i in range(300)]
HELD_OUT = [text for text in TEXTS if is_held_out(text)]
FITTED = [text for text in TEXTS if not is_held_out(text)]
refusal = partial(refusals.refusal, kind=DataError)


def write_jsonl(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({field: text, "meta": {"n": i}}) + "\n" for i, text in enumerate(texts)), encoding="utf-8"
    )
    return path


def config(path: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(data=str(path), **{"seq_len": 16, **settings})


def texts_of(source: Source, role: Role) -> list[str]:
    return [document.text for document in source.documents(role)]
