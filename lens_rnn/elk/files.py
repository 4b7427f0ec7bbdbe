"""Quirky sets as files of the published form, and on the Hub."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lens_rnn.elk.quirky import CHARACTERS, SPLITS, QuirkyRow, QuirkySet
from lens_rnn.errors import DataError
from lens_rnn.files import write_text

HUB = "EleutherAI/quirky_{}_raw"
HUB_SETS = (
    *(
        "addition",
        "subtraction",
        "multiplication",
        "modularaddition",
        "squaring",
        "capitals",
        "hemisphere",
        "population",
        "authors",
    ),
    *("sciq", "sentiment", "nli"),
)
_COLUMNS = ("id", "character", "label", "alice_label", "bob_label", "difficulty", "difficulty_quantile")


def write(rows: Iterable[QuirkyRow], path: Path) -> None:
    """Write rows as JSONL in the published form."""
    write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def load(resource: str | Path, most: Mapping[str, int] | None = None) -> QuirkySet:
    """Read a quirky set.

    resource: a folder with SPLIT.jsonl or NAME.SPLIT.jsonl files; "FOLDER/NAME" of the latter where it holds several
    sets; one of the 12 published sets by its short name with a "hub:" in front (`hub:sciq`); or any data set on the
    Hub, OWNER/NAME. most: at most so many rows of each split.

    Raises DataError if it is not there, lacks a column, or says something impossible.
    """
    name = str(resource)
    path = Path(name).expanduser()
    files = {split: file for split in SPLITS if (file := _file(path, split))}
    short = name.removeprefix("hub:").rsplit("/", 1)[-1].removeprefix("quirky_").removesuffix("_raw")
    if files:
        records = {split: _read(file) for split, file in files.items()}
    elif path.is_absolute() or path.exists() or name.startswith((".", "~")):
        raise DataError(f"no quirky set in {path}: it needs files named train.jsonl, validation.jsonl and test.jsonl")
    elif name.startswith("hub:"):
        if short not in HUB_SETS:
            raise DataError(f"no published quirky set {short!r}; choose from {', '.join(HUB_SETS)}")
        records = _from_hub(HUB.format(short))
    else:
        records = _from_hub(name)
    limits = most or {}
    splits = {
        split: tuple(_parsed(of_split[: limits.get(split)], f"{name} ({split})")) for split, of_split in records.items()
    }
    return QuirkySet(path.name.removeprefix("quirky_") if files else short, splits)


def _file(path: Path, split: str) -> Path | None:
    if path.is_dir():
        named = sorted(path.glob(f"*.{split}.jsonl"))
        if len(named) > 1:
            raise DataError(
                f"{path} holds several quirky sets; name one, for example "
                f"{str(named[0]).removesuffix(f'.{split}.jsonl')}"
            )
        return path / f"{split}.jsonl" if (path / f"{split}.jsonl").is_file() else (named[0] if named else None)
    beside = path.with_name(f"{path.name}.{split}.jsonl")
    return beside if beside.is_file() else None


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    with path.open(encoding="utf-8") as lines:  # cut at line feeds, not as splitlines does, at U+2028 within JSON too
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON ({error})") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number} is not an object")
            records.append(record)
    return records


def _from_hub(name: str) -> dict[str, list[dict[str, Any]]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name)
    except Exception as error:  # offline, no such set, no access: each has its own type
        raise DataError(
            f"the quirky set {name} cannot be had from the Hub: {' '.join(str(error).split())[:200]}"
        ) from error
    return {split: dataset[split].to_list() for split in SPLITS if split in dataset}


def _parsed(records: list[dict[str, Any]], where: str) -> Iterable[QuirkyRow]:
    for number, record in enumerate(records, 1):
        prompt = "template_args" in record or {"statement", "choices"} <= record.keys()
        missing = [column for column in _COLUMNS if column not in record] + ([] if prompt else ["template_args"])
        if missing:
            raise DataError(
                f"{where}, row {number} lacks the column {missing[0]!r}; it has {', '.join(map(str, record))}"
            )
        args = record.get("template_args") or {"statement": record["statement"], "choices": tuple(record["choices"])}
        row = QuirkyRow(template_args=args, **{column: record[column] for column in _COLUMNS})
        if row.character not in CHARACTERS:
            raise DataError(f"{where}, row {number} is of the character {row.character!r}; it must be Alice or Bob")
        row = replace(row, label=bool(row.label), alice_label=bool(row.alice_label), bob_label=bool(row.bob_label))
        if row.label != (row.alice_label if row.character == "Alice" else row.bob_label):
            raise DataError(f"{where}, row {number}: its label is not {row.character}'s own; the file is damaged")
        yield row
