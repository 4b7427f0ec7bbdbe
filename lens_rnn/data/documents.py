"""What every text source is: a name, what decides its content, and the documents of each half."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from lens_rnn.data.config import Role
from lens_rnn.data.splits import BY_HASH, Split


class Document(NamedTuple):
    """One text, or a part of a long one."""

    key: str
    """The file name for python-stdlib, else the text itself."""
    text: str


class Source(ABC):
    """Somewhere that documents come from. `identity` changes whenever the documents may have changed."""

    name: str
    is_small: bool = False
    """Whether all of it is packed even if fewer tokens are wanted, which are then drawn from everywhere: a source in
    the order of file names starts with one subject."""
    is_apart: bool = False
    """Whether somebody else split it already, so that its halves are taken as they are."""

    @abstractmethod
    def identity(self, role: Role | None) -> dict[str, Any]:
        """What decides the documents, for the cache key."""

    @abstractmethod
    def documents(self, role: Role | None) -> Iterator[Document]:
        """All documents of one half of the split, or of the whole source."""

    @property
    def split(self) -> Split:
        """What is held out."""
        return BY_HASH
