"""Ranges of settings: what they allow, and how a value outside is refused."""

from dataclasses import dataclass, replace
from math import inf, nan
from typing import Annotated

from lens_rnn.errors import ConfigError
from lens_rnn.ranges import LARGEST, SEED, check_ranges, number, ranges_of, whole

import pytest


@dataclass(frozen=True)
class Settings:
    steps: Annotated[int, whole(1)] = 3
    rate: Annotated[float | None, number(above=0)] = None
    share: Annotated[float, number(0, below=1)] = 0.5
    weights: Annotated[tuple[float, ...], number()] = (1.0, -1.0)
    seed: Annotated[int, SEED] = 0
    name: str = "free"

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class More(Settings):
    steps: int = 7


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("steps", 0, "steps is 0; it must be at least 1"),
        ("steps", 2.5, "steps is 2.5; it must be a whole number, at least 1"),
        ("steps", True, "steps is True; it must be a whole number, at least 1"),
        ("steps", 10**13, "steps is 10000000000000; it must be at least 1, within ±1e+12"),
        ("rate", 0, "rate is 0; it must be above 0"),
        ("rate", inf, "rate is inf; it must be above 0, within ±1e+30"),
        ("rate", nan, "rate is nan; it must be above 0, within ±1e+30"),
        ("rate", "fast", "rate is 'fast'; it must be above 0"),
        ("share", 1.0, "share is 1.0; it must be at least 0 and below 1"),
        ("weights", (0.5, -inf), "weights is -inf; it must be within ±1e+30"),
        ("seed", -1, "seed is -1; it must be at least 0 and at most 4294967295"),
    ],
)
def test_what_is_outside_is_refused_by_name(setting: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(Settings(), **{setting: value})
    assert str(refused.value) == message


def test_what_is_inside_is_taken() -> None:
    replace(Settings(), steps=1, rate=1e-9, share=0, weights=(LARGEST, -LARGEST, 0), seed=2**32 - 1)
    replace(Settings(), rate=None, weights=())


def test_another_default_keeps_the_range() -> None:
    assert ranges_of(More)["steps"] == whole(1)
    assert "name" not in ranges_of(More)
    with pytest.raises(ConfigError, match="steps is 0"):
        More(steps=0)
