"""What a fit needs of memory, by part: counted from sizes, but for the forward pass, which is measured on one text."""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lens_rnn.fitting.closed_form import Moments
from lens_rnn.fitting.optimizers import OPTIMIZERS, OptimizerName
from lens_rnn.fitting.sums import StepSums
from lens_rnn.models import Forward, ModelAdapter

import torch
from torch import Tensor, UntypedStorage
from torch.overrides import TorchFunctionMode

MEASURED_TOKENS = 256  # of the text that the forward pass is measured on, at most
MOMENTS = "moments"  # the part of the start


class PassMemory(NamedTuple):
    """Bytes a token of a forward pass."""

    peak: float
    """At most while it runs, what it returns included."""
    held: float
    """Of what it returns: hidden states, the final norm's input and output."""


@dataclass(frozen=True, kw_only=True)
class FitMemory:
    """Bytes that one process needs, by part: the closed-form start and the steps are not there at the same time."""

    lasting: Mapping[str, int]
    start: Mapping[str, int]
    """On top of `lasting`, during the closed-form start; empty where there is none."""
    step: Mapping[str, int]
    """On top of `lasting`, during a step."""

    @property
    def needed(self) -> int:
        """At the highest."""
        return sum(self.lasting.values()) + max(sum(self.start.values()), sum(self.step.values()))

    def layers_at_a_time(self, layers: int, there: int) -> int:
        """Of how many layers the start can hold moments at a time, where these parts are those with all `layers` and
        so many bytes are there, or else no fewer than the steps take; 0 bytes: nothing is known, and all are held."""
        lasting, start, step = (sum(part.values()) for part in (self.lasting, self.start, self.step))
        moments = self.start[MOMENTS]
        spare = max(there - lasting, step) - (start - moments)
        return layers if not there else max(1, min(layers, spare * layers // moments))


def fit_memory(
    adapter: ModelAdapter,
    name: OptimizerName,
    forward: PassMemory,
    *,
    tokens: int,
    chunk_tokens: int,
    products: torch.dtype,
    moment_layers: int,
    device: torch.device,
    world: int,
    sharded: bool,
) -> FitMemory:
    """Bytes of a fit on `device` by the optimizer of this name.

    tokens: in a forward pass. moment_layers: those whose moments are held at a time, 0 where none are taken. sharded:
    whether the model's weights are spread over the processes.
    """
    d, vocab, layers = adapter.d_model, adapter.vocab_size, len(adapter.fitted_layers)
    optimizer = OPTIMIZERS[name]
    head = adapter.head.weight
    weights = _bytes_of(adapter.model.parameters())
    lasting = {
        "model": weights // world if sharded else weights,
        # that of the lens, and that of the products, which are one where neither format nor scale differs
        "copies of the unembedding": head.numel()
        * (head.element_size() + (products.itemsize if products != head.dtype or adapter.logit_map.scale != 1 else 0)),
        # of the lens, the start, and the mean of late steps
        "translators": 3 * adapter.n_layers * d * (d + 1) * 4,
        f"states of {name}": optimizer.bytes_needed(layers, d, world),
    }
    held = round(forward.held * tokens)
    passing = round(forward.peak * tokens)
    start = {
        MOMENTS: Moments.bytes_needed(moment_layers, d),
        "a forward pass, or its states": max(
            passing, held + 8 * d * 4 * tokens, held + chunk_tokens * vocab * (products.itemsize + 4)
        ),
    }
    buffers = 2 if adapter.logit_map.cap is None or not optimizer.fisher else 4  # of logits
    plain = device.type not in ("cpu", "cuda") or products not in (torch.float32, torch.bfloat16)
    chunk = chunk_tokens * (vocab * (buffers * products.itemsize + (12 if plain else 0)) + 8 * d * 4)
    step = {
        "gradients and factors": StepSums.bytes_needed(layers, d, optimizer.fisher, world),
        "a forward pass, or its states and the logits of a chunk": max(passing, held + chunk),
    }
    return FitMemory(lasting=lasting, start=start if moment_layers else {}, step=step)


@torch.no_grad()
def measure_pass(adapter: ModelAdapter, seq_len: int) -> PassMemory:
    """The memory of a forward pass over one text of `seq_len` tokens, or of its beginning, where the model is now."""
    ids = torch.zeros(1, min(seq_len, MEASURED_TOKENS), dtype=torch.long, device=adapter.device)
    if adapter.device.type == "meta":  # nothing is allocated: its states are all that can be counted
        return _of_states(adapter.forward(ids), 0, ids.numel())
    if adapter.device.type == "cuda":
        torch.cuda.synchronize(adapter.device)
        torch.cuda.reset_peak_memory_stats(adapter.device)
        before = torch.cuda.memory_allocated(adapter.device)
        forward = adapter.forward(ids)
        peak = torch.cuda.max_memory_allocated(adapter.device) - before
    else:
        with _Allocations([*adapter.model.parameters(), *adapter.model.buffers()]) as allocations:
            forward = adapter.forward(ids)
        peak = allocations.peak
    return _of_states(forward, peak, ids.numel())


def _of_states(forward: Forward, peak: int, tokens: int) -> PassMemory:
    """From the states that a pass returned and the bytes that were alive at most."""
    held = _bytes_of([*forward.hidden_states, forward.norm_input, forward.final])
    return PassMemory(max(peak, held) / tokens, held / tokens)


class _Allocations(TorchFunctionMode):
    """Watches what torch returns: the bytes of the tensors that are alive at once, without those of `there`."""

    def __init__(self, there: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if size and place not in self.known:
            self.known.add(place)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.live -= size


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of these tensors, each once; of tensors without values, which have none, their own."""
    every = list(tensors)  # so that each keeps its id
    return sum({t.untyped_storage().data_ptr() or id(t): t.untyped_storage().nbytes() for t in every}.values())
