"""Which questions belong together: those that ask the same of other words are no independent trials."""

import re
from collections.abc import Sequence

from lens_rnn.steering.items import Item, before_options
from lens_rnn.steering.pairs import Question

import numpy as np

LEAST_WORDS = 8
"""Of a last sentence that is a stem; "Which would you prefer?" is none."""

_SENTENCE_ENDS = re.compile(r"(?<=[.?!:])[\"')]*\s|\n+")
_CHOICES = re.compile(r"\s*choices:\s*$", re.IGNORECASE)


def words_of(item: Item) -> str:
    """What an item asks, before its options, in its words alone: items whose words are the same ask the same."""
    return _words(_CHOICES.sub("", before_options(item.question)))


def stem(item: Item) -> str:
    """The last sentence before the options, where it is long enough to be one that several questions share ("… would
    you say people who are convicted of crimes in this country serve"); else all that is asked."""
    text = _CHOICES.sub("", before_options(item.question))
    sentences = [words for sentence in _SENTENCE_ENDS.split(text) if (words := _words(sentence))]
    last = sentences[-1] if sentences else ""
    return last if len(last.split()) >= LEAST_WORDS else _words(text)


def with_clusters(questions: Sequence[Question], clusters: Sequence[str]) -> list[Question]:
    """The questions, each told its cluster."""
    return [question._replace(cluster=name) for question, name in zip(questions, clusters, strict=True)]


def clusters_of(questions: Sequence[Question]) -> np.ndarray:
    """(questions): the number of each one's cluster; a question without one is its own."""
    names = [question.cluster if question.cluster is not None else i for i, question in enumerate(questions)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
