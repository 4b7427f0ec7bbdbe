"""The best known translators of a model, as numbers: what a long fit reached on some held-out text, kept beside the
model's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ArtifactError
from lens_rnn.files import read_json, write_json
from lens_rnn.models import ModelAdapter

import numpy as np

FILE = "lens_reference.json"


def load_reference(adapter: ModelAdapter, weights_sha256: str, eval_blocks: TokenBlocks) -> dict[int, float] | None:
    """Reference KL by layer, in nats a token, or None where the model's folder has none for these very weights and
    tokens.

    Raises ArtifactError if the file is there and is not one.
    """
    path = Path(adapter.name) / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("weights_sha256") != weights_sha256:
        return None
    try:
        kl = {int(layer): float(value) for layer, value in content["kl"][eval_blocks.sha256].items()}
    except KeyError:
        return None
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a lens reference ({error})") from error
    return kl if set(adapter.fitted_layers) <= set(kl) else None


def save_reference(
    adapter: ModelAdapter, weights_sha256: str, eval_blocks: TokenBlocks, kl: dict[int, float], made: dict[str, Any]
) -> Path:
    """Write what a fit reached as the reference for these weights and tokens. made: how, for people."""
    path = Path(adapter.name) / FILE
    content = {
        "weights_sha256": weights_sha256,
        "unit": "KL in nats per token, by hash of the evaluation tokens and layer",
        "made": made,
        "kl": {eval_blocks.sha256: {str(layer): kl[layer] for layer in adapter.fitted_layers}},
    }
    write_json(path, content)
    return path


def distance(kl: Mapping[int, float], reference: Mapping[int, float], layers: tuple[int, ...]) -> float:
    """How far a lens is from the reference: mean KL over layers, relative to the reference's (0.02: 2 % above it)."""
    return float(np.mean([kl[i] for i in layers]) / np.mean([reference[i] for i in layers]) - 1)
