"""What a page shows, as one value that a link can carry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, urlencode

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation.trajectory import named

LENS, VIEWS = TABS = ("lens", "views")
"""The page's tabs: heat maps of what a lens reads; hidden attention and relevance."""
MEAN, ROLLOUT = "mean", "rollout"
"""What can be shown of hidden attention besides one layer: the mean over all, and what comes through all."""
MOST_CHARACTERS = 4_096
"""Longest text that is tokenized at all, and that fits into a link."""


class Cell(NamedTuple):
    """One cell of a heat map."""

    side: int
    """0 for the text, 1 for the second text."""
    row: int
    """From the lowest layer shown, 0, to the model."""
    token: int
    """Counted from the start of the text, wherever the picture begins."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a page is told: the same settings give the same page."""

    model: str
    """A name among the page's models."""
    lens: str
    """A name among the lenses of that model."""
    text: str
    """What the model reads."""
    second: str = ""
    """Another text to compare with; none where empty."""
    statistic: str = "entropy"
    """What the colours say: a name in evaluation.trajectory.STATISTICS."""
    stride: int = 1
    """Show every so many-th layer."""
    tokens: str = ""
    """Tokens shown, first and last, as in "10-40"; all where empty. The model reads what comes before in any case."""
    tab: str = LENS
    """The open tab: a name in TABS."""
    attention: str = MEAN
    """What is shown of hidden attention: mean, rollout, or the number of a layer."""
    at: str = ""
    """The layer at which the lens reads the logit whose relevance is shown; the model's own where empty."""
    token: str = ""
    """The id of the token whose logit that is; the likeliest where empty."""
    cell: str = ""
    """The chosen cell, side.row.token; none where empty."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise DataError("the text is empty; type something for the model to read")
        for title, text in (("text", self.text), ("second text", self.second)):
            if len(text) > MOST_CHARACTERS:
                raise DataError(
                    f"the {title} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read here, shorten it"
                )
        named(self.statistic)
        if self.stride < 1:
            raise ConfigError(f"the layer stride is {self.stride}; give a whole number of at least 1")
        if self.tab not in TABS:
            raise ConfigError(f"there is no tab {self.tab!r:.40}; choose from {', '.join(TABS)}")
        if self.attention not in (ROLLOUT, MEAN) and _whole(self.attention) is None:
            raise ConfigError(
                f"there is no hidden attention of layer {self.attention!r:.40}; write its number, {MEAN} or {ROLLOUT}"
            )
        for title, given in (("layer", self.at), ("token", self.token)):
            if given.strip() and _whole(given) is None:
                raise ConfigError(
                    f"the {title} whose logit is explained, {given!r:.40}, is no whole number; write one, or nothing"
                )
        self.chosen  # noqa: B018 # reading it checks the cell

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, and the second if there is one."""
        return (self.text, self.second) if self.second.strip() else (self.text,)

    @property
    def chosen(self) -> Cell | None:
        """The chosen cell. Raises ConfigError if `cell` is not three whole numbers."""
        if not self.cell:
            return None
        side, row, token = (_whole(part) for part in (self.cell.split(".") + [""] * 3)[:3])
        if side is None or row is None or token is None or self.cell.count(".") != 2:
            raise ConfigError(f"the cell {self.cell!r:.40} is unknown; it is side.row.token, as in 0.3.17")
        return Cell(side, row, token)

    @property
    def layer(self) -> int | None:
        """The number that `at` is; None for the model."""
        return _whole(self.at)

    @property
    def picked(self) -> int | None:
        """The id that `token` is; None for the likeliest."""
        return _whole(self.token)

    def same(self, other: "Settings", names: Sequence[str]) -> bool:
        """Whether the settings of these names are equal."""
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def span(self, n_tokens: int, of: str = "text") -> range:
        """The tokens to show of a text of that many. Raises ConfigError for a range that is malformed, empty or not in
        the text."""
        if not self.tokens.strip():
            return range(n_tokens)
        start, dash, end = self.tokens.partition("-")
        first, last = _whole(start), _whole(end if dash else start)
        if first is None or last is None:
            raise ConfigError(
                f"the token range {self.tokens!r:.40} is unknown; write the first and the last, as in 10-40, or "
                "nothing for all"
            )
        if first > last:
            raise ConfigError(f"the token range {first}-{last} is empty; write the smaller number first")
        if last >= n_tokens:
            raise ConfigError(
                f"the token range {first}-{last} is not in the {of}, which has the tokens 0-{n_tokens - 1}; change "
                "the range"
            )
        return range(first, last + 1)

    def query(self) -> str:
        """As the query of a URL; what is empty is left out."""
        return urlencode({field.name: value for field in fields(self) if (value := getattr(self, field.name)) != ""})

    @classmethod
    def from_query(cls, query: str, defaults: Mapping[str, str]) -> Self:
        """Of a URL's query, with or without its question mark. `defaults` fill in what it leaves out; what it adds is
        ignored.

        Raises LensRNNError for a setting that cannot be used.
        """
        known = {field.name for field in fields(cls)}
        given = {
            name: value for name, value in parse_qsl(query.removeprefix("?"), keep_blank_values=True) if name in known
        }
        settings = dict(defaults) | given
        stride = settings.pop("stride", "1")
        every = _whole(stride)
        if every is None:
            raise ConfigError(f"the layer stride is {stride!r:.40}; give a whole number of at least 1")
        return cls(stride=every, **settings)


def _whole(text: str) -> int | None:
    """The whole number that `text` is, if it is one of a reasonable length."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and len(digits) < 10 else None
