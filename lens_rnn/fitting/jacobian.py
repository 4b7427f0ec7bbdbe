"""The fit of a Jacobian lens: gradients alone, averaged over texts.

For a text of which positions are valid: put a cotangent of 1 at dimension k of f, the final norm's input, at every
valid position at once, and go back. The gradient at the hidden state of position s is row k of Σ_t ∂f_t ÷ ∂h_s, of
which J has the mean over the valid s. A batch holds the same text as often as there are dimensions at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from lens_rnn.checkpoints import Checkpoints
from lens_rnn.errors import DataError, FitError
from lens_rnn.lens import JacobianLens, Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import checked_layers
from lens_rnn.processes import Processes
from lens_rnn.ranges import check_ranges, whole

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class JacobianConfig:
    """How a Jacobian lens is fitted."""

    skip: Annotated[int, whole(0)] = 16
    """First positions of a text that are left out, because they are unlike later ones. The last one always is."""
    batch: Annotated[int, whole(1)] = 64
    """Dimensions of the final state in one backward pass: lower it if memory runs out; the result stays the same."""
    checkpoint_every: Annotated[int, whole(1)] = 50
    """Texts between checkpoints."""

    def __post_init__(self) -> None:
        check_ranges(self)


def fit_jacobian(
    adapter: ModelAdapter,
    texts: Sequence[Int[Tensor, " _"]],
    config: JacobianConfig | None = None,
    *,
    layers: Sequence[int] | None = None,
    unembedding: Unembedding | None = None,
    processes: Processes | None = None,
    checkpoints: Checkpoints | None = None,
    resume_from: dict[str, Any] | None = None,
    on_text: Callable[[int], Any] | None = None,
) -> JacobianLens:
    """The Jacobian lens of some texts, each a tensor of token ids (tokens), shared among the processes.

    layers: those to fit, by default all that are not trivial. 100 to 1,000 texts of up to 128 tokens are what others
    publish. checkpoints: where to save sums. resume_from: what `Checkpoints.last` gave. on_text is told the number of
    texts done, over all processes.

    Raises DataError if there is no text, or one is too short to have a valid position; ConfigError for a layer that the
    model does not have; FitError if a gradient is not finite, or the model is spread over processes.
    """
    config, processes = config or JacobianConfig(), processes or Processes()
    layers = adapter.fitted_layers if layers is None else tuple(checked_layers(adapter, layers))
    _check(adapter, texts, config)
    size = (len(layers), adapter.d_model, adapter.d_model)
    sums = torch.zeros(size, dtype=torch.float64, device="cpu")
    done = 0
    if resume_from:
        done = int(resume_from["step"])
        if processes.is_main:
            sums.copy_(resume_from["sums"])
    turns = np.arange(done, len(texts))
    for first in range(0, len(turns), config.checkpoint_every):
        part = turns[first : first + config.checkpoint_every]
        for rows, real in processes.shares(part, 1):
            if real:
                sums += _of_text(adapter, texts[int(rows[0])], layers, config)
            before, done = done, min(int(part[-1]) + 1, done + processes.world)
            if on_text:
                on_text(done - before)
        if checkpoints:
            total = _total(sums, processes, adapter.device)
            if processes.is_main:
                checkpoints.save(done, {"sums": total})
    means = _total(sums, processes, adapter.device) / len(texts)
    if not bool(means.isfinite().all()):
        raise FitError("a gradient is not finite; try --dtype float32")
    return JacobianLens(adapter, dict(zip(layers, means.float(), strict=True)), len(texts), unembedding)


def _check(adapter: ModelAdapter, texts: Sequence[Tensor], config: JacobianConfig) -> None:
    if not len(texts):
        raise DataError("there is no text to fit on")
    least = config.skip + 2
    for number, text in enumerate(texts):
        if len(text) < least:
            raise DataError(f"text {number} has {len(text)} tokens, and {least} are needed for one valid position")
    if adapter.sharded:
        raise FitError("gradients through a model that is spread over processes are not supported; leave --shard out")


def _total(sums: Tensor, processes: Processes, device: torch.device) -> Tensor:
    """Over all processes, on the CPU, layer by layer."""
    if processes.world == 1:
        return sums
    where = device if device.type == "cuda" else torch.device("cpu")
    return torch.stack([processes.sum(layer.to(where)).cpu() for layer in sums])


def _of_text(
    adapter: ModelAdapter, text: Int[Tensor, " tokens"], layers: Sequence[int], config: JacobianConfig
) -> Float[Tensor, "layers d_model d_model"]:
    """J of one text, float64, on the CPU."""
    d, batch = adapter.d_model, min(config.batch, adapter.d_model)
    valid = slice(config.skip, len(text) - 1)
    ids = text.to(adapter.device).expand(batch, -1)
    rows = torch.zeros(len(layers), d, d, dtype=torch.float64)
    with torch.enable_grad(), adapter.edited(0, lambda h: h.detach().requires_grad_()):
        forward = adapter.run(ids)
        states = [forward.hidden_states[layer] for layer in layers]
        for first in range(0, d, batch):
            dimensions = torch.arange(first, min(d, first + batch), device=adapter.device)
            cotangent = torch.zeros_like(forward.norm_input)
            cotangent[torch.arange(len(dimensions)), valid, dimensions] = 1.0
            keep = first + batch < d
            gradients = torch.autograd.grad(forward.norm_input, states, cotangent, retain_graph=keep)
            for k, gradient in enumerate(gradients):
                of_dimensions = gradient[: len(dimensions), valid].double().mean(1)
                rows[k, first : first + len(dimensions)] = of_dimensions.cpu()
    return rows
