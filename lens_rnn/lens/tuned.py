"""The tuned lens: an affine translator a layer, in tuned-lens's files."""

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from lens_rnn import artifacts, hub
from lens_rnn.errors import ArtifactError, ConfigError
from lens_rnn.lens.base import Lens
from lens_rnn.lens.unembedding import Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import checked_layers

from jaxtyping import Float
from torch import Tensor
from tuned_lens.nn import lenses as stock

log = logging.getLogger(__name__)


class TunedLens(Lens, stock.TunedLens):
    """Reads a hidden state after an affine map fitted for its layer: unembedding(h + W h + b) (Belrose et al. 2023,
    arXiv 2303.08112).

    Translators are float32 whatever the model's dtype. There is one for each entry of `Forward.hidden_states`; a
    trivial one (the last of a recurrent model) stays zero.
    """

    kind = "tuned"

    def __init__(self, unembed: Unembedding, config: stock.TunedLensConfig):
        super().__init__(unembed, config)
        self.layer_translators.float()  # tuned-lens makes them in the head's dtype

    @classmethod
    def is_at(cls, place: Path) -> bool:
        return (place / artifacts.CONFIG).is_file() or (place / artifacts.PARAMS).is_file()

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
    def load(
        cls,
        adapter: ModelAdapter,
        resource: str | Path,
        unembedding: Unembedding | None = None,
        *,
        layers: Sequence[int] | None = None,
        repo_id: str | None = None,
        repo_type: str | None = None,
        revision: str | None = None,
        subfolder: str = hub.SUBFOLDER,
    ) -> Self:
        """Attach a saved lens, from a folder or from the Hub, to a model. Where it is looked for: `artifacts.load`.

        layers: the layer of each stored translator, rising, for a lens from elsewhere that leaves trivial layers out.

        Raises ArtifactError if it cannot be read, its d_model, number of layers or vocabulary is not the model's, or
        `layers` leave out a layer that is not trivial; ConfigError if the model does not have them, or they do not
        rise. Another base model of the same shape is a warning that names both.
        """
        count = None if layers is None else len(layers)
        place = {"repo_id": repo_id, "repo_type": repo_type, "revision": revision}
        artifact = artifacts.load(resource, translators=count, subfolder=subfolder, **place)
        lens = cls.from_adapter(adapter, unembedding)
        if layers is not None:
            _check_layers(artifact, adapter, layers)
        _compare(artifact, adapter, lens, layers is not None)
        layer_of = range(adapter.n_layers) if layers is None else layers
        parts = ((name.split("."), tensor) for name, tensor in artifact.translators.items())
        stored = {f"{layer_of[int(index)]}.{kind}": tensor for (index, kind), tensor in parts}
        lens.layer_translators.load_state_dict(lens.layer_translators.state_dict() | stored)
        return lens

    def save(self, path: Path | str, ckpt: str = artifacts.PARAMS, config: str = artifacts.CONFIG) -> None:
        """Write config.json and params.pt, float32, each whole or not at all. The names are tuned-lens's and cannot be
        changed."""
        if (ckpt, config) != (artifacts.PARAMS, artifacts.CONFIG):
            raise ArtifactError(
                f"a lens is saved as {artifacts.CONFIG} and {artifacts.PARAMS}, not as {config} and {ckpt}"
            )
        artifacts.save(Path(path), self.config.to_dict(), self.layer_translators.state_dict())

    def transform_hidden(self, h: Float[Tensor, "... d_model"], idx: int) -> Float[Tensor, "... d_model"]:
        """z = h + W h + b (…, d_model), in the translators' dtype."""
        translator = self[idx]
        h = h.to(translator.weight.dtype)
        return h + translator(h)


def _check_layers(artifact: artifacts.Artifact, adapter: ModelAdapter, layers: Sequence[int]) -> None:
    """Refuse stated layers that are not the model's or leave one out that has something to translate."""
    checked_layers(adapter, layers)
    if any(b <= a for a, b in pairwise(layers)):
        raise ConfigError(f"layers must rise, and were stated as {', '.join(map(str, layers))}")
    if absent := [i for i in adapter.fitted_layers if i not in layers]:
        raise ArtifactError(
            f"the lens in {artifact.where} has no translator for layer {absent[0]} of {adapter.name}; "
            "only trivial layers can be left out "
            f"({', '.join(map(str, sorted(adapter.trivial_layers))) or 'it has none'})"
        )


def _compare(artifact: artifacts.Artifact, adapter: ModelAdapter, lens: TunedLens, layers_stated: bool) -> None:
    """Refuse a lens that cannot belong to this model; warn where it probably does not."""
    config, fitted_on = artifact.config, artifact.report.model
    base = str(config.get("base_model_name_or_path") or "a model that it does not name")
    held, n = config["num_hidden_layers"], adapter.n_layers
    shapes = {
        "d_model": (config["d_model"], adapter.d_model),
        # where layers are stated the count is checked already, and config.json may count what is stored or all
        "number of translators": (held, held if layers_stated and len(adapter.fitted_layers) <= held <= n else n),
        "vocabulary": (fitted_on.vocab_size or adapter.vocab_size, adapter.vocab_size),
    }
    for size, (of_lens, of_model) in shapes.items():
        if of_lens != of_model:
            left_out = size.startswith("number") and of_lens == len(adapter.fitted_layers)
            hint = f"; if it leaves the trivial layer out, say layers=range({of_lens})" if left_out else ""
            raise ArtifactError(
                f"the lens in {artifact.where} was made for {base}: its {size} is {of_lens}, {adapter.name} has "
                f"{of_model}{hint}"
            )
    if not config.get("bias", True):
        raise ArtifactError(
            f"the lens in {artifact.where} has translators without bias, which tuned-lens 0.2.0 cannot hold"
        )
    known = fitted_on.unembedding_sha256
    same = known == lens.unembed.sha256() if known and fitted_on.dtype == str(adapter.dtype) else None
    if same is None:
        same = Path(base).name == Path(adapter.name).name
    if not same:
        change = "whose norm or head has changed since" if base == adapter.name else f"not on {adapter.name}"
        log.warning("the lens in %s was fitted on %s, %s", artifact.where, base, change)
