"""A file of texts."""

from pathlib import Path

from lens_rnn.data import file_source, splits
from tests.data.texts import TEXTS, write_jsonl

import pytest


@pytest.fixture
def by_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a hash holds out is enough, and not too much."""
    monkeypatch.setattr(splits, "ENOUGH", 0)
    monkeypatch.setattr(splits, "MOST_ONE_IN", 1)


@pytest.fixture
def large_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is taken for a large one, of which only the beginning is read."""
    monkeypatch.setattr(file_source, "_SMALL_BYTES", 0)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "texts.jsonl", TEXTS)
