"""A contrast of next words: texts that go on with one word against texts that go on with another.

What is asked at places of one document is alike, and intervals count documents. So the places are few of each document,
of many documents, and no place reads what another reads.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated

from lens_rnn.data import Role, Source
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.ranges import SEED, check_ranges, whole
from lens_rnn.steering.contrasts import Contrast
from lens_rnn.steering.pairs import Pair, Question

import numpy as np
from transformers import PreTrainedTokenizerBase

MOST_DOCUMENTS = 5_000
"""Looked through for places; a source on the Hub has no end."""


@dataclass(frozen=True, kw_only=True)
class NextWordConfig:
    """Which words, and how many places before them."""

    words: tuple[str, str] = (" return", " raise")
    """The matching word and the other, each one token."""
    context: Annotated[int, whole(2)] = 48
    """Tokens before the word, which are what is read."""
    pairs: Annotated[int, whole(2)] = 400
    """At most."""
    questions: Annotated[int, whole(4)] = 100
    """Validation questions, and as many test questions, at most; half of them before each word."""
    places: Annotated[int, whole(1)] = 4
    """Of each document, before each word, at most."""
    seed: Annotated[int, SEED] = 0
    """Of the documents' order, and of the places in them."""

    def __post_init__(self) -> None:
        if self.words[0] == self.words[1]:
            raise ConfigError(f"both words are {self.words[0]!r}; a contrast needs two different ones")
        check_ranges(self)


@dataclass
class _Part:
    """Places of one part: of each document that has any, those before each word."""

    wanted: int
    """Before each word."""
    most: int
    """Of each document, before each word, as long as documents last."""
    documents: list[tuple[str, list[list[tuple[int, ...]]]]] = field(default_factory=list)
    """Their names, and their places."""

    def has_enough(self) -> bool:
        counts = [[min(len(places[side]), self.most) for _, places in self.documents] for side in (0, 1)]
        return min(map(sum, counts)) >= self.wanted

    def chosen(self) -> list[list[tuple[str, tuple[int, ...]]]]:
        """For each word as many documents and places as for the other: the first place of every document before the
        second of any."""
        sides = [
            sorted(
                (rank, i, name, ids)
                for i, (name, places) in enumerate(self.documents)
                for rank, ids in enumerate(places[side])
            )
            for side in (0, 1)
        ]
        count = min(self.wanted, *map(len, sides))
        return [[(name, ids) for _, _, name, ids in side[:count]] for side in sides]


def next_word_contrast(
    source: Source, tokenizer: PreTrainedTokenizerBase, config: NextWordConfig | None = None
) -> Contrast:
    """Texts that go on with one word against texts that go on with another, in equal numbers: which will the model say
    next?

    Vectors come from the last tokens of config.context before either word in documents of the fitting half. A fifth of
    those documents is kept for the validation questions. Test questions are from the held-out half and, where that has
    fewer documents than questions, from another fifth. Questions of one document are one cluster.

    Raises ConfigError for a word that is not one token, DataError if the source has too few such places.
    """
    config = config or NextWordConfig()
    words = [_one_token(word, tokenizer) for word in config.words]
    if words[0] == words[1]:
        raise ConfigError(f"{config.words[0]!r} and {config.words[1]!r} are the same token; take other words")
    parts = {
        "test": _Part(config.questions // 2, most=1),
        "validation": _Part(config.questions // 2, most=1),
        "pairs": _Part(config.pairs, most=config.places),
    }
    generator = np.random.default_rng(config.seed)
    read: set[tuple[int, ...]] = set()
    for part, name, ids in _documents(source, tokenizer, config.seed, parts):
        places = _places(ids, words, config, generator, read)
        if any(places):
            parts[part].documents.append((name, places))
    chosen = {name: part.chosen() for name, part in parts.items()}
    for name, sides in chosen.items():
        if len(sides[0]) < 2:
            raise DataError(
                f"{source.name} has too few places before {config.words[0]!r} or {config.words[1]!r} for the {name}; "
                "take other words"
            )
    asked = {
        part: [Question(ids, words[0], words[1], name) for side in chosen[part] for name, ids in side]
        for part in ("validation", "test")
    }
    halves = Counter(name.split()[0] for name in {question.cluster or "" for question in asked["test"]})
    return Contrast(
        name=" against ".join(word.strip() for word in config.words),
        pairs=[Pair(a, b) for (_, a), (_, b) in zip(*chosen["pairs"], strict=True)],
        validation=asked["validation"],
        test=asked["test"],
        about={
            "source": source.name,
            "words": list(config.words),
            "context": config.context,
            "position": "the last token before the word",
            "test_documents": {"held out": halves["eval"], "of the fitting half": halves["fit"]},
        },
    )


def _one_token(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"{word!r} is {len(ids)} tokens of {tokenizer.name_or_path}; a contrast of next words needs words of one "
            "token"
        )
    return int(ids[0])


def _documents(
    source: Source, tokenizer: PreTrainedTokenizerBase, seed: int, parts: dict[str, _Part]
) -> Iterator[tuple[str, str, list[int]]]:
    """The part that a document is for, its name and its tokens, in a random order, until each part has enough."""
    shares_of: dict[Role, tuple[str, ...]] = {
        "eval": ("test",),
        "fit": ("validation", "test", "pairs", "pairs", "pairs"),
    }
    for role, shares in shares_of.items():
        documents = list(islice(source.documents(role), MOST_DOCUMENTS))
        for place, i in enumerate(np.random.default_rng(seed).permutation(len(documents)).tolist()):
            part = shares[place % len(shares)]
            if not parts[part].has_enough():
                yield part, f"{role} {i}", list(tokenizer(documents[i].text)["input_ids"])


def _places(
    ids: list[int],
    words: Sequence[int],
    config: NextWordConfig,
    generator: np.random.Generator,
    read: set[tuple[int, ...]],
) -> list[list[tuple[int, ...]]]:
    """What is read before each word, at random places of a document that do not overlap; the rarer word has its choice
    first. What was read in another document, a licence for instance, is not read again."""
    at = {word: [i for i, token in enumerate(ids) if token == word and i >= config.context] for word in words}
    taken: list[int] = []
    places: dict[int, list[tuple[int, ...]]] = {word: [] for word in words}
    for word in sorted(words, key=lambda word: len(at[word])):
        for i in generator.permutation(at[word]).astype(int).tolist():
            before = tuple(ids[i - config.context : i])
            apart = all(abs(i - other) >= config.context for other in taken)
            if len(places[word]) < config.places and apart and before not in read:
                taken.append(i)
                read.add(before)
                places[word].append(before)
    return [places[word] for word in words]
