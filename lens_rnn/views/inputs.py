"""What views ask before they start: memory enough."""

from lens_rnn.errors import DataError
from lens_rnn.memory import free_on
from lens_rnn.models import ModelAdapter


def refuse_what_does_not_fit(adapter: ModelAdapter, needed: float, tokens: int, remedy: str) -> None:
    """Raise DataError if a view of so many tokens needs more bytes than half the machine's memory, or than a GPU has
    free."""
    free = free_on(adapter.device)
    if free and needed > free:
        raise DataError(
            f"a view of {tokens:,} tokens of {adapter.name} needs about {needed / 2**30:,.1f} GiB, and there are "
            f"{free / 2**30:,.1f} GiB for it; {remedy}"
        )
