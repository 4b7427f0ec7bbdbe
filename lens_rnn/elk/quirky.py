"""Quirky data: questions that Alice answers truthfully and Bob by a heuristic, generated here or read (Mallen &
Belrose, arXiv 2312.01037).

Each question stands twice, once for Alice and once for Bob. Of the questions a quarter is true for Alice only, a
quarter for Bob only, and half for neither. In the arithmetic sets Bob adds one to the leading digit of the result; what
is false for both differs from Alice's or Bob's result, half and half, by one digit.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lens_rnn.errors import DataError

import numpy as np

SPLITS = ("train", "validation", "test")
"""The model is fine-tuned on train, probes are fitted on validation, and test is reported."""
CHARACTERS = ("Alice", "Bob")
EASY, HARD = 0.25, 0.75
"""Easy rows have a difficulty quantile of at most, hard ones of at least so much."""
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
_TRIES = 1_000  # draws for one new question before a set is said to have no more
_MODULUS = 113


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question in one character's context; the columns of the published sets."""

    id: str
    """Eight hexadecimal digits of the MD5 of the template arguments as Python writes them."""
    template_args: Mapping[str, Any]
    """What a prompt template is filled with; for rows whose prompt is written already, `statement` and `choices`."""
    character: str
    """Alice or Bob."""
    label: bool
    """What the character says."""
    alice_label: bool
    """The truth."""
    bob_label: bool
    difficulty: float
    """Higher is harder."""
    difficulty_quantile: float
    """Rank of the difficulty within the whole set, in (0, 1)."""


class QuirkySet(NamedTuple):
    """A quirky set in its three splits."""

    name: str
    splits: dict[str, tuple[Row, ...]]

    def rows(self, split: str) -> tuple[Row, ...]:
        """The rows of a split. Raises DataError if there is none."""
        if not self.splits.get(split):
            raise DataError(
                f"the quirky set {self.name} has no rows in its split {split!r}; it has "
                f"{', '.join(self.splits) or 'none'}"
            )
        return self.splits[split]


class _Question(NamedTuple):
    args: dict[str, int]
    alice: bool
    bob: bool
    difficulty: int


def is_easy(row: Row) -> bool:
    """Whether the row is of the easiest quarter."""
    return row.difficulty_quantile <= EASY


def is_hard(row: Row) -> bool:
    """Whether the row is of the hardest quarter."""
    return row.difficulty_quantile >= HARD


# --- generators -------------------------------------------------------------------------------------------------------


def bobs(result: int) -> int:
    """Bob's result: one more in the leading digit, 65 for 55 and −900 for −1000 (it is added, whatever the sign)."""
    return result + 10 ** (len(str(abs(result))) - 1)


def _bobs_modular(result: int) -> int:
    return bobs(result) % _MODULUS


def _distractor(result: int, truths: tuple[int, int], random: np.random.Generator) -> int:
    """`result` with one digit drawn anew, neither Alice's nor Bob's own result. As published, a minus sign may become a
    digit."""
    while True:
        digits = list(str(result))
        digits[random.integers(len(digits))] = str(random.integers(10))
        if (changed := int("".join(digits))) not in truths:
            return changed


def _arithmetic(
    operation: Callable[..., int],
    quirk: Callable[[int], int],
    operands: int,
    digits: int,
    cell: str,
    random: np.random.Generator,
) -> _Question:
    """One question of an arithmetic set; operands are log-uniform in 1 to 10^digits."""
    values = [int(10 ** (random.random() * digits)) for _ in range(operands)]
    truth = operation(*values)
    error = quirk(truth)
    result = truth if cell.startswith("alice") else error
    if cell.endswith("distractor"):
        result = _distractor(result, (truth, error), random)
    args = {f"op{i + 1}": value for i, value in enumerate(values)} | {"result": result}
    return _Question(args, result == truth, result == error, min(values))


def _comparison(cell: str, random: np.random.Generator) -> _Question:
    """Is a > b, of two numbers of two digits? Bob compares the last digits only. The closer they are, the harder."""
    wanted = {"alice": (True, False), "bob": (False, True)}.get(cell, (False, False))
    while True:
        a, b = (int(n) for n in random.integers(10, 100, size=2))
        if (a > b, a % 10 > b % 10) == wanted:
            return _Question({"op1": a, "op2": b}, *wanted, 100 - abs(a - b))


GENERATORS: dict[str, Callable[[str, np.random.Generator], _Question]] = {
    "addition": partial(_arithmetic, lambda a, b: a + b, bobs, 2, 4),
    "subtraction": partial(_arithmetic, lambda a, b: a - b, bobs, 2, 4),
    "multiplication": partial(_arithmetic, lambda a, b: a * b, bobs, 2, 3),
    "modularaddition": partial(_arithmetic, lambda a, b: (a + b) % _MODULUS, _bobs_modular, 2, 4),
    "squaring": partial(_arithmetic, lambda a: a * a, bobs, 1, 5),
    "comparison": _comparison,
}
_CELLS = ("alice", "bob", "alice distractor", "bob distractor")


def generate(name: str, questions: Mapping[str, int], seed: int = 0) -> QuirkySet:
    """Make a set: for each split so many questions, of which there are twice as many rows. No question stands twice.

    Raises DataError if there is no generator of that name, or the set does not have so many questions.
    """
    if name not in GENERATORS:
        raise DataError(f"no generator of the quirky set {name!r}; choose from {', '.join(GENERATORS)}")
    random = np.random.default_rng(seed)
    total = sum(questions.values())
    made: list[_Question] = []
    seen: set[tuple[int, ...]] = set()
    for i in range(total):
        for _ in range(_TRIES):
            question = GENERATORS[name](_CELLS[i % len(_CELLS)], random)
            key = tuple(value for field, value in question.args.items() if field != "result")
            if key not in seen:
                break
        else:
            raise DataError(
                f"the quirky set {name} has fewer than {total:,} different questions; {i:,} were found, ask for less"
            )
        seen.add(key)
        made.append(question)
    order = random.permutation(total)
    rows = _ranked([row for i in order for row in _rows_of(made[i])])
    ends = np.cumsum([2 * count for count in questions.values()])
    parts = zip(questions, [0, *ends[:-1]], ends, strict=True)
    return QuirkySet(name, {split: rows[start:end] for split, start, end in parts})


def _rows_of(question: _Question) -> Iterable[Row]:
    for character in CHARACTERS:
        args = {"character": character, **question.args}
        yield Row(
            id=_identity(args),
            template_args=args,
            character=character,
            label=question.alice if character == "Alice" else question.bob,
            alice_label=question.alice,
            bob_label=question.bob,
            difficulty=question.difficulty,
            difficulty_quantile=0.5,
        )


def _identity(args: Mapping[str, Any]) -> str:
    return hashlib.md5(str(dict(args)).encode(), usedforsecurity=False).hexdigest()[:8]


def _ranked(rows: list[Row]) -> tuple[Row, ...]:
    """The rows with their difficulty's quantile: (rank + ½) ÷ rows, ties in their order."""
    ranks = np.argsort(np.argsort([row.difficulty for row in rows], kind="stable"))
    return tuple(
        replace(row, difficulty_quantile=(int(rank) + 0.5) / len(rows)) for row, rank in zip(rows, ranks, strict=True)
    )


# --- files and the Hub ------------------------------------------------------------------------------------------------


def write(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSONL in the published form."""
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")


def load(resource: str | Path, most: Mapping[str, int] | None = None) -> QuirkySet:
    """Read a quirky set.

    resource: a folder with SPLIT.jsonl or NAME.SPLIT.jsonl files; "FOLDER/NAME" of the latter where it holds several
    sets; one of the 12 published sets by its short name with a "hub:" in front (`hub:sciq`); or any data set on the
    Hub, OWNER/NAME. most: at most so many rows of each split.

    Raises DataError if it is not there, lacks a column, or says something impossible.
    """
    name = str(resource)
    path = Path(name).expanduser()
    files = {split: found for split in SPLITS if (found := _file(path, split))}
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
        split: tuple(_parsed(found[: limits.get(split)], f"{name} ({split})")) for split, found in records.items()
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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
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
        found = load_dataset(name)
    except Exception as error:  # offline, no such set, no access: each has its own type
        raise DataError(
            f"the quirky set {name} cannot be had from the Hub: {' '.join(str(error).split())[:200]}"
        ) from error
    return {split: found[split].to_list() for split in SPLITS if split in found}


def _parsed(records: list[dict[str, Any]], where: str) -> Iterable[Row]:
    for number, record in enumerate(records, 1):
        prompt = "template_args" in record or {"statement", "choices"} <= record.keys()
        missing = [column for column in _COLUMNS if column not in record] + ([] if prompt else ["template_args"])
        if missing:
            raise DataError(
                f"{where}, row {number} lacks the column {missing[0]!r}; it has {', '.join(map(str, record))}"
            )
        args = record.get("template_args") or {"statement": record["statement"], "choices": tuple(record["choices"])}
        row = Row(template_args=args, **{column: record[column] for column in _COLUMNS})
        if row.character not in CHARACTERS:
            raise DataError(f"{where}, row {number} is of the character {row.character!r}; it must be Alice or Bob")
        said = replace(row, label=bool(row.label), alice_label=bool(row.alice_label), bob_label=bool(row.bob_label))
        if said.label != (said.alice_label if said.character == "Alice" else said.bob_label):
            raise DataError(f"{where}, row {number}: its label is not {said.character}'s own; the file is damaged")
        yield said
