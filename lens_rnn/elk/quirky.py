"""Quirky data: questions that Alice answers truthfully and Bob by a heuristic (Mallen & Belrose, arXiv 2312.01037).

Each question stands twice, once for Alice and once for Bob.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lens_rnn.errors import DataError

SPLITS = ("train", "validation", "test")
"""The model is fine-tuned on train, probes are fitted on validation, and test is reported."""
CHARACTERS = ("Alice", "Bob")
EASY, HARD = 0.25, 0.75
"""Easy rows have a difficulty quantile of at most, hard ones of at least so much."""


@dataclass(frozen=True, kw_only=True)
class QuirkyRow:
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
    splits: dict[str, tuple[QuirkyRow, ...]]

    def rows(self, split: str) -> tuple[QuirkyRow, ...]:
        """The rows of a split. Raises DataError if there is none."""
        if not self.splits.get(split):
            raise DataError(
                f"the quirky set {self.name} has no rows in its split {split!r}; it has "
                f"{', '.join(self.splits) or 'none'}"
            )
        return self.splits[split]


def is_easy(row: QuirkyRow) -> bool:
    """Whether the row is of the easiest quarter."""
    return row.difficulty_quantile <= EASY


def is_hard(row: QuirkyRow) -> bool:
    """Whether the row is of the hardest quarter."""
    return row.difficulty_quantile >= HARD
