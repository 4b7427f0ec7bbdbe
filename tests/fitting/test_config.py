"""Settings out of range are refused."""

from lens_rnn.errors import ConfigError
from lens_rnn.fitting import FitConfig

import pytest

BAD_SETTINGS = {
    "batch_size": 0,
    "passes": 0,
    "learning_rate": -1.0,
    "clip": 0.0,
    "seed": -1,
    "chunk_tokens": 0,
    "start_tokens": 0,
    "positions": 0.0,
    "choice_tokens": -1,
}
UNKNOWN_NAMES = {"optimizer": "lion", "loss": "mse", "products": "fp8", "start": "pca"}


@pytest.mark.parametrize(("name", "value"), [*BAD_SETTINGS.items(), *UNKNOWN_NAMES.items()])
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    """Past the runtime checks of annotations, which stop an unknown name first in tests."""
    config = FitConfig()
    object.__setattr__(config, name, value)
    with pytest.raises(ConfigError, match=name):
        config.__post_init__()
