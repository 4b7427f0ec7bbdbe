"""Quirky sets are read with care, from files and from the Hub."""

import json
from dataclasses import asdict
from pathlib import Path

from lens_rnn.elk.files import load
from lens_rnn.elk.generators import generate
from lens_rnn.elk.quirky import QuirkySet
from lens_rnn.errors import DataError
from tests.elk.rows import write_set

import pytest


def test_a_folder_whose_prompts_are_written_already(tmp_path: Path) -> None:
    made = load(write_set(tmp_path / "made", 8), {"train": 4})
    assert made.name == "made"
    assert {split: len(rows) for split, rows in made.splits.items()} == {"train": 4, "validation": 16, "test": 16}
    assert made.rows("test")[0].template_args["choices"] == ("F", "T")
    with pytest.raises(DataError, match="dev"):
        made.rows("dev")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_what_ends_a_line_for_python_and_not_for_json_stays_within_its_row(mark: str, tmp_path: Path) -> None:
    row = asdict(generate("addition", {"test": 4}).splits["test"][0])
    row["template_args"]["note"] = f"one{mark}two"
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "test.jsonl").write_text(f"{line}\n{line}", encoding="utf-8")
    rows = load(tmp_path).rows("test")
    assert [loaded.template_args["note"] for loaded in rows] == [f"one{mark}two"] * 2


def damaged(change: dict | None, drop: str = "") -> str:
    row = asdict(generate("addition", {"test": 4}).splits["test"][0])
    row |= change or {}
    row.pop(drop, None)
    return json.dumps(row)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (damaged(None, "alice_label"), "alice_label"),
        (damaged(None, "template_args"), "template_args"),
        (damaged({"character": "Carol"}), "Carol"),
        (damaged({"label": True, "alice_label": False, "bob_label": False}), "Alice's own"),
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is not an object"),
    ],
)
def test_a_damaged_file_is_one_line(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=words) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_where_a_set_is_looked_for(tmp_path: Path, test_data: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="several quirky sets"):
        load(test_data / "elk")
    with pytest.raises(DataError, match="poetry"):
        load("hub:poetry")


@pytest.mark.parametrize(
    ("name", "asked"), [("hub:sciq", "EleutherAI/quirky_sciq_raw"), ("someone/quirky_birds", "someone/quirky_birds")]
)
def test_the_hub(name: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real library, but for its last step."""
    from datasets import Dataset, DatasetDict

    made = generate("addition", {"train": 4, "test": 4})

    def load_dataset(path: str) -> DatasetDict:
        assert path == asked
        return DatasetDict(
            {split: Dataset.from_list([asdict(row) for row in rows]) for split, rows in made.splits.items()}
        )

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load(name) == QuirkySet("sciq" if name == "hub:sciq" else "birds", made.splits)


def test_the_hub_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str) -> None:
        raise ConnectionError("offline\nnow")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match="offline now"):
        load("hub:nli")
