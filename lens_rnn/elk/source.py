"""Which quirky data a run uses: a set made here, files, or the Hub."""

from dataclasses import dataclass, fields
from typing import Annotated

from lens_rnn.elk.files import load
from lens_rnn.elk.generators import GENERATORS, generate
from lens_rnn.elk.quirky import SPLITS, QuirkySet
from lens_rnn.ranges import SEED, check_ranges, whole


@dataclass(frozen=True, kw_only=True)
class QuirkyData:
    """Which quirky rows, and how many. A generated set is a function of these settings."""

    data: str = "comparison"
    """addition, subtraction, multiplication, modularaddition, squaring or comparison, which are made here; hub:NAME for
    one of the 12 published sets; a folder of train.jsonl, validation.jsonl and test.jsonl; or a data set on the Hub."""
    train_questions: Annotated[int, whole(1)] = 2800
    """Questions to fine-tune on; each is two rows, Alice's and Bob's."""
    validation_questions: Annotated[int, whole(1)] = 700
    """Questions to fit probes on."""
    test_questions: Annotated[int, whole(1)] = 700
    """Questions to report on."""
    data_seed: Annotated[int, SEED] = 0
    """Of generated questions."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def questions(self) -> dict[str, int]:
        return {split: getattr(self, f"{split}_questions") for split in SPLITS}

    @classmethod
    def of(cls, config: "QuirkyData") -> "QuirkyData":
        """Of a command's settings those that decide which rows there are."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def open_quirky(config: QuirkyData) -> QuirkySet:
    """The set that the settings mean, no split longer than they say."""
    if config.data in GENERATORS:
        return generate(config.data, config.questions, config.data_seed)
    return load(config.data, {split: 2 * count for split, count in config.questions.items()})
