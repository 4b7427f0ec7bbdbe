"""What a steering experiment is made of: pairs for the vectors, questions to choose layer and multiplier on, and others
to report on. Here from contrastive questions of a behaviour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lens_rnn.errors import DataError
from lens_rnn.ranges import SEED, check_ranges, whole
from lens_rnn.steering.clusters import stem, with_clusters, words_of
from lens_rnn.steering.items import Item, balanced, behaviour_file, read_items, swapped, warn_of_letters
from lens_rnn.steering.pairs import Pair, Question, tokenise

import numpy as np
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The data of one experiment. No question of `validation` or `test` is in the pairs, and none in both."""

    name: str
    pairs: Sequence[Pair]
    validation: Sequence[Question]
    test: Sequence[Question]
    swapped: Sequence[Question] = ()
    """The test questions with their options exchanged, where they have letters: an effect on the letter alone is
    reversed on them."""
    left_out: Sequence[str] = ()
    """What the test set asks and the pairs or the validation questions ask too: it is in no part but those."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where it is from, for the report and the vectors' metadata."""


@dataclass(frozen=True, kw_only=True)
class BehaviourConfig:
    """How the questions of a behaviour are read and shared out."""

    template: str = "plain"
    """What stands before an answer: a name of TEMPLATES, "tokenizer", or a text with {question} in it."""
    balance_letters: bool = False
    """Every item of the pairs twice, once with its options swapped."""
    pairs: Annotated[int | None, whole(1)] = None
    """At most so many items for the pairs; None for all."""
    questions: Annotated[int, whole(1)] = 50
    """Validation questions, and at most as many test questions."""
    seed: Annotated[int, SEED] = 0
    """Of the order of the items."""

    def __post_init__(self) -> None:
        check_ranges(self)


def behaviour_contrast(
    source: str, behaviour: str, tokenizer: PreTrainedTokenizerBase, config: BehaviourConfig | None = None
) -> Contrast:
    """A behaviour of a folder or a Hub data set, or a JSON file of the same format if `behaviour` ends in .json.

    Vectors come from the generate set less config.questions items, on which layer and multiplier are chosen; the report
    is on the test set. A single file gives all three. An item that asks what another part asks, in the same words, is
    in one of them only, and left out of the test set first. Questions of one stem are one cluster.

    Raises DataError if the file is missing, malformed, or has too few items.
    """
    config = config or BehaviourConfig()
    alone = behaviour.endswith(".json")
    items = read_items(Path(behaviour).expanduser() if alone else behaviour_file(source, behaviour, "generate"))
    needed = config.questions * (2 if alone else 1) + 1
    if len(items) < needed:
        raise DataError(
            f"{behaviour} has {len(items)} items, and {needed} are needed to hold {config.questions} questions out; "
            "lower --questions"
        )
    shuffled = [items[i] for i in np.random.default_rng(config.seed).permutation(len(items)).tolist()]
    validation, rest = shuffled[: config.questions], shuffled[config.questions :]
    if alone:
        test, rest = rest[: config.questions], rest[config.questions :]
    else:
        test = read_items(behaviour_file(source, behaviour, "test"))[: config.questions]
    rest = _asking_other_than(validation, rest)[: config.pairs]
    kept = _asking_other_than([*validation, *rest], test)
    if not rest or not kept:
        raise DataError(f"{behaviour}: the items of two parts ask the same; give a set whose questions differ")
    if config.balance_letters:
        rest = balanced(rest)
    else:
        warn_of_letters(rest)
    exchanged = [(item, other) for item in kept if (other := swapped(item)) is not None]

    def questions(asked: Sequence[Item], of: Sequence[Item]) -> list[Question]:
        return with_clusters(tokenise(asked, config.template, tokenizer), [stem(item) for item in of])

    return Contrast(
        name=Path(behaviour).stem,
        pairs=[question.pair for question in tokenise(rest, config.template, tokenizer)],
        validation=questions(validation, validation),
        test=questions(kept, kept),
        swapped=questions([other for _, other in exchanged], [item for item, _ in exchanged]) if exchanged else (),
        left_out=[item.question for item in test if item not in kept],
        about={
            "behaviour": behaviour,
            "source": source,
            "template": config.template,
            "letters_balanced": config.balance_letters,
            "position": "the answer's letter",
        },
    )


def _asking_other_than(others: Sequence[Item], items: Sequence[Item]) -> list[Item]:
    """The items that ask, in their words, what none of the others asks."""
    asked = {words_of(item) for item in others}
    return [item for item in items if words_of(item) not in asked]
