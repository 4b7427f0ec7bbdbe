"""The kinds of lens, and opening one of whichever kind is at a place. A new kind is a module, and an entry here."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from lens_rnn.errors import ArtifactError
from lens_rnn.lens.base import Lens
from lens_rnn.lens.jacobian import JacobianLens
from lens_rnn.lens.logit import LogitLens
from lens_rnn.lens.low_rank import LowRankLens
from lens_rnn.lens.tuned import TunedLens
from lens_rnn.lens.unembedding import Unembedding
from lens_rnn.models import ModelAdapter

KINDS: Mapping[str, type[Lens]] = MappingProxyType(
    {kind.kind: kind for kind in (LogitLens, LowRankLens, JacobianLens, TunedLens)}
)
"""In the order in which a place is tried."""


def kind_at(place: Path) -> type[Lens] | None:
    """The kind of the lens at a place here; None where there is none, or nothing."""
    return next((kind for kind in KINDS.values() if kind.is_at(place)), None) if place.exists() else None


def open_lens(adapter: ModelAdapter, name: str | Path, unembedding: Unembedding | None = None) -> Lens:
    """The lens of a name: "logit", a folder or file here, or one on the Hub. Its kind is that of its files; on the Hub
    a name that ends with .pt is a Jacobian lens, and any other a tuned one.

    Raises ArtifactError if it cannot be read, or does not fit the model.
    """
    if str(name) == LogitLens.kind:
        return LogitLens.from_adapter(adapter, unembedding)
    place = Path(name)
    if kind := kind_at(place):
        return kind.load(adapter, place, unembedding)
    if place.exists():
        raise ArtifactError(f"{place} holds no lens of a known kind ({', '.join(KINDS)})")
    of_hub = JacobianLens if place.suffix == ".pt" else TunedLens
    return of_hub.load(adapter, str(name), unembedding)
