"""The only place that knows an architecture. Importing it registers the adapters that ship with the package."""

from lens_rnn.models import families
from lens_rnn.models.adapter import Forward, ModelAdapter
from lens_rnn.models.families.recurrent import RecurrentAdapter, Rules
from lens_rnn.models.head import LogitMap
from lens_rnn.models.loading import DTYPES, load_model, wrap_model
from lens_rnn.models.outline import has_weights_here, outline_model
from lens_rnn.models.registry import known_architectures, register
from lens_rnn.models.state import BlockState, RecurrentState
from lens_rnn.models.supported import Family, supported

__all__ = [
    "DTYPES",
    "BlockState",
    "Family",
    "Forward",
    "LogitMap",
    "ModelAdapter",
    "RecurrentAdapter",
    "RecurrentState",
    "Rules",
    "families",
    "has_weights_here",
    "known_architectures",
    "load_model",
    "outline_model",
    "register",
    "supported",
    "wrap_model",
]
