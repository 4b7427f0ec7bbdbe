"""What the demonstrations of latent state reading ask of a model of Python code."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from lens_rnn.models import ModelAdapter
from lens_rnn.views.patching_pairs import NAMES, one_token
from lens_rnn.views.state_reading import Source


class Demonstration(NamedTuple):
    """Sources in words, and the prompt that asks for what they were about."""

    question: str
    sources: tuple[tuple[str, str], ...]
    """Text, and the token that says what it was about."""
    eliciting: str


_VARIABLES = (("a", "b"), ("y", "z"), ("n", "m"), ("i", "j"), ("s", "t"), ("u", "v"), ("p", "q"), ("h", "w"))
_ROWS = ("1, 2, 3", "2, 4, 6", "1, 3, 2", "3, 2, 1", "4, 1, 2", "5, 6, 7", "2, 3, 5", "6, 1, 4")

DEMONSTRATIONS: Mapping[str, Demonstration] = MappingProxyType(
    {
        "identifier": Demonstration(
            "which parameter the source named",
            tuple((f"def check(self, {name}):\n    if", f" {name}") for name in NAMES),
            "    return",
        ),
        "bracket": Demonstration(
            "which bracket the source left open",
            tuple((f"    y = {start}{row}", end) for row in _ROWS for start, end in ("[]", "()")),
            ", 4",
        ),
        "indentation": Demonstration(
            "how far the source was indented",
            tuple(
                (f"{indent}{first} = 1\n{indent}{second} = 2", f"\n{indent[1:]}")
                for first, second in _VARIABLES
                for indent in (" " * 4, " " * 8)
            ),
            "x = 3",
        ),
    }
)


def sources_of(adapter: ModelAdapter, demonstration: Demonstration) -> list[Source]:
    """As the model reads them. Raises ConfigError where what one is about is not one token."""
    return [Source(text=text, about=one_token(adapter, about)) for text, about in demonstration.sources]
