"""What does not fit into memory is refused before it starts."""

from lens_rnn.errors import DataError
from lens_rnn.models import ModelAdapter
from lens_rnn.views import inputs

import pytest


def test_what_needs_more_than_is_free_is_refused(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, needed in ((0, 1e18), (2**30, 2.0**30)):  # 0: not known
        monkeypatch.setattr(inputs, "free_on", lambda device, free=free: free)
        inputs.refuse_what_does_not_fit(tiny_mamba, needed, 9, "shorten it")
    with pytest.raises(DataError, match=r"2\.0 GiB"):
        inputs.refuse_what_does_not_fit(tiny_mamba, 2.0**31, 9, "shorten it")
