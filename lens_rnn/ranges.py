"""The range of a setting, stated beside it and checked where it enters: `steps: Annotated[int, whole(1)] = 1000`."""

from functools import cache
from typing import Any, NamedTuple, get_type_hints

from lens_rnn.errors import ConfigError

MOST = 10**12
"""The largest whole number of a setting that names no other limit: so many tokens, rows or steps nobody has."""
LARGEST = 1e30
"""The same for other numbers, in either sign: what float32 can still multiply."""


class Range(NamedTuple):
    """Which numbers a setting can have. NaN is never among them, nor, as `whole` and `number` make it, infinity."""

    least: float
    most: float
    open_below: bool = False
    """Whether `least` itself is left out; `open_above` the same for `most`."""
    open_above: bool = False
    is_whole: bool = False

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        above = value > self.least if self.open_below else value >= self.least
        return above and (value < self.most if self.open_above else value <= self.most)

    def __str__(self) -> str:
        limit = MOST if self.is_whole else LARGEST
        words = []
        if self.least > -limit:
            words.append(f"{'above' if self.open_below else 'at least'} {self.least}")
        if self.most < limit:
            words.append(f"{'below' if self.open_above else 'at most'} {self.most}")
        return " and ".join(words) or f"within ±{limit:g}"


def whole(least: int = 0, most: int = MOST) -> Range:
    """Whole numbers from least to most."""
    return Range(least, most, is_whole=True)


def number(
    least: float | None = None, most: float | None = None, *, above: float | None = None, below: float | None = None
) -> Range:
    """Numbers from least to most, or above and below two others."""
    lower, upper = least if above is None else above, most if below is None else below
    return Range(
        -LARGEST if lower is None else lower,
        LARGEST if upper is None else upper,
        open_below=above is not None,
        open_above=below is not None,
    )


SEED = whole(0, 2**32 - 1)
"""What every random generator that is used takes as a seed."""
THREADS = whole(1, 4096)


def check_ranges(config: Any) -> None:
    """Raises ConfigError, which names the setting, if a field of this dataclass is outside the range in its annotation.

    None, where a field may be that, has no range; of a tuple every entry has it.
    """
    config_type: type = type(config)
    for name, allowed in ranges_of(config_type).items():
        value = getattr(config, name)
        for entry in value if isinstance(value, tuple | list) else (value,):
            if entry is not None and not allowed.allows(entry):
                limit = MOST if allowed.is_whole else LARGEST
                huge = isinstance(entry, int | float) and not abs(entry) <= limit and "within" not in str(allowed)
                kind = "a whole number, " if allowed.is_whole and type(entry) is not int else ""
                beyond = f", within ±{limit:g}" if huge else ""
                raise ConfigError(f"{name} is {entry!r}; it must be {kind}{allowed}{beyond}")


@cache
def ranges_of(config_type: type) -> dict[str, Range]:
    """The range of each field that has one, by name: a class that gives a field another default keeps its range."""
    ranges: dict[str, Range] = {}
    for base in reversed(config_type.__mro__):
        for name, hint in get_type_hints(base, include_extras=True).items():
            for extra in getattr(hint, "__metadata__", ()):  # what Annotated adds to the type
                if isinstance(extra, Range):
                    ranges[name] = extra
    return ranges
