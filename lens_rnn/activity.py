"""What the program is doing, for the last line of an error that nobody foresaw. `--verbose` shows each as it begins."""

import logging

log = logging.getLogger(__name__)

_now = "starting"


def doing(task: str) -> None:
    """Say what begins now, in words that fit after "while": "loading the model". It holds until the next is said."""
    global _now
    _now = task
    log.debug(task)


def what_was_done() -> str:
    """The last thing that was said."""
    return _now
