"""Errors that are one line."""

from collections.abc import Callable

from lens_rnn.errors import ModelError

import pytest


def refusal(call: Callable[[], object], kind: type[Exception] = ModelError) -> str:
    """The message of the error that a call ends in, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
