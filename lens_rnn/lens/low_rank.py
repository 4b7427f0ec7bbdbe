"""The low-rank lens: a tuned lens whose translators are products of two thin matrices, for models whose full ones are
too large to keep or to publish.

    z = h + A (B h) + b      A (d_model, rank), B (rank, d_model), b (d_model)

A folder of config.json, as a tuned lens's with another type and the rank, and params.pt, the state dict of its
translators.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from lens_rnn import artifacts
from lens_rnn.errors import ArtifactError
from lens_rnn.files import read_json, write_atomically, write_json
from lens_rnn.lens.base import Lens
from lens_rnn.lens.unembedding import Unembedding
from lens_rnn.models import ModelAdapter

import torch
from jaxtyping import Float
from torch import Tensor

LENS_TYPE = "low_rank_lens"


class Translator(NamedTuple):
    """Of one layer, float32."""

    out: Float[Tensor, "d_model rank"]
    """A"""
    into: Float[Tensor, "rank d_model"]
    """B"""
    bias: Float[Tensor, " d_model"]


class LowRankLens(Lens):
    """unembed(h + A (B h) + b), float32 whatever the model's dtype. A layer without a translator is trivial and read as
    it is."""

    kind = "low-rank"

    def __init__(
        self, adapter: ModelAdapter, translators: Mapping[int, Translator], unembedding: Unembedding | None = None
    ):
        """translators: by layer, of one rank."""
        super().__init__(unembedding or Unembedding(adapter))
        self.base_model, self.n_layers = adapter.name, adapter.n_layers
        self.layers = tuple(sorted(translators))
        for layer in self.layers:
            for name, tensor in translators[layer]._asdict().items():
                self.register_buffer(_buffer(layer, name), tensor.float().contiguous())
        self.to(adapter.device)

    def translator(self, layer: int) -> Translator:
        return Translator(*(self.get_buffer(_buffer(layer, name)) for name in Translator._fields))

    @property
    def rank(self) -> int:
        return self.translator(self.layers[0]).into.shape[0]

    @classmethod
    def is_at(cls, place: Path) -> bool:
        config = place / artifacts.CONFIG
        return config.is_file() and read_json(config).get("lens_type") == LENS_TYPE

    def save(self, folder: Path | str) -> None:
        """Write config.json and params.pt, each whole or not at all."""
        config = {
            "base_model_name_or_path": self.base_model,
            "d_model": self.translator(self.layers[0]).bias.shape[0],
            "num_hidden_layers": self.n_layers,
            "lens_type": LENS_TYPE,
            "rank": self.rank,
        }
        state = {
            f"{layer}.{name}": tensor.cpu()
            for layer in self.layers
            for name, tensor in self.translator(layer)._asdict().items()
        }
        write_atomically(Path(folder) / artifacts.PARAMS, lambda file: torch.save(state, file))
        write_json(Path(folder) / artifacts.CONFIG, config)

    @classmethod
    def load(cls, adapter: ModelAdapter, resource: str | Path, unembedding: Unembedding | None = None) -> Self:
        """Attach a saved lens to a model. Raises ArtifactError if it cannot be read, or its sizes are not the
        model's."""
        folder = Path(resource)
        config = read_json(folder / artifacts.CONFIG)
        for size, own in (("d_model", adapter.d_model), ("num_hidden_layers", adapter.n_layers)):
            if config.get(size) != own:
                raise ArtifactError(
                    f"the lens in {folder} was made for {config.get('base_model_name_or_path')}: its {size} is "
                    f"{config.get(size)}, {adapter.name} has {own}"
                )
        try:
            state: Any = torch.load(folder / artifacts.PARAMS, map_location="cpu", weights_only=True)
            layers = sorted({int(name.split(".")[0]) for name in state})
            translators = {i: Translator(*(state[f"{i}.{name}"] for name in Translator._fields)) for i in layers}
        except Exception as error:  # torch raises a dozen types for a damaged file
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ArtifactError(f"cannot read the lens in {folder} ({reason})") from None
        d, rank = adapter.d_model, config.get("rank")
        shapes = {(d, rank), (rank, d), (d,)}
        odd = [i for i, parts in translators.items() if {tuple(part.shape) for part in parts} != shapes]
        absent = [i for i in adapter.fitted_layers if i not in translators]
        if odd or absent:
            raise ArtifactError(
                f"the lens in {folder} has no translator of d_model {d} and rank {rank} for layer {(odd + absent)[0]}"
            )
        return cls(adapter, translators, unembedding)

    def transform_hidden(self, h: Float[Tensor, "... d_model"], idx: int) -> Float[Tensor, "... d_model"]:
        """z = h + A (B h) + b (…, d_model), float32."""
        if idx not in self.layers:
            return h
        translator = self.translator(idx)
        h = h.to(translator.bias.dtype)
        return h + (h @ translator.into.T) @ translator.out.T + translator.bias

    def forward(self, h: Float[Tensor, "... d_model"], idx: int) -> Float[Tensor, "... vocab"]:
        """Logits (…, vocab_size) of the hidden states (…, d_model) of layer `idx`."""
        return self.unembed(self.transform_hidden(h, idx))


def _buffer(layer: int, name: str) -> str:
    return f"{name}_{layer}"
