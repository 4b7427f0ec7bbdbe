"""What is being done is kept for the last line of an error."""

import logging

from lens_rnn import activity

import pytest


def test_the_last_thing_that_began_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "_now", "starting")
    assert activity.what_was_done() == "starting"
    with caplog.at_level(logging.DEBUG, "lens_rnn.activity"):
        activity.doing("loading the model")
        activity.doing("packing the text")
    assert activity.what_was_done() == "packing the text"
    assert caplog.messages == ["loading the model", "packing the text"]
