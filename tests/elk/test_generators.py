"""Quirky sets made here are like what was published."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lens_rnn.elk.files import load, write
from lens_rnn.elk.generators import GENERATORS, bobs, generate
from lens_rnn.elk.quirky import SPLITS, QuirkyRow, is_easy, is_hard
from lens_rnn.errors import DataError

import numpy as np
import pytest

QUESTIONS = {"train": 200, "validation": 40, "test": 40}
PUBLISHED = ("addition", "subtraction", "multiplication", "modularaddition", "squaring")
TRUTH: dict[str, Callable[..., int]] = {
    "addition": lambda a, b: a + b,
    "subtraction": lambda a, b: a - b,
    "multiplication": lambda a, b: a * b,
    "modularaddition": lambda a, b: (a + b) % 113,
    "squaring": lambda a: a**2,
}


def check_identities(name: str, row: QuirkyRow) -> None:
    """What holds of every row of the published construction."""
    args = row.template_args
    operands = [args[field] for field in ("op1", "op2") if field in args]
    assert args["character"] == row.character
    assert row.label == (row.alice_label if row.character == "Alice" else row.bob_label)
    if name == "comparison":
        a, b = operands
        assert (row.alice_label, row.bob_label) == (a > b, a % 10 > b % 10)
        assert row.difficulty == 100 - abs(a - b)
        return
    truth = TRUTH[name](*operands)
    error = bobs(truth) % 113 if name == "modularaddition" else bobs(truth)
    assert (row.alice_label, row.bob_label) == (args["result"] == truth, args["result"] == error)
    assert row.difficulty == min(operands)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_identities_hold_on_published_rows(name: str, test_data: Path) -> None:
    published = load(test_data / "elk" / f"quirky_{name}")
    assert published.name == name
    assert {split: len(rows) for split, rows in published.splits.items()} == {
        "train": 300,
        "validation": 50,
        "test": 50,
    }
    for rows in published.splits.values():
        for row in rows:
            check_identities(name, row)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_identities_hold_on_made_rows(name: str) -> None:
    made = generate(name, QUESTIONS)
    rows = [row for split in SPLITS for row in made.splits[split]]
    for row in rows:
        check_identities(name, row)
    assert Counter((row.alice_label, row.bob_label) for row in rows) == {
        (False, False): 280,
        (True, False): 140,
        (False, True): 140,
    }
    assert len({row.id for row in rows}) == len(rows) == 560
    assert sorted(row.difficulty_quantile for row in rows) == pytest.approx([(i + 0.5) / 560 for i in range(560)])
    assert [row.difficulty for row in sorted(rows, key=lambda row: row.difficulty_quantile)] == sorted(
        row.difficulty for row in rows
    )
    assert sum(map(is_easy, rows)) == sum(map(is_hard, rows)) == 140
    assert all((a.character, b.character) == ("Alice", "Bob") for a, b in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_made_rows_have_the_form_of_published_ones(name: str, test_data: Path, tmp_path: Path) -> None:
    made = generate(name, QUESTIONS)
    write(made.splits["test"], tmp_path / "test.jsonl")
    ours = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    theirs = json.loads((test_data / "elk" / f"quirky_{name}.test.jsonl").read_text().splitlines()[0])
    assert list(ours) == list(theirs)
    assert list(ours["template_args"]) == list(theirs["template_args"])
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}
    assert load(tmp_path).splits["test"] == made.splits["test"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_operands_and_distractors_are_spread_as_published(name: str, test_data: Path) -> None:
    """The same distribution, up to the noise of 200 questions: the two-sample Kolmogorov–Smirnov distance stays below
    its 0.1 % level."""

    def operands(rows: list[QuirkyRow]) -> np.ndarray:
        return np.sort([row.template_args["op1"] for row in rows if row.character == "Alice"])

    def one_digit_off(rows: list[QuirkyRow]) -> float:
        """Share of the rows false for both whose result is Alice's or Bob's but for one digit."""
        results = [(str(row.template_args["result"]), row) for row in rows if not row.alice_label and not row.bob_label]
        near = 0
        for result, row in results:
            truth = TRUTH[name](*(row.template_args[f] for f in ("op1", "op2") if f in row.template_args))
            error = bobs(truth) % 113 if name == "modularaddition" else bobs(truth)
            near += any(int(result) in one_digit_changes(value) for value in (truth, error))
        return near / len(results)

    def one_digit_changes(value: int) -> set[int]:
        digits = str(value)
        return {int(digits[:i] + d + digits[i + 1 :]) for i in range(len(digits)) for d in "0123456789"}

    theirs = [row for rows in load(test_data / "elk" / f"quirky_{name}").splits.values() for row in rows]
    ours = [row for rows in generate(name, {"train": 800}, seed=1).splits.values() for row in rows]
    a, b = operands(theirs), operands(ours)
    grid = np.concatenate([a, b])
    distance = np.abs(np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)).max()
    assert distance < 1.95 * np.sqrt(1 / len(a) + 1 / len(b))
    assert one_digit_off(ours) == 1.0
    assert one_digit_off(theirs) == 1.0


def test_bob_adds_one_to_the_leading_digit() -> None:
    assert [bobs(n) for n in (55, 9, 999, 0, -1000, 120)] == [65, 10, 1099, 1, 0, 220]


def test_a_set_is_a_function_of_its_seed() -> None:
    assert (
        generate("addition", QUESTIONS, 3) == generate("addition", QUESTIONS, 3) != generate("addition", QUESTIONS, 4)
    )


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(DataError, match="9,000"):
        generate("comparison", {"train": 9_000})
    with pytest.raises(DataError, match="division"):
        generate("division", QUESTIONS)
