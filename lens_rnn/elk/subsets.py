"""Which rows a transfer is fitted on, chooses its layer on, and is scored on; which rows are of one question.

A and B are Alice's and Bob's rows, E and H the easy and hard ones: AE→BH is fitted on Alice's easy rows and tested on
Bob's hard ones. Tests A and B take the rows on which Alice and Bob disagree, the others all.
"""

from collections.abc import Callable, Sequence

from lens_rnn.elk.quirky import QuirkyRow, is_easy, is_hard
from lens_rnn.errors import DataError

import numpy as np

TRANSFERS: dict[str, tuple[str, ...]] = {
    "A": ("A", "B", "AH", "BH"),
    "B": ("B", "A", "BH"),
    "AE": ("AE", "AH", "BE", "BH"),
    "all": ("all", "BH"),
    "none": ("A", "B", "AH", "BH", "all"),
}
"""Tests of a probe by what it was fitted on. On `all`, which mixes both contexts, only probes without labels; `none` is
no training."""
FEWEST = 4
"""Rows of each class that a subset must have."""
PROPOSED = frozenset({"result", "answer", "author", "hypothesis", "admin_name", "country"})
"""Fields of template arguments that hold the answer proposed, in the sets that are known."""
_HOMES = {"none": "A"}  # where the layer is chosen, if not on the probe's own subset


def members(rows: Sequence[QuirkyRow], subset: str) -> np.ndarray:
    """Which rows belong to A, B, AE, AH, BE, BH or all."""
    if subset == "all":
        return np.ones(len(rows), dtype=bool)
    character = {"A": "Alice", "B": "Bob"}[subset[0]]
    level: Callable[[QuirkyRow], bool] = {"": lambda _: True, "E": is_easy, "H": is_hard}[subset[1:]]
    return np.array([row.character == character and level(row) for row in rows])


def scored(rows: Sequence[QuirkyRow], test: str) -> np.ndarray:
    """Which rows a transfer is scored on."""
    among = members(rows, test)
    return among & [row.alice_label != row.bob_label for row in rows] if test in ("A", "B") else among


def home(rows: Sequence[QuirkyRow], subset: str) -> np.ndarray:
    """Which fitting rows the layer of a probe of this subset is chosen on, against the context's own label."""
    return scored(rows, _HOMES.get(subset, subset))


def questions(rows: Sequence[QuirkyRow]) -> np.ndarray:
    """The number of each row's question, (rows).

    Rows of one question are not independent: it stands once for Alice and once for Bob, and in some sets again with
    another answer proposed. What is told apart by neither is one question, whatever row ids say.
    """
    stems = [_stem(row) for row in rows]
    return np.unique(stems, return_inverse=True)[1].astype(np.int64)


def _stem(row: QuirkyRow) -> str:
    """What is asked, without who answers and the answer proposed."""
    args = {name: value for name, value in row.template_args.items() if name != "character"}
    asked = {name: value for name, value in args.items() if name not in PROPOSED}
    return str(sorted((asked or args).items())).replace(row.character, "…")


def check_rows(train: Sequence[QuirkyRow], test: Sequence[QuirkyRow]) -> None:
    """Refuse, before anything is computed, splits that cannot carry the transfers: DataError names the transfer and
    what it lacks."""
    for subset, tests in TRANSFERS.items():
        sides = [] if subset == "none" else [(train, members(train, subset), "fitted on", "label")]
        sides += [(train, home(train, subset), "its layer chosen on", "label")]
        sides += [(test, scored(test, name), f"tested on {name}, scored on", "alice_label") for name in tests]
        for rows, among, use, field in sides:
            labels = [getattr(row, field) for row, chosen in zip(rows, among, strict=True) if chosen]
            true = sum(labels)
            if min(true, len(labels) - true) < FEWEST:
                raise DataError(
                    f"the transfer from {subset}, {use} {len(labels)} rows, {true} true and {len(labels) - true} "
                    f"false, needs {FEWEST} of each; give it more questions"
                )
