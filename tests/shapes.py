"""Annotations checked at every call, shapes included, while the tests run (jaxtyping with beartype).

LENS_RNN_SHAPES=off leaves the checks out, to see what they cost.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
ROOMS = ("lens", "fitting", "evaluation", "models")
F = TypeVar("F", bound=Callable)

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is asked for, an int will do


def check(function: F) -> F:
    """The function with its arguments and result checked. Where beartype cannot read the result's annotation (Self, a
    protocol) with its arguments alone, and where it cannot read theirs either, as it is."""
    try:
        return _checked(function)
    except BeartypeDecorHintException:
        hints = getattr(function, "__annotations__", {})
        if "return" not in hints:
            return function
    result = hints.pop("return")
    try:
        return check(function)
    finally:
        hints["return"] = result


def install() -> None:
    """Before lens_rnn is imported."""
    if os.environ.get("LENS_RNN_SHAPES") != "off":
        install_import_hook(list(modules()), "tests.shapes.check")


def modules() -> Iterator[str]:
    """All modules of the rooms but those with compiled kernels, whose functions numba and Triton read by themselves."""
    for room in ROOMS:
        place = ROOT / "lens_rnn" / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            # a package's own name would stand for all in it
            if path.stem != "__init__" and not any(
                word in path.read_text(encoding="utf-8") for word in ("@njit", "@triton.jit")
            ):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)
