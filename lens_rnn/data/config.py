"""Which text to use, and how much of it: the settings that scripts share."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lens_rnn.errors import ConfigError
from lens_rnn.ranges import check_ranges, whole

STDLIB = "python-stdlib"

Role = Literal["fit", "eval"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text to use, and how much of it."""

    data: str = STDLIB
    """`python-stdlib` (sources of the running Python's standard library), a Hub data set name such as
    monology/pile-uncopyrighted, or a .jsonl, .jsonl.zst or .txt file, or a folder of them. Some of it is held out, and
    the plan says what."""
    eval_data: str | None = None
    """Separate text to measure on, named like --data. Nothing of --data is held out then. Of a Hub data set it is the
    validation split where there is one."""
    data_split: str = "train"
    """Split of a Hub data set that is fitted on. Evaluation uses its own validation split where it has one."""
    text_field: str = "text"
    """Field of a JSON record or of a Hub data set that holds the document."""
    tokens: Annotated[int | None, whole(1)] = None
    """Tokens to fit on, which --passes may show several times; of a small source they are drawn from everywhere.
    Default: 524,288, or all there are if that is less."""
    eval_tokens: Annotated[int | None, whole(1)] = None
    """Held-out tokens to measure on. Default: 32,768, or all there are if that is less."""
    seq_len: Annotated[int, whole(2)] = 256
    """Tokens in a block, at least 2: how far back a prediction can look. Where a text is too short for such blocks they
    are halved until it is not, and a warning says so."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("tokens", "eval_tokens"):
            value = getattr(self, name)
            if value is not None and value < self.seq_len:
                raise ConfigError(f"{name} is {value}, less than one block of seq_len {self.seq_len}; raise it")
        if self.eval_data == self.data:
            raise ConfigError(
                f"data and eval_data are both {self.data}, so nothing would be held out; leave --eval-data out, and "
                "some of the text is"
            )
