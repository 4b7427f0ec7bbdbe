"""The only place that knows an architecture. Importing it registers the adapters that ship with the package."""

from lens_rnn.models import attention, mamba, recurrent_gemma, rwkv, rwkv4
from lens_rnn.models.adapter import Forward, ModelAdapter, capped, known_architectures, register
from lens_rnn.models.loading import DTYPES, load_model, wrap_model
from lens_rnn.models.state import RecurrentState
from lens_rnn.models.supported import Family, supported

__all__ = [
    "DTYPES",
    "Family",
    "Forward",
    "ModelAdapter",
    "RecurrentState",
    "attention",
    "capped",
    "known_architectures",
    "load_model",
    "mamba",
    "recurrent_gemma",
    "register",
    "rwkv",
    "rwkv4",
    "supported",
    "wrap_model",
]
