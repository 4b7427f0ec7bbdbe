"""A file of texts."""

from pathlib import Path

from tests.data.texts import TEXTS, write_jsonl

import pytest


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "texts.jsonl", TEXTS)
