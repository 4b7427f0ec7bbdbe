"""Steering vectors: what distinguishes a model's states on positive texts from those on negative ones, layer by layer.

Residual stream and every tensor of the recurrent state alike. Sums are streamed in float64: no states pile up, whatever
the model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from lens_rnn.artifacts import sha256_of
from lens_rnn.directions import PairSums, discriminant, logistic, shrunk
from lens_rnn.errors import ArtifactError, ConfigError, DataError, FitError
from lens_rnn.files import write_atomically
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import SEED, check_ranges, number, whole
from lens_rnn.steering.pairs import Pair, Text, data_sha256, tokenised_pairs

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

RESIDUAL = "residual"
Method = Literal["mean", "lda", "logistic"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeringVectors:
    """One vector for the residual stream of each layer, and one for each tensor of each block's recurrent state."""

    tensors: Mapping[str, Tensor]
    """"residual.3" (d_model), "ssm.3" (channels, n), …: float32, on the CPU, in the units of the states themselves."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What it takes to make them again: model and weights hash, template, data hash, position, method."""

    def residual(self, layer: int) -> Tensor:
        """(d_model). Raises ConfigError if there is none for this layer."""
        if f"{RESIDUAL}.{layer}" not in self.tensors:
            raise ConfigError(f"there is no steering vector for the {RESIDUAL} of layer {layer}")
        return self.tensors[f"{RESIDUAL}.{layer}"]

    def state(self, layer: int) -> dict[str, Tensor]:
        """The state's vectors of a block, by name. Raises ConfigError if there are none."""
        names = [name for name, at in (key.split(".") for key in self.tensors) if at == str(layer)]
        tensors = {name: self.tensors[f"{name}.{layer}"] for name in names if name != RESIDUAL}
        if not tensors:
            raise ConfigError(f"there is no steering vector for the recurrent state of layer {layer}")
        return tensors

    @property
    def state_layers(self) -> tuple[int, ...]:
        """Layers whose block has a state vector."""
        return tuple(sorted({int(key.split(".")[1]) for key in self.tensors if not key.startswith(RESIDUAL)}))

    def random(self, seed: int) -> Self:
        """Vectors of the same norms in random directions: the control of a steering effect."""
        generator = torch.Generator().manual_seed(seed)
        made = {key: _scaled(torch.randn(t.shape, generator=generator), t) for key, t in self.tensors.items()}
        return type(self)(tensors=made, about={**self.about, "control": f"random {seed}"})

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; `about` is in its metadata."""
        data = safetensors.torch.save(
            {k: t.contiguous() for k, t in self.tensors.items()}, {"lens_rnn": json.dumps(dict(self.about))}
        )
        write_atomically(path, lambda file: file.write(data))

    @classmethod
    def load(cls, adapter: ModelAdapter, path: Path | str) -> Self:
        """Read vectors that were made for this model. Raises ArtifactError if they cannot be read or were made for
        another."""
        try:
            with safetensors.safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})["lens_rnn"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 # safe_open is no mapping
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise ArtifactError(
                f"{path} holds no steering vectors that can be read ({' '.join(str(error).split())[:120]})"
            ) from None
        ours = model_identity(adapter)
        differing = [name for name in ("d_model", "n_layers", "model_type") if about.get(name) != ours[name]]
        if (
            not differing
            and about.get("dtype") == ours["dtype"]
            and about.get("weights_sha256") != ours["weights_sha256"]
        ):
            differing = ["weights"]
        if differing:
            raise ArtifactError(
                f"the steering vectors in {path} were made for {about.get('model')}, not for {adapter.name}: "
                f"its {differing[0]} is another; make them anew for this model"
            )
        return cls(tensors=tensors, about=about)


def model_identity(adapter: ModelAdapter) -> dict[str, Any]:
    """What says of a vector which model it belongs to."""
    return {
        "model": adapter.name,
        "model_type": adapter.model_type,
        "d_model": adapter.d_model,
        "n_layers": adapter.n_layers,
        "dtype": str(adapter.dtype),
        "weights_sha256": sha256_of(adapter.model.state_dict().items()),
    }


class Fitted(NamedTuple):
    """Vectors, and the same from shuffled labels: each pair's sides exchanged for a random half of the pairs, scaled to
    the true norms."""

    vectors: SteeringVectors
    shuffled: list[SteeringVectors]


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """How vectors are made of the states at the last tokens of pairs."""

    method: Method = "mean"
    """"mean", the mean difference (Rimsky et al. 2023, arXiv 2312.06681); "lda", Σ⁻¹ times it, Σ the within-class
    covariance; "logistic", the weights of an L2-regularised logistic regression, for the residual stream only. The
    last two are scaled to the norm of the mean difference, so that a multiplier means the same for all."""
    states: bool = True
    """Also for every tensor of the recurrent state."""
    shrinkage: Annotated[float, number(0, 1)] = 0.1
    """Of Σ towards its mean diagonal, for lda."""
    shuffles: Annotated[int, whole()] = 0
    """Vectors from shuffled labels, as controls."""
    seed: Annotated[int, SEED] = 0
    """Of the shuffles."""
    batch_size: Annotated[int, whole(1)] = 16
    """Pairs in a pass."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"method {self.method!r} is unknown; choose from {', '.join(get_args(Method))}")
        check_ranges(self)
        if self.states and self.method == "logistic":
            raise ConfigError(
                "logistic vectors exist for the residual stream only: states are too large to keep; choose mean or lda"
            )


@torch.no_grad()
def fit_vectors(
    adapter: ModelAdapter,
    pairs: Sequence[tuple[Text, Text]],
    config: VectorConfig | None = None,
    about: Mapping[str, Any] | None = None,
) -> Fitted:
    """Vectors for every layer from the states at the last tokens of `pairs`, of texts or of their token ids.

    Σ is whole for the residual stream, n_layers · d_model² float64 numbers, and diagonal for state tensors, which are
    large. "logistic" holds the residual states of all pairs.
    about: what else the vectors' metadata should say.

    Raises DataError for no pairs, an empty text or ids that the model does not have, ConfigError for a model without
    the states asked for, FitError for a singular Σ.
    """
    config = config or VectorConfig()
    _check(adapter, pairs, config)
    texts = tokenised_pairs(pairs, adapter)
    signs = _labellings(len(pairs), config.shuffles, config.seed)  # (1 + shuffles, pairs)
    sums: dict[str, PairSums] = {}
    shapes: dict[str, torch.Size] = {}
    kept: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for rows, positive, negative in _read_pairs(adapter, texts, config):
        for key in positive:
            a, b = positive[key].flatten(1), negative[key].flatten(1)
            if key not in sums:
                scatter = "whole" if key.startswith(RESIDUAL) else "diagonal"
                sums[key] = PairSums(a.shape[1], len(signs), scatter if config.method == "lda" else None)
                shapes[key] = positive[key].shape[1:]
            sums[key].add(a, b, signs[:, rows])
            if config.method == "logistic":
                kept.setdefault(key, []).append((a, b, signs[:, rows]))
    made = [
        {key: _direction(key, s, kept.get(key, ()), i, config).reshape(shapes[key]).float() for key, s in sums.items()}
        for i in range(len(signs))
    ]
    facts = model_identity(adapter) | {"method": config.method, "pairs": len(pairs), "data_sha256": data_sha256(texts)}
    facts |= dict(about or {}) | ({"shrinkage": config.shrinkage} if config.method == "lda" else {})
    shuffled = [
        SteeringVectors(
            tensors={key: _scaled(t, made[0][key]) for key, t in tensors.items()},
            about=facts | {"control": f"shuffled {config.seed + i}"},
        )
        for i, tensors in enumerate(made[1:])
    ]
    return Fitted(SteeringVectors(tensors=made[0], about=facts), shuffled)


def _check(adapter: ModelAdapter, pairs: Sequence[Any], config: VectorConfig) -> None:
    if config.states and not adapter.has_state:
        raise ConfigError(f"{adapter.no_state}; steer the residual stream alone")
    if not pairs:
        raise DataError("there are no contrastive pairs; a steering vector needs at least one")


def _labellings(pairs: int, shuffles: int, seed: int) -> Tensor:
    """(1 + shuffles, pairs) of ±1: the true sides, then shuffled ones of which half are exchanged."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.where(torch.arange(pairs) < pairs // 2, -1, 1)
    return torch.stack(
        [torch.ones_like(half), *(half[torch.randperm(pairs, generator=generator)] for _ in range(shuffles))]
    )


def _read_pairs(
    adapter: ModelAdapter, pairs: Sequence[Pair], config: VectorConfig
) -> Iterator[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]]:
    """States at the last tokens of both sides of some pairs at a time, and which pairs they are; alike lengths go
    together."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].positive), len(pairs[i].negative)))
    for start in range(0, len(order), config.batch_size):
        rows = order[start : start + config.batch_size]
        texts = [pairs[i].positive for i in rows] + [pairs[i].negative for i in rows]
        read = last_states(adapter, texts, config.states)
        yield rows, {k: t[: len(rows)] for k, t in read.items()}, {k: t[len(rows) :] for k, t in read.items()}


def last_states(adapter: ModelAdapter, texts: Sequence[Sequence[int]], states: bool) -> dict[str, Tensor]:
    """The states after the last token of each text, float32 on the CPU: "residual.0" (texts, d_model), "ssm.0" (texts,
    …), ….

    Without recurrent states the texts go through the model together, padded on the right; with them those of one
    length, because a recurrent state remembers padding.
    """
    lengths = torch.tensor([len(text) for text in texts])
    if not states:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(
            adapter.device
        )
        forward = adapter.forward(ids)
        last = (lengths - 1).to(adapter.device)
        return {
            f"{RESIDUAL}.{i}": _plain(h[torch.arange(len(texts), device=h.device), last])
            for i, h in enumerate(forward.hidden_states)
        }
    parts: dict[str, list[Tensor]] = {}
    order: list[int] = []
    for length in lengths.unique().tolist():
        rows = [i for i, text in enumerate(texts) if len(text) == length]
        order += rows
        forward, state = adapter.advance(torch.tensor([texts[i] for i in rows], device=adapter.device))
        read = {f"{RESIDUAL}.{i}": h[:, -1] for i, h in enumerate(forward.hidden_states)}
        read |= {
            f"{name}.{i}": b[name] for name in adapter.state_names for i, b in enumerate(state.blocks) if name in b
        }
        for key, tensor in read.items():
            parts.setdefault(key, []).append(_plain(tensor))
    back = torch.tensor(order).argsort()
    return {key: torch.cat(tensors)[back] for key, tensors in parts.items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _direction(
    key: str, sums: PairSums, kept: Sequence[tuple[Tensor, Tensor, Tensor]], labelling: int, config: VectorConfig
) -> Tensor:
    """The vector (size) of one labelling, float64, with the norm of the mean difference."""
    difference = sums.difference(labelling)
    if config.method == "mean":
        return torch.from_numpy(difference)
    if config.method == "lda":
        try:
            direction = discriminant(difference, shrunk(sums.within(labelling), config.shrinkage))
        except np.linalg.LinAlgError:
            raise FitError(
                f"{key}: the within-class covariance is singular; raise shrinkage or give more pairs"
            ) from None
    else:
        x = torch.cat([torch.cat([a, b]) for a, b, _ in kept]).double().numpy()  # (2 · pairs, size)
        y = torch.cat([torch.cat([s[labelling], -s[labelling]]) for *_, s in kept]).numpy() > 0
        direction = logistic(x, y, c=1.0).weight
    return _scaled(torch.from_numpy(direction), torch.from_numpy(difference))


def _scaled(direction: Tensor, like: Tensor) -> Tensor:
    """`direction` with the norm of `like`; zeros stay zeros."""
    norm = direction.norm()
    return direction * (like.norm() / norm) if norm > 0 else direction
