"""What a steering experiment is made of: pairs for the vectors, questions to choose layer and multiplier on, and others
to report on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lens_rnn.data import Role, Source
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.steering.pairs import (
    Item,
    Pair,
    Question,
    balanced,
    behaviour_file,
    read_items,
    swapped,
    tokenise,
    warn_of_letters,
)

import numpy as np
from transformers import PreTrainedTokenizerBase

MOST_DOCUMENTS = 5_000
"""Looked through for places; a source on the Hub has no end."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The data of one experiment. No question of `validation` or `test` is in the pairs."""

    name: str
    pairs: Sequence[Pair]
    validation: Sequence[Question]
    test: Sequence[Question]
    swapped: Sequence[Question] = ()
    """The test questions with their options exchanged, where they have letters: an effect on the letter alone is
    reversed on them."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where it is from, for the report and the vectors' metadata."""


def behaviour_contrast(
    source: str,
    behaviour: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "plain",
    balance_letters: bool = False,
    pairs: int | None = None,
    questions: int = 50,
    seed: int = 0,
) -> Contrast:
    """A behaviour of a folder or a Hub data set, or a JSON file of the same format if `behaviour` ends in .json.

    Vectors come from the generate set less `questions` items, on which layer and multiplier are chosen; the report is
    on the test set. A single file gives all three. pairs: at most so many pairs.

    Raises DataError if the file is missing, malformed, or has too few items.
    """
    alone = behaviour.endswith(".json")
    items = read_items(Path(behaviour).expanduser() if alone else behaviour_file(source, behaviour, "generate"))
    needed = questions * (2 if alone else 1) + 1
    if len(items) < needed:
        raise DataError(
            f"{behaviour} has {len(items)} items, and {needed} are needed to hold {questions} questions out; lower "
            "--questions"
        )
    order = np.random.default_rng(seed).permutation(len(items)).tolist()
    validation, rest = [items[i] for i in order[:questions]], [items[i] for i in order[questions:]]
    if alone:
        test, rest = rest[:questions], rest[questions:]
    else:
        test = read_items(behaviour_file(source, behaviour, "test"))[:questions]
    rest = rest[:pairs]
    if balance_letters:
        rest = balanced(rest)
    else:
        warn_of_letters(rest)
    exchanged: list[Item] = [other for item in test if (other := swapped(item)) is not None]
    return Contrast(
        name=Path(behaviour).stem,
        pairs=[question.pair for question in tokenise(rest, template, tokenizer)],
        validation=tokenise(validation, template, tokenizer),
        test=tokenise(test, template, tokenizer),
        swapped=tokenise(exchanged, template, tokenizer) if exchanged else (),
        about={
            "behaviour": behaviour,
            "source": source,
            "template": template,
            "letters_balanced": balance_letters,
            "position": "the answer's letter",
        },
    )


def next_word_contrast(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    matching: str = " return",
    other: str = " raise",
    *,
    context: int = 48,
    pairs: int = 400,
    questions: int = 100,
    seed: int = 0,
) -> Contrast:
    """Texts that go on with one word against texts that go on with another, in equal numbers: which will the model say
    next?

    Vectors come from the last tokens of `context` before either word in documents of the fitting half; a fifth of those
    documents is kept for the validation questions. Test questions are from the held-out half.

    Raises ConfigError for a word that is not one token, DataError if the source has too few such places.
    """
    words = [_one_token(word, tokenizer) for word in (matching, other)]
    places_of: dict[str, list[list[tuple[int, ...]]]] = {"pairs": [[], []], "validation": [[], []], "test": [[], []]}
    wanted = {"pairs": pairs, "validation": questions // 2, "test": questions // 2}
    for part, ids in _documents(source, tokenizer, seed, places_of, wanted):
        for places, word in zip(places_of[part], words, strict=True):
            places += [tuple(ids[at - context : at]) for at, token in enumerate(ids) if token == word and at >= context]
    generator = np.random.default_rng(seed)
    kept: dict[str, list[list[tuple[int, ...]]]] = {}
    for part, both in places_of.items():
        least = min(wanted[part], *(len(set(places)) for places in both))
        if least < 2:
            raise DataError(
                f"{source.name} has too few places before {matching!r} or {other!r} for the {part}; take other words"
            )
        kept[part] = [
            [sorted(set(places))[i] for i in generator.permutation(len(set(places)))[:least]] for places in both
        ]
    ask = {part: [Question(ids, *words) for places in kept[part] for ids in places] for part in ("validation", "test")}
    return Contrast(
        name=f"{matching.strip()} against {other.strip()}",
        pairs=[Pair(a, b) for a, b in zip(*kept["pairs"], strict=True)],
        validation=ask["validation"],
        test=ask["test"],
        about={
            "source": source.name,
            "words": [matching, other],
            "context": context,
            "position": "the last token before the word",
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
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    places_of: Mapping[str, Sequence[Sequence[object]]],
    wanted: Mapping[str, int],
) -> Iterator[tuple[str, list[int]]]:
    """Documents as tokens, in a random order, each with the part that it is for; until twice as many places are found
    as are wanted."""
    roles: tuple[Role, Role] = ("fit", "eval")
    for role in roles:
        documents = list(islice(source.documents(role), MOST_DOCUMENTS))
        for place, i in enumerate(np.random.default_rng(seed).permutation(len(documents)).tolist()):
            part = "test" if role == "eval" else "pairs" if place % 5 else "validation"
            if min(map(len, places_of[part])) < 2 * wanted[part]:
                yield part, list(tokenizer(documents[i].text)["input_ids"])
