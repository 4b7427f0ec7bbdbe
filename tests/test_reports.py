"""Reports come back as they were written, and what is no report is one line."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_rnn.errors import ArtifactError
from lens_rnn.intervals import Estimate
from lens_rnn.reports import read_report, to_json, write_report

import pytest


@dataclass(frozen=True, kw_only=True)
class Inner:
    spread: Estimate
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outer:
    by_step: Mapping[int, Inner]
    required: Inner | None
    about: Mapping[str, Any]
    name: str = "x"
    optional: Inner | None = None


INNER = Inner(spread=Estimate(0.5, 0.25, 0.75), values=(1.0, 2.5))
OUTER = Outer(by_step={1: INNER, 20: INNER}, required=None, about={"words": ["a"], "deep": {"b": 1}})


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", to_json(OUTER), 3)
    assert read_report(tmp_path / "r.json", Outer, 3) == OUTER
    content = json.loads((tmp_path / "r.json").read_text())
    assert list(content) == ["format", "by_step", "required", "about", "name"]  # what may be left out is
    assert list(content["by_step"]) == ["1", "20"]
    assert content["by_step"]["1"]["spread"] == {"value": 0.5, "low": 0.25, "high": 0.75}


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    content = to_json(Inner(spread=Estimate(math.nan, -math.inf, 1.0), values=()))
    assert content["spread"] == {"value": None, "low": None, "high": 1.0}
    write_report(tmp_path / "r.json", content, 1)
    assert math.isnan(read_report(tmp_path / "r.json", Inner, 1).spread.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"format": 2}, "format 2"),
        ({"format": "one"}, "format one"),
        ({"spread": {"value": 1, "low": 0}, "values": []}, "high"),
        ({"values": []}, "spread"),
        ({"spread": 3, "values": []}, "Inner"),
    ],
)
def test_another_format_and_a_damaged_file_are_one_line(content: dict, word: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=word) as error:
        read_report(tmp_path / "r.json", Inner, 1)
    assert "\n" not in str(error.value)


def test_a_key_that_no_field_has_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(
        '{"spread": {"value": 1, "low": 0, "high": 2, "width": 2}, "values": [], "more": 1}'
    )
    assert read_report(tmp_path / "r.json", Inner, 1).spread == Estimate(1, 0, 2)
