"""Whether a lens looks at what the model uses: causal basis extraction and stimulus–response alignment.

Belrose et al. 2023, arXiv 2303.08112, section 4. With r(h, v) the hidden state h whose part along the direction v is
replaced by its mean (mean ablation), the influence of v on f is E[KL(f(h) ‖ f(r(h, v)))]. The causal basis of a layer's
lens is made greedily: each direction has the greatest influence on the lens among those orthogonal to the ones before.
Then the same ablation is done inside the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.metrics import batches, log_predictions, span_size, token_spans, total
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.func import grad_and_value
from tuned_lens.nn.lenses import Lens

_STARTS = 8
"""Principal directions of each kind among which the search for a direction looks for a good start."""


@dataclass(frozen=True, eq=False)
class CausalBasis:
    """Orthonormal directions of one layer's hidden states, the most influential first."""

    energies: Float64[np.ndarray, " k"]
    """Influence on the lens, in nats."""
    vectors: Float32[Tensor, "k d_model"]
    mean: Float32[Tensor, " d_model"]
    """The hidden states' mean, to which an ablation sets them."""


class Effects(NamedTuple):
    """What ablating each direction of a basis does, means over tokens."""

    lens: Float64[np.ndarray, " k"]
    """Influence on the lens, in nats."""
    model: Float64[np.ndarray, " k"]
    """Influence on the model, in nats, when the layer is ablated at every token."""
    alignment: Float64[np.ndarray, " k"]
    """Aitchison similarity of the lens's change (stimulus) and the model's (response), from −1 to 1."""


def hidden_states(
    adapter: ModelAdapter, blocks: TokenBlocks, *, processes: Processes | None = None, micro_batch_size: int = 8
) -> list[Float32[Tensor, "tokens d_model"]]:
    """This process's share of all blocks' hidden states, one tensor a layer, on the model's device."""
    forwards = [
        forward.hidden_states for _, forward in batches(adapter, blocks, processes or Processes(), micro_batch_size)
    ]
    empty = torch.empty(0, adapter.d_model, device=adapter.device)
    return [
        torch.cat([empty, *(forward[i].flatten(0, 1).float() for forward in forwards)]) for i in range(adapter.n_layers)
    ]


def extract_causal_bases(
    adapter: ModelAdapter,
    lens: Lens,
    hidden: Sequence[Float[Tensor, "*tokens d_model"]],
    k: int,
    *,
    processes: Processes | None = None,
    max_iterations: int = 100,
    on_direction: Callable[[int, int], Any] | None = None,
) -> Iterator[tuple[int, CausalBasis]]:
    """The basis of k directions of each layer that is not trivial, as (layer, basis), one layer after the other.

    hidden: this process's hidden states, one tensor a layer, as `hidden_states` gives them; influences are means over
    all processes' together. A direction is found by L-BFGS, in at most max_iterations steps from each of
    three principal directions: the best local maximum of three. on_direction is told the layer and the number of each
    that is found.

    Raises ConfigError where k is not between 1 and d_model.
    """
    if not 1 <= k <= adapter.d_model:
        raise ConfigError(f"k is {k}; a basis of {adapter.name} has 1 to {adapter.d_model} directions")
    processes = processes or Processes()
    for layer in adapter.fitted_layers:
        influence = _Influence(adapter, lens, layer, hidden[layer].detach().flatten(0, -2).float(), processes)
        starts = influence.principal_directions()
        vectors, energies = torch.empty(0, adapter.d_model, device=adapter.device), []
        for number in range(k):
            v = _most_influential(influence, starts, vectors, max_iterations)
            processes.share(v)
            vectors = torch.cat([vectors, v[None]])
            energies.append(influence(v)[0])
            if on_direction:
                on_direction(layer, number)
        order = np.argsort(energies)[::-1].copy()
        yield layer, CausalBasis(np.array(energies)[order], vectors[torch.from_numpy(order)], influence.mean)


class _Influence:
    """Influence of a direction on what a lens reads at one layer."""

    def __init__(self, adapter: ModelAdapter, lens: Lens, layer: int, hidden: Tensor, processes: Processes):
        self.adapter, self.lens, self.layer, self.hidden, self.processes = adapter, lens, layer, hidden, processes
        sums = self._total(torch.cat([hidden.sum(0, dtype=torch.float64), hidden.new_tensor([len(hidden)]).double()]))
        self.count = float(sums[-1])
        self.mean = (sums[:-1] / self.count).to(hidden)  # (d_model)

    def _total(self, tensor: Tensor) -> Tensor:
        return total(self.adapter, self.processes, tensor.cpu())

    def __call__(self, v: Tensor) -> tuple[float, Tensor]:
        """Influence of the unit vector v (d_model), in nats, and its gradient by v (d_model)."""
        sums = torch.zeros(1 + len(v), dtype=torch.float64)
        for h in self.hidden.split(span_size(self.adapter)):
            with torch.no_grad():
                log_p = log_predictions(self.lens, h, self.layer)
            gradient, kl = grad_and_value(self._kl)(v.detach(), h, log_p)
            sums += torch.cat([kl.detach()[None], gradient.detach()]).double().cpu()
        sums = self._total(sums) / self.count
        return float(sums[0]), sums[1:].to(v)

    def _kl(self, v: Tensor, h: Tensor, log_p: Tensor) -> Tensor:
        """Sum over the tokens of h (tokens, d_model) of KL(p ‖ q), in nats, with v (d_model) ablated in q."""
        log_q = log_predictions(self.lens, ablate(h, v, self.mean), self.layer)
        return torch.linalg.vecdot(log_p.exp(), log_p - log_q).sum()

    @torch.no_grad()
    def principal_directions(self) -> tuple[Tensor, Tensor]:
        """Where hidden states vary most, and what moves the logits most but for the norm: two orthonormal bases, rows,
        the most first."""
        centred = self.hidden - self.mean
        eye = torch.eye(len(self.mean), device=self.mean.device)
        read = self.lens.transform_hidden(eye, self.layer) - self.lens.transform_hidden(
            torch.zeros_like(eye), self.layer
        )
        head = self.lens.unembed.unembedding.weight.float()
        covariance, gram = self._total((centred.T @ centred).double()), (read @ (head.T @ head) @ read.T).double().cpu()
        varied, seen = (torch.linalg.eigh(matrix).eigenvectors.T.flip(0).to(self.mean) for matrix in (covariance, gram))
        return varied, seen


def _most_influential(
    influence: _Influence, starts: tuple[Tensor, Tensor], basis: Tensor, max_iterations: int
) -> Tensor:
    """The unit vector (d_model) of the greatest influence among those orthogonal to the rows of basis (directions,
    d_model)."""

    def project(x: Tensor) -> Tensor:
        for _ in range(2):  # once leaves a rounding error as large as what is taken away
            x = x - (x @ basis.T) @ basis
        return x

    kinds = []
    for start in starts:
        left = project(start)
        length = left.norm(dim=-1, keepdim=True)
        is_left = length[:, 0] >= length.max() / 2
        kinds.append((left / length)[is_left][:_STARTS])
    best = max((v for kind in kinds for v in kind), key=lambda v: influence(v)[0])
    climbed = [_climb(influence, project, v, max_iterations) for v in (best, *(kind[0] for kind in kinds))]
    return max(climbed, key=lambda v: influence(v)[0])


def _climb(influence: _Influence, project: Callable[[Tensor], Tensor], start: Tensor, max_iterations: int) -> Tensor:
    """The unit vector (d_model) of a local maximum of the influence in the space that `project` projects onto, by
    L-BFGS."""
    x = start.clone().requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=max_iterations, tolerance_change=1e-6, line_search_fn="strong_wolfe")

    def loss() -> float:
        """Minus the influence of x's direction, of which x gets the gradient."""
        y = project(x.detach())
        v = y / y.norm()
        value, gradient = influence(v)
        x.grad = -project(gradient - (gradient @ v) * v) / y.norm()
        return -value

    search.step(loss)
    y = project(x.detach())
    return y / y.norm()


def _ablate_wide(h: Tensor, v: Tensor, mean: Tensor) -> Tensor:
    return ablate(h.float(), v, mean)


def ablate(
    h: Float[Tensor, "*tokens d_model"], v: Float[Tensor, " d_model"], mean: Float[Tensor, " d_model"]
) -> Float[Tensor, "*tokens d_model"]:
    """r(h, v): h with its part along the unit vector v as it is in mean."""
    return h + ((mean - h) @ v)[..., None] * v


@torch.no_grad()
def ablation_effects(
    adapter: ModelAdapter,
    lens: Lens,
    bases: Mapping[int, CausalBasis],
    blocks: TokenBlocks,
    *,
    processes: Processes | None = None,
    micro_batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> dict[int, Effects]:
    """Ablate each direction of each layer's basis in the lens and in the model, on all blocks, shared among the
    processes.

    One forward pass of the model for each direction. on_batch is told the tokens done.
    """
    processes = processes or Processes()
    sums = {layer: torch.zeros(len(basis.vectors), 3, dtype=torch.float64) for layer, basis in bases.items()}
    count = torch.zeros(1, dtype=torch.float64)
    for rows, real in processes.shares(np.arange(len(blocks)), micro_batch_size):
        ids = blocks.batch(rows, adapter.device)
        forward = adapter.forward(ids)
        for layer, basis in bases.items():
            for number, v in enumerate(basis.vectors):
                with adapter.edited(layer, partial(_ablate_wide, v=v, mean=basis.mean)):
                    changed = adapter.forward(ids)
                if real:
                    for before, after in zip(
                        token_spans(adapter, forward, ids), token_spans(adapter, changed, ids), strict=True
                    ):
                        h = before.hidden[layer].float()
                        log_q, log_r = (log_predictions(lens, x, layer) for x in (h, ablate(h, v, basis.mean)))
                        sums[layer][number] += _effect_sums(log_q, log_r, before.aim.log_p, after.aim.log_p)
        if real:
            count += ids.numel()
            if on_batch:
                on_batch(ids.numel() * processes.world)
    tokens = total(adapter, processes, count)
    return {layer: Effects(*(total(adapter, processes, s) / tokens).T.numpy()) for layer, s in sums.items()}


def _effect_sums(log_q: Tensor, log_r: Tensor, log_p: Tensor, log_s: Tensor) -> Tensor:
    """Σ over tokens of influence on the lens (q before, r after), on the model (p before, s after), and alignment. (3),
    float64."""
    p = log_p.exp()
    lens, model = torch.linalg.vecdot(log_q.exp(), log_q - log_r), torch.linalg.vecdot(p, log_p - log_s)
    alignment = aitchison_similarity(log_r - log_q, log_s - log_p, p)
    return torch.stack([x.sum(dtype=torch.float64) for x in (lens, model, alignment)]).cpu()


def aitchison_similarity(
    x: Float[Tensor, "*tokens vocab"], y: Float[Tensor, "*tokens vocab"], weights: Float[Tensor, "*tokens vocab"]
) -> Float[Tensor, "*tokens"]:
    """Cosine between two changes of log-probabilities under weights that add up to 1; 0 where nothing changed.

    Constants added to a change do not matter, as they do not to a distribution. The model's probabilities as weights
    keep the mass of tokens that nobody expects from deciding it (Egozcue & Pawlowsky-Glahn 2016).
    """
    x, y = (change - torch.linalg.vecdot(weights, change)[..., None] for change in (x, y))
    products = (torch.linalg.vecdot(weights, pair) for pair in (x * y, x * x, y * y))
    xy, xx, yy = products
    return xy / (xx * yy).sqrt().clamp(min=torch.finfo(xy.dtype).tiny)
