"""Which rows settings mean."""

from pathlib import Path

from lens_rnn.elk.generators import generate
from lens_rnn.elk.source import QuirkyData, open_quirky
from lens_rnn.errors import ConfigError
from tests.elk.rows import write_set

import pytest


def test_settings(tmp_path: Path) -> None:
    config = QuirkyData(data="addition", train_questions=4, validation_questions=4, test_questions=4, data_seed=2)
    assert open_quirky(config) == generate("addition", {"train": 4, "validation": 4, "test": 4}, 2)
    folder = write_set(tmp_path / "own", 12)
    assert len(open_quirky(QuirkyData(data=str(folder), test_questions=3)).rows("test")) == 6
    with pytest.raises(ConfigError, match="test_questions is 0"):
        QuirkyData(test_questions=0)
