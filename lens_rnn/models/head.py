"""From a head's product to logits: cap(scale · (U u + b)), measured on the model at hand.

Granite divides its logits, Falcon-H1 multiplies them, RecurrentGemma and xLSTM cap them at c · tanh(· ÷ c); most models
do none of it. What a model does is read off its answers to states of many sizes, because a cap does not show on small
logits, and a family that is not known here is treated like any other.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

from lens_rnn.errors import ModelError

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SIZES = torch.logspace(
    -2, 3.5, 12
)  # root mean squares of the products that a model is asked about; float16 ends at 65,504
_SATURATED = 0.5  # logits below this part of what they would be without a cap are near it
_UNIT_VECTORS = 256  # of a quantised head's inputs, at a time
_QUANTISED = 3e-2  # a head that quantises what it is given, too, is linear up to this
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class LogitMap(NamedTuple):
    """What becomes of the head's product, elementwise."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, product: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Logits of U u + b."""
        logits = product if self.scale == 1 else product * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def bend_(self, scaled: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Logits of scale · (U u + b), in place."""
        return scaled if self.cap is None else scaled.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"] | None:
        """Derivative of the logits after scale · (U u + b), from the logits themselves; None where it is 1."""
        return None if self.cap is None else 1 - (logits / self.cap) ** 2

    def __str__(self) -> str:
        inner = "U u + b" if self.scale == 1 else f"{self.scale:g} · (U u + b)"
        return inner if self.cap is None else f"{self.cap:g} · tanh({inner} ÷ {self.cap:g})"


@torch.no_grad()
def measure_logit_map(model: Any, norm: nn.Module, head: nn.Linear, dtype: torch.dtype) -> LogitMap:
    """The map of a causal language model whose final norm and head are these. dtype: what the head takes.

    One pass over some tokens, in which the norm's output is replaced by states whose products with the head have known
    sizes. Raises ModelError, in words that follow the model's name, if the logits are of another form.
    """
    taken: list[Tensor] = []

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        product = head(output.to(dtype)).float()
        sizes = _SIZES.to(output.device)[: output.shape[1], None]
        factors = sizes / product.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-20)
        largest = (
            torch.finfo(output.dtype).max / 4 / output.abs().amax(-1, keepdim=True).clamp_min(1e-20).float()
        )  # float16 is soon full
        taken.append((output.float() * factors.minimum(largest)).to(output.dtype))
        return taken[-1]

    hook = norm.register_forward_hook(replace)
    try:
        ids = torch.arange(2 * len(_SIZES), device=next(model.parameters()).device).view(2, -1) % head.out_features
        logits = model(ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    if len(taken) != 1:
        raise ModelError(f"the final norm ran {len(taken)} times in one pass, not once")
    product = head(taken[0].to(dtype)).float()
    if logits.shape != product.shape:
        raise ModelError(
            f"its logits have the shape {tuple(logits.shape)} where the head's product has {tuple(product.shape)}"
        )
    tolerance = _ROUNDING[dtype] if is_plain(head) else _QUANTISED
    logit_map = LogitMap(*_fitted(product, logits, model.config, tolerance))
    error = (logit_map(product) - logits).norm(dim=-1) / logits.norm(dim=-1).clamp_min(1e-20)  # each size by itself
    if not logit_map.scale:
        raise ModelError("its logits do not depend on its normed final state")
    if not bool((error <= tolerance).all()):
        raise ModelError("its logits are not cap(scale · (U u + b)) of its normed final state u, for any scale and cap")
    return logit_map


def _fitted(product: Tensor, logits: Tensor, config: Any, tolerance: float) -> tuple[float, float | None]:
    """Scale from the smallest products, which no cap bends, then the cap from the largest, which reach it."""
    scale = float((product[:, 0] * logits[:, 0]).sum() / product[:, 0].square().sum())
    scale = _exact(scale, config, tolerance)
    largest = logits[:, -1].abs().max()
    if not bool(largest < _SATURATED * abs(scale) * product[:, -1].abs().max()):
        return scale, None
    return scale, _exact(float(largest), config, tolerance)


def _exact(value: float, config: Any, tolerance: float) -> float:
    """The number of the configuration, or 1 over it, that a measured value is, up to rounding; the value itself if it
    is none of them."""
    candidates = (candidate for number in _numbers(config.to_dict()) for candidate in (number, 1 / number))
    near = [candidate for candidate in candidates if abs(candidate - value) <= tolerance * abs(value)]
    return min(near, key=lambda candidate: abs(candidate - value), default=value)


def _numbers(settings: Any) -> Iterator[float]:
    """All numbers of a configuration but 0, after 1, which stands for no scale."""
    yield 1.0
    values = settings.values() if isinstance(settings, dict) else settings
    for value in values:
        if isinstance(value, dict | list | tuple):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value:
            yield float(value)


def is_plain(head: nn.Linear) -> bool:
    """Whether a head's weight is a matrix of floating-point numbers, and not a quantised one."""
    return type(head.weight.data) is Tensor and head.weight.dtype in _ROUNDING


@torch.no_grad()
def plain_copy(head: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """A copy of a head that is no longer quantised: of a quantised one the matrix that it multiplies by, in `dtype`, as
    its own products with unit vectors show it."""
    if is_plain(head):
        return deepcopy(head)
    device = next(head.parameters()).device
    copy = nn.Linear(head.in_features, head.out_features, head.bias is not None, device=device, dtype=dtype)
    nothing = head(torch.zeros(1, head.in_features, device=device, dtype=dtype))  # the bias
    for start in range(0, head.in_features, _UNIT_VECTORS):
        units = torch.eye(head.in_features, device=device, dtype=dtype)[start : start + _UNIT_VECTORS]
        copy.weight[:, start : start + len(units)] = (head(units) - nothing).T
    if copy.bias is not None:
        copy.bias.copy_(nothing[0])
    return copy
