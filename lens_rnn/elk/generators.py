"""Quirky sets made here. Of the questions a quarter is true for Alice only, a quarter for Bob only, and half for
neither.

In the arithmetic sets Bob adds one to the leading digit of the result; what is false for both differs from Alice's or
Bob's result, half and half, by one digit.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from lens_rnn.elk.quirky import CHARACTERS, QuirkyRow, QuirkySet
from lens_rnn.errors import DataError

import numpy as np

_TRIES = 1_000  # draws for one new question before a set is said to have no more
_MODULUS = 113


class _Question(NamedTuple):
    args: dict[str, int]
    alice: bool
    bob: bool
    difficulty: int


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


def _rows_of(question: _Question) -> Iterable[QuirkyRow]:
    for character in CHARACTERS:
        args = {"character": character, **question.args}
        yield QuirkyRow(
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


def _ranked(rows: list[QuirkyRow]) -> tuple[QuirkyRow, ...]:
    """The rows with their difficulty's quantile: (rank + ½) ÷ rows, ties in their order."""
    ranks = np.argsort(np.argsort([row.difficulty for row in rows], kind="stable"))
    return tuple(
        replace(row, difficulty_quantile=(int(rank) + 0.5) / len(rows)) for row, rank in zip(rows, ranks, strict=True)
    )
