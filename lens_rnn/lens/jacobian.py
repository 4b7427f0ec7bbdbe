"""The Jacobian lens: what a change of a hidden state does to the model's later predictions, on average over texts.

    J_l = E[ Σ_t ∂f_t ÷ ∂h_s ]     f the final norm's input, h the hidden state of layer l; the sum over the positions t
                                   of a text from s on, the mean over positions s and texts

It is read as unembed(J_l h), and is not fitted to any prediction: it shows what a state disposes the model to say, now
or later. As a prediction of the next token it can be worse than the logit lens.

Published files hold {"J": {block: (d_model, d_model) float16}, "n_prompts", "source_layers", "d_model"}, where J of a
block belongs to its output. The last block, whose J is the identity, is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from lens_rnn import hub
from lens_rnn.errors import ArtifactError, ConfigError
from lens_rnn.files import write_atomically
from lens_rnn.lens.base import Lens
from lens_rnn.lens.unembedding import Unembedding
from lens_rnn.models import ModelAdapter

import torch
from jaxtyping import Float
from torch import Tensor

_FIELDS = {"J", "n_prompts", "d_model"}
_STORED = torch.float16


class _File(NamedTuple):
    """A file, checked by itself."""

    jacobians: dict[int, Tensor]
    """By block, float32."""
    texts: int
    where: str


class JacobianLens(Lens):
    """unembed(J h): J is float32, whatever the model's dtype. A trivial layer is read as it is."""

    kind = "jacobian"

    def __init__(
        self, adapter: ModelAdapter, jacobians: Mapping[int, Tensor], texts: int, unembedding: Unembedding | None = None
    ):
        """jacobians: (d_model, d_model) by layer, an index of `Forward.hidden_states`. texts: how many they are means
        of."""
        super().__init__(unembedding or Unembedding(adapter))
        self.texts = texts
        self.first_block = 0 if adapter.states_after_blocks else 1  # the layer that block 0 puts out
        self.trivial = adapter.trivial_layers
        self.name = adapter.name
        for layer in sorted(jacobians):
            self.register_buffer(_buffer(layer), jacobians[layer].float())
        self.layers = tuple(sorted(jacobians))
        self.to(adapter.device)

    @property
    def jacobians(self) -> dict[int, Float[Tensor, "d_model d_model"]]:
        """J by layer."""
        return {layer: self.get_buffer(_buffer(layer)) for layer in self.layers}

    @classmethod
    def is_at(cls, place: Path) -> bool:
        if place.is_dir():
            return not (place / "config.json").exists() and len([*place.glob("*.pt")]) == 1
        return place.suffix == ".pt"

    @classmethod
    def load(
        cls,
        adapter: ModelAdapter,
        resource: str | Path,
        unembedding: Unembedding | None = None,
        *,
        revision: str | None = None,
    ) -> Self:
        """Read a published file: a path, a folder that holds one, or on the Hub USER/REPOSITORY, followed by the file's
        path in it unless the repository holds only one.

        Raises ArtifactError if it cannot be had or read, or is of a model of another shape. Nothing in the file is run.
        """
        file = _read(_local(Path(resource)) or hub.fetch_file(str(resource), ".pt", revision))
        if (size := next(iter(file.jacobians.values())).shape[0]) != adapter.d_model:
            raise ArtifactError(
                f"the Jacobian lens {file.where} is of a model with d_model {size}; {adapter.name} has "
                f"{adapter.d_model}"
            )
        if (last := max(file.jacobians)) >= adapter.n_layers:
            raise ArtifactError(
                f"the Jacobian lens {file.where} is of a model with {last + 1} blocks or more; {adapter.name} has "
                f"{adapter.n_layers}"
            )
        first = 0 if adapter.states_after_blocks else 1
        by_layer = {block + first: j for block, j in file.jacobians.items() if block + first < adapter.n_layers}
        if not by_layer:
            raise ArtifactError(f"the Jacobian lens {file.where} has nothing for a layer of {adapter.name}")
        return cls(adapter, by_layer, file.texts, unembedding)

    def save(self, path: Path | str) -> None:
        """Write one file as others publish and read them, J in float16."""
        jacobians = {
            layer - self.first_block: j.to("cpu", _STORED)
            for layer, j in self.jacobians.items()
            if layer not in self.trivial and layer >= self.first_block
        }
        content = {
            "J": jacobians,
            "n_prompts": self.texts,
            "source_layers": sorted(jacobians),
            "d_model": next(iter(self.jacobians.values())).shape[0],
        }
        write_atomically(Path(path), lambda file: torch.save(content, file))

    @classmethod
    def merge(cls, adapter: ModelAdapter, lenses: Sequence["JacobianLens"]) -> Self:
        """The lens of all texts of lenses that were fitted on different ones: the mean, by their number of texts.

        Raises ConfigError if there is none, or they read different layers.
        """
        if not lenses:
            raise ConfigError("there is no lens to merge")
        if len({lens.layers for lens in lenses}) > 1:
            raise ConfigError(f"they read different layers: {' and '.join(str(lens.layers) for lens in lenses)}")
        texts = sum(lens.texts for lens in lenses)
        means = {
            layer: sum((lens.jacobians[layer].double() * (lens.texts / texts) for lens in lenses), torch.tensor(0.0))
            for layer in lenses[0].layers
        }
        return cls(adapter, means, texts, lenses[0].unembed)

    def reads(self, layer: int) -> bool:
        return layer in self.layers or layer in self.trivial

    def transform_hidden(self, h: Float[Tensor, "... d_model"], idx: int) -> Float[Tensor, "... d_model"]:
        """z = J h (…, d_model), float32. Raises ConfigError for a layer without J."""
        if idx in self.layers:
            j = self.get_buffer(_buffer(idx))
            return h.to(j.dtype) @ j.T
        if idx in self.trivial:
            return h
        read = ", ".join(map(str, self.layers))
        raise ConfigError(f"this Jacobian lens of {self.name} has nothing for layer {idx}; it reads {read}")

    def forward(self, h: Float[Tensor, "... d_model"], idx: int) -> Float[Tensor, "... vocab"]:
        """Logits (…, vocab_size) of the hidden states (…, d_model) of layer `idx`."""
        return self.unembed(self.transform_hidden(h, idx))


def _buffer(layer: int) -> str:
    return f"jacobian_{layer}"


def _local(place: Path) -> Path | None:
    """The file that a path means, if it is here. Raises ArtifactError for a folder with none or several."""
    if place.is_dir():
        files = sorted(place.glob("*.pt"))
        if len(files) != 1:
            names = ", ".join(path.name for path in files) or "none"
            raise ArtifactError(f"a Jacobian lens is one .pt file, and in {place} there are: {names}; name the file")
        return files[0]
    return place if place.is_file() else None


def _read(path: Path) -> _File:
    """Raises ArtifactError if it is damaged, or not a Jacobian lens."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged or unsafe file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ArtifactError(f"cannot read the Jacobian lens {path} ({reason})") from None
    if not isinstance(content, dict) or not content.keys() >= _FIELDS or not isinstance(content["J"], dict):
        raise ArtifactError(f"{path} is not a Jacobian lens: it does not hold {', '.join(sorted(_FIELDS))}")
    d, texts = content["d_model"], content["n_prompts"]
    if not content["J"] or not isinstance(texts, int) or texts < 1:
        raise ArtifactError(f"the Jacobian lens {path} holds {len(content['J'])} layers of {texts} texts")
    for block, j in content["J"].items():
        if not isinstance(block, int) or block < 0 or not isinstance(j, Tensor) or j.shape != (d, d):
            shape = tuple(j.shape) if isinstance(j, Tensor) else type(j).__name__
            raise ArtifactError(f"the Jacobian lens {path} has {shape} for layer {block!r}, not ({d}, {d})")
        if not bool(j.isfinite().all()):
            raise ArtifactError(f"the Jacobian lens {path} is not finite at layer {block}")
    return _File({block: j.float() for block, j in content["J"].items()}, texts, str(path))
