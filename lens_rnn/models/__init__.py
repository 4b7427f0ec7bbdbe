"""The only place that knows an architecture. Importing it registers the adapters that ship with the package."""

from lens_rnn.models import attention, mamba, rwkv4
from lens_rnn.models.adapter import Forward, ModelAdapter, known_architectures, register
from lens_rnn.models.loading import DTYPES, load_model, wrap_model

__all__ = [
    "DTYPES",
    "Forward",
    "ModelAdapter",
    "attention",
    "known_architectures",
    "load_model",
    "mamba",
    "register",
    "rwkv4",
    "wrap_model",
]
