"""Steering vectors: what distinguishes a model's states on positive texts from those on negative ones, layer by layer.

Residual stream and every tensor of the recurrent state alike. Sums are streamed in float64: no states pile up, whatever
the model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from lens_rnn.artifacts import sha256_of
from lens_rnn.errors import ArtifactError, ConfigError, DataError, FitError
from lens_rnn.files import write_atomically
from lens_rnn.models import ModelAdapter
from lens_rnn.steering.pairs import Pair, data_sha256

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
        return self._of(RESIDUAL, layer)

    def state(self, layer: int) -> dict[str, Tensor]:
        """The state's vectors of a block, by name. Raises ConfigError if there are none."""
        found = {
            name: t
            for key, t in self.tensors.items()
            for name, at in [key.split(".")]
            if name != RESIDUAL and at == str(layer)
        }
        if not found:
            raise ConfigError(f"there is no steering vector for the recurrent state of layer {layer}")
        return found

    def _of(self, name: str, layer: int) -> Tensor:
        if f"{name}.{layer}" not in self.tensors:
            raise ConfigError(f"there is no steering vector for the {name} of layer {layer}")
        return self.tensors[f"{name}.{layer}"]

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
    def load(cls, path: Path | str, adapter: ModelAdapter) -> Self:
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


@torch.no_grad()
def fit_vectors(
    adapter: ModelAdapter,
    pairs: Sequence[Pair],
    *,
    method: Method = "mean",
    states: bool = True,
    shrinkage: float = 0.1,
    shuffles: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    about: Mapping[str, Any] | None = None,
) -> Fitted:
    """Vectors for every layer from the states at the last tokens of `pairs`.

    method: "mean", the mean difference (Rimsky et al. 2023, arXiv 2312.06681); "lda", Σ⁻¹ times it, Σ the within-class
    covariance shrunk by `shrinkage` towards its mean diagonal; "logistic", the weights of an L2-regularised logistic
    regression. The last two are scaled to the norm of the mean difference, so that a multiplier means the same for all.
    Σ is whole for the residual stream, n_layers · d_model² float64 numbers, and diagonal for state tensors, which are
    large. "logistic" holds the residual states of all pairs, and has no vectors for states.
    states: also for every tensor of the recurrent state. batch_size: pairs in a pass.

    Raises DataError for no pairs or an empty text, ConfigError for settings that cannot be used, FitError for a
    singular Σ.
    """
    _check(adapter, pairs, method, states, shrinkage)
    signs = _labellings(len(pairs), shuffles, seed)  # (1 + shuffles, pairs)
    sums: dict[str, _Sums] = {}
    for rows, positive, negative in _read_pairs(adapter, pairs, states, batch_size):
        for key in positive:
            if key not in sums:
                sums[key] = _Sums(positive[key][0], len(signs), method, whole=key.startswith(RESIDUAL))
            sums[key].add(positive[key], negative[key], signs[:, rows])
    made = [{key: s.direction(i, method, shrinkage, key) for key, s in sums.items()} for i in range(len(signs))]
    said = (
        model_identity(adapter)
        | {"method": method, "pairs": len(pairs), "data_sha256": data_sha256(pairs)}
        | dict(about or {})
    )
    said |= {"shrinkage": shrinkage} if method == "lda" else {}
    real = SteeringVectors(tensors=made[0], about=said)
    shuffled = [
        SteeringVectors(
            tensors={key: _scaled(t, made[0][key]) for key, t in tensors.items()},
            about=said | {"control": f"shuffled {seed + i}"},
        )
        for i, tensors in enumerate(made[1:])
    ]
    return Fitted(real, shuffled)


def _check(adapter: ModelAdapter, pairs: Sequence[Pair], method: str, states: bool, shrinkage: float) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"method {method!r} is unknown; choose from {', '.join(get_args(Method))}")
    if not 0 <= shrinkage <= 1:
        raise ConfigError(f"shrinkage is {shrinkage}; it must be between 0 and 1")
    if states and not adapter.has_state:
        raise ConfigError(f"{adapter.no_state}; steer the residual stream alone")
    if states and method == "logistic":
        raise ConfigError(
            "logistic vectors exist for the residual stream only: states are too large to keep; choose mean or lda"
        )
    if not pairs:
        raise DataError("there are no contrastive pairs; a steering vector needs at least one")
    if any(not pair.positive or not pair.negative for pair in pairs):
        raise DataError("a contrastive pair has a text without tokens; both sides need at least one")


def _labellings(pairs: int, shuffles: int, seed: int) -> Tensor:
    """(1 + shuffles, pairs) of ±1: the true sides, then shuffled ones of which half are exchanged."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.where(torch.arange(pairs) < pairs // 2, -1, 1)
    return torch.stack(
        [torch.ones_like(half), *(half[torch.randperm(pairs, generator=generator)] for _ in range(shuffles))]
    )


def _read_pairs(
    adapter: ModelAdapter, pairs: Sequence[Pair], states: bool, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]]:
    """States at the last tokens of both sides of some pairs at a time, and which pairs they are; alike lengths go
    together."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].positive), len(pairs[i].negative)))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        read = last_states(adapter, [pairs[i].positive for i in rows] + [pairs[i].negative for i in rows], states)
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


class _Sums:
    """What is needed of the states of one layer: their sums on either side, for several labellings at once, and their
    scatter, which is the same for all."""

    def __init__(self, like: Tensor, labellings: int, method: Method, whole: bool):
        self.shape, size = like.shape, like.numel()
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.difference = torch.zeros(labellings, size, dtype=torch.float64)
        self.whole = whole
        self.scatter = torch.zeros((size, size) if whole else (size,), dtype=torch.float64) if method == "lda" else None
        self.kept: list[tuple[Tensor, Tensor, Tensor]] | None = [] if method == "logistic" else None

    def add(self, positive: Tensor, negative: Tensor, signs: Tensor) -> None:
        """Take in some pairs, positive and negative (n, …), and which of them each labelling exchanges, signs
        (labellings, n) of ±1."""
        a, b = positive.flatten(1).double(), negative.flatten(1).double()
        self.count += len(a)
        self.total += a.sum(0) + b.sum(0)
        self.difference += signs.double() @ (a - b)
        if self.scatter is not None:
            self.scatter += a.T @ a + b.T @ b if self.whole else (a * a + b * b).sum(0)
        if self.kept is not None:
            self.kept.append((positive.flatten(1), negative.flatten(1), signs))

    def direction(self, labelling: int, method: Method, shrinkage: float, key: str) -> Tensor:
        """The vector of one labelling, float32, in the shape of the state."""
        mean = self.difference[labelling] / self.count  # μ₊ − μ₋
        found = mean
        if method == "lda":
            found = self._discriminant(mean, shrinkage, key)
        elif method == "logistic":
            found = self._logistic(labelling)
        return _scaled(found, mean).reshape(self.shape).float()

    def _discriminant(self, mean: Tensor, shrinkage: float, key: str) -> Tensor:
        """Σ⁻¹(μ₊ − μ₋), Σ = (1 − s) S + s tr(S)/d, S the mean of the two classes' covariances."""
        centre = self.total / (2 * self.count)
        scatter = self.scatter
        assert scatter is not None  # for the type checker: `method` decides both
        if not self.whole:  # S = E[x²] − centre² − (μ₊ − μ₋)² ÷ 4
            variance = (scatter / (2 * self.count) - centre**2 - mean**2 / 4).clamp(min=0)
            shrunk = (1 - shrinkage) * variance + shrinkage * variance.mean()
            if not bool((shrunk > 0).all()):
                raise FitError(f"{key}: the within-class variance is 0 somewhere; raise shrinkage or give more pairs")
            return mean / shrunk
        within = scatter / (2 * self.count) - torch.outer(centre, centre) - torch.outer(mean, mean) / 4
        shrunk = (1 - shrinkage) * within + shrinkage * within.diagonal().mean() * torch.eye(
            len(mean), dtype=torch.float64
        )
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        if int(failed):
            raise FitError(f"{key}: the within-class covariance is singular; raise shrinkage or give more pairs")
        return torch.cholesky_solve(mean[:, None], factor)[:, 0]

    def _logistic(self, labelling: int) -> Tensor:
        from sklearn.linear_model import LogisticRegression

        assert self.kept is not None  # for the type checker: `method` decides both
        states = torch.cat([torch.cat([a, b]) for a, b, _ in self.kept]).double().numpy()  # (2 · pairs, size)
        labels = torch.cat([torch.cat([s[labelling], -s[labelling]]) for *_, s in self.kept]).numpy()
        scale = states.std(0) + np.finfo(np.float64).tiny
        weights = LogisticRegression(max_iter=1000).fit((states - states.mean(0)) / scale, labels).coef_[0]
        return torch.from_numpy(weights / scale)


def _scaled(direction: Tensor, like: Tensor) -> Tensor:
    """`direction` with the norm of `like`; zeros stay zeros."""
    norm = direction.norm()
    return direction * (like.norm() / norm) if norm > 0 else direction
