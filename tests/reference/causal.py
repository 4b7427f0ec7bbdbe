"""The naive twin of causal bases: formulas of Belrose et al. 2023, section 4, in float64, and ablations where a block
writes its output."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from tuned_lens.nn.lenses import Lens


def ablate(h: np.ndarray, v: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """P h̄ + (1 − P) h with P = v vᵀ, for h (…, d_model)."""
    projection = np.outer(v, v)
    return mean @ projection + h @ (np.eye(len(v)) - projection)


def influence(lens: Lens, layer: int, h: np.ndarray, v: np.ndarray, mean: np.ndarray) -> float:
    """Mean over h (tokens, d_model) of KL(lens(h) ‖ lens(r(h, v)))."""
    return float(kl(read(lens, layer, h), read(lens, layer, ablate(h, v, mean))).mean())


@torch.no_grad()
def read(lens: Lens, layer: int, h: np.ndarray) -> np.ndarray:
    """Probabilities (…, vocab)."""
    return lens(torch.from_numpy(h).float(), layer).double().softmax(-1).numpy()


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def similarity(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Aitchison similarity of two compositions (vocab), by geometric means."""

    def inner(a: np.ndarray, b: np.ndarray) -> float:
        ga, gb = (np.prod(c**weights) for c in (a, b))
        return sum(w * np.log(i / ga) * np.log(j / gb) for w, i, j in zip(weights, a, b, strict=True))

    return inner(x, y) / np.sqrt(inner(x, x) * inner(y, y))


def perturbed(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The composition q ⊖ p (…, vocab): what p must be multiplied by to become q."""
    return (q / p) / (q / p).sum(-1, keepdims=True)


@torch.no_grad()
def run(
    model: PreTrainedModel, writer: nn.Module, change: Callable[[np.ndarray], np.ndarray], ids: Tensor
) -> np.ndarray:
    """The model's probabilities (batch, seq, vocab) when what `writer` puts out is changed on its way."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        h, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        new = torch.from_numpy(change(h.double().numpy())).float()
        return new if rest is None else (new, *rest)

    handle = writer.register_forward_hook(hook)
    try:
        return model(ids, use_cache=False).logits.double().softmax(-1).numpy()
    finally:
        handle.remove()
