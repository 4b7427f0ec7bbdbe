"""LogitLens and TunedLens for any adapter, as subclasses of tuned-lens's own, so that what takes its lenses takes these."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Self

from lens_rnn import artifacts
from lens_rnn.errors import ArtifactError
from lens_rnn.models import ModelAdapter

from torch import Tensor, nn
from tuned_lens.nn import lenses as stock
from tuned_lens.nn.unembed import Unembed

log = logging.getLogger(__name__)


class Unembedding(Unembed):
    """Final norm and head: states before the norm to logits. A frozen copy, so that nothing done to a lens reaches the model.

    The norm is kept in float32 and the head in the model's dtype; the head's input is cast to it.
    """

    def __init__(self, adapter: ModelAdapter):
        nn.Module.__init__(self)  # tuned-lens's own constructor knows nine architectures only
        self.final_norm = deepcopy(adapter.final_norm).float()
        self.unembedding = deepcopy(adapter.head)
        self.requires_grad_(False)

    def normed(self, z: Tensor) -> Tensor:
        """final_norm(z) in the norm's dtype, shape as z."""
        parameter = next(self.final_norm.parameters(), None)
        return self.final_norm(z if parameter is None else z.to(parameter.dtype))

    def forward(self, h: Tensor) -> Tensor:
        """Logits (…, vocab_size) of h (…, d_model), in the head's dtype."""
        return self.unembedding(self.normed(h).to(self.unembedding.weight.dtype))

    def sha256(self) -> str:
        """Hash of norm and head as loaded."""
        return artifacts.sha256_of(self.state_dict().items())


class LogitLens(stock.LogitLens):
    """Reads a hidden state as if it were the last: unembedding(h)."""

    @classmethod
    def from_adapter(cls, adapter: ModelAdapter, unembedding: Unembedding | None = None) -> Self:
        return cls(unembedding or Unembedding(adapter))


class TunedLens(stock.TunedLens):
    """Reads a hidden state after an affine map fitted for its layer: unembedding(h + W h + b) (Belrose et al. 2023, arXiv 2303.08112).

    Translators are float32 whatever the model's dtype. There is one for each entry of `Forward.hidden_states`; a trivial one (the
    last of a recurrent model) stays zero.
    """

    def __init__(self, unembed: Unembedding, config: stock.TunedLensConfig):
        super().__init__(unembed, config)
        self.layer_translators.float()  # tuned-lens makes them in the head's dtype

    @classmethod
    def from_adapter(cls, adapter: ModelAdapter, unembedding: Unembedding | None = None) -> Self:
        """A lens with zero translators: equal to the logit lens."""
        config = stock.TunedLensConfig(
            base_model_name_or_path=adapter.name,
            d_model=adapter.d_model,
            num_hidden_layers=adapter.n_layers,
            base_model_revision=adapter.revision,
        )
        return cls(unembedding or Unembedding(adapter), config).to(adapter.device)

    @classmethod
    def load(cls, adapter: ModelAdapter, resource: str | Path, unembedding: Unembedding | None = None) -> Self:
        """Attach a saved lens, from a folder or a tuned-lens resource on the Hub, to a model.

        Raises ArtifactError if it cannot be read or its d_model, number of layers or vocabulary is not the model's. Another base model
        of the same shape is a warning that names both.
        """
        artifact = artifacts.load(resource)
        lens = cls.from_adapter(adapter, unembedding)
        _compare(artifact, adapter, lens)
        lens.layer_translators.load_state_dict(artifact.translators)
        return lens

    def save(self, path: Path | str, ckpt: str = artifacts.PARAMS, config: str = artifacts.CONFIG) -> None:
        """Write config.json and params.pt, float32, each whole or not at all. The names are tuned-lens's and cannot be changed."""
        if (ckpt, config) != (artifacts.PARAMS, artifacts.CONFIG):
            raise ArtifactError(f"a lens is saved as {artifacts.CONFIG} and {artifacts.PARAMS}, not as {config} and {ckpt}")
        artifacts.save(Path(path), self.config.to_dict(), self.layer_translators.state_dict())

    def transform_hidden(self, h: Tensor, idx: int) -> Tensor:
        """z = h + W h + b (…, d_model), in the translators' dtype."""
        translator = self[idx]
        h = h.to(translator.weight.dtype)
        return h + translator(h)


def _compare(artifact: artifacts.Artifact, adapter: ModelAdapter, lens: TunedLens) -> None:
    """Refuse a lens that cannot belong to this model; warn where it probably does not."""
    config, fitted_on = artifact.config, artifact.fit.get("model", {})
    shapes = {
        "d_model": (config["d_model"], adapter.d_model),
        "number of translators": (config["num_hidden_layers"], adapter.n_layers),
        "vocabulary": (fitted_on.get("vocab_size", adapter.vocab_size), adapter.vocab_size),
    }
    for what, (its, models) in shapes.items():
        if its != models:
            base = config.get("base_model_name_or_path", "another model")
            raise ArtifactError(f"the lens in {artifact.where} was made for {base}: its {what} is {its}, {adapter.name} has {models}")
    if not config.get("bias", True):
        raise ArtifactError(f"the lens in {artifact.where} has translators without bias, which tuned-lens 0.2.0 cannot hold")
    known = fitted_on.get("unembedding_sha256")
    same = known == lens.unembed.sha256() if known and fitted_on.get("dtype") == str(adapter.dtype) else None
    if same is None:
        same = Path(str(config.get("base_model_name_or_path"))).name == Path(adapter.name).name
    if not same:
        base = config.get("base_model_name_or_path")
        change = "whose norm or head has changed since" if base == adapter.name else f"not on {adapter.name}"
        log.warning("the lens in %s was fitted on %s, %s", artifact.where, base, change)
