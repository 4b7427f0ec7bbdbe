"""The way from a state before the final norm to logits: what every kind of lens ends with."""

from copy import deepcopy

from lens_rnn import artifacts
from lens_rnn.models import LogitMap, ModelAdapter
from lens_rnn.models.head import plain_copy

from jaxtyping import Float
from torch import Tensor, nn
from tuned_lens import model_surgery
from tuned_lens.nn.unembed import Unembed


class Unembedding(Unembed):
    """Final norm, head and its map: states before the norm to logits. A frozen copy, so that nothing done to a lens
    reaches the model.

    The norm is kept in float32 and the head in the model's dtype; the head's input is cast to it.
    """

    def __init__(self, adapter: ModelAdapter):
        nn.Module.__init__(self)  # tuned-lens's own constructor knows nine architectures only
        self.final_norm = deepcopy(adapter.final_norm).float()
        self.unembedding = plain_copy(adapter.head, adapter.dtype)
        self.logit_map = adapter.logit_map
        self.requires_grad_(False)

    def normed(self, z: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """final_norm(z) in the norm's dtype, shape as z."""
        parameter = next(self.final_norm.parameters(), None)
        return self.final_norm(z if parameter is None else z.to(parameter.dtype))

    def forward(self, h: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits (…, vocab_size) of h (…, d_model), in the head's dtype."""
        return self.logit_map(self.unembedding(self.normed(h).to(self.unembedding.weight.dtype)))

    def sha256(self) -> str:
        """Hash of norm and head as loaded."""
        return artifacts.sha256_of(self.state_dict().items())


def stock_attaches(adapter: ModelAdapter) -> bool:
    """Whether tuned-lens, without this package, attaches a lens to this model as it is here: it finds the same norm and
    head by itself, and their logits are the model's (of a scale or a cap it knows nothing)."""
    try:
        norm, head = model_surgery.get_final_norm(adapter.model), model_surgery.get_unembedding_matrix(adapter.model)
    except (NotImplementedError, ValueError, AttributeError):  # another architecture, head or norm than it knows
        return False
    return norm is adapter.final_norm and head is adapter.head and adapter.logit_map == LogitMap()
