"""The only place that knows an architecture. Importing it registers the adapters that ship with the package."""

from lens_rnn.models import attention, mamba, rwkv4
from lens_rnn.models.adapter import DTYPES, Forward, ModelAdapter, known_architectures, load_model, register, wrap_model

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
