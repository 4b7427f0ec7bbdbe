"""What probes read: a model's states at the last token of each prompt, layer by layer, streamed to disk.

    raw                hidden states                                             (layers, rows, d_model)
    translated         the same through the tuned lens's translators             (layers, rows, d_model)
    lens_log_odds      the lens's log-odds of the true answer: no training       (layers, rows, 1)
    state              the recurrent state, projected at random                  (blocks, rows, projection)
    state_heads        the recurrent state, each head by its mean and its RMS    (blocks, rows, summaries)
    pairs              hidden states after the prompt and each of its answers    (layers, rows, variants, 2, d_model)
    pairs_translated   the same through the translators                          (layers, rows, variants, 2, d_model)

and model_log_odds (1, rows, 1), what the model itself says. Rows are read in groups of one length, so that no padding
enters a state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.templates import Encoded, Template, encode
from lens_rnn.errors import DataError
from lens_rnn.files import read_json, write_json
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import SEED, check_ranges, whole

import numpy as np
import torch
from torch import Tensor
from tuned_lens.nn.lenses import Lens

_LIST = "features.json"


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What is read, and how much of it is held at once."""

    projection: Annotated[int, whole(1)] = 512
    """Width to which a block's recurrent state is projected; what is smaller is kept as it is."""
    variants: Annotated[int, whole(1)] = 2
    """Prompts of a row for the contrast pairs: VINC compares them. At most as many as the set has templates."""
    micro_batch_size: Annotated[int, whole(1)] = 64
    """Rows in one forward pass."""
    seed: Annotated[int, SEED] = 0
    """Of the random projection."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Feature(NamedTuple):
    """One kind of feature of all rows of a split."""

    values: np.ndarray
    """Memory-mapped, float32; shapes above."""
    depths: tuple[float, ...]
    """Fraction of blocks applied where each layer is read."""


def extract(
    adapter: ModelAdapter,
    rows: Sequence[QuirkyRow],
    templates: Sequence[Template],
    lens: Lens,
    folder: Path,
    config: FeatureConfig | None = None,
    on_batch: Callable[[int], object] = lambda _: None,
) -> dict[str, Feature]:
    """Read all features of these rows into `folder`, and return them, mapped.

    lens: a tuned lens, or a logit lens, with which there is nothing translated. on_batch: told of each batch's number
    of prompts read.
    Raises DataError where there are no rows, or a prompt cannot be made.
    """
    if not rows:
        raise DataError("there are no rows to read")
    config = config or FeatureConfig()
    variants = [
        encode(rows, templates, adapter.tokenizer, variant, adapter.longest_sequence)
        for variant in range(min(config.variants, max(1, len(templates))))
    ]
    store = _Store(folder, len(rows))
    _read_prompts(adapter, variants[0], lens, store, config, on_batch)
    for variant, encoded in enumerate(variants):
        for answer in (0, 1):
            _read_pairs(adapter, encoded, lens, store, (variant, len(variants), answer), config, on_batch)
    return store.finish()


def load_features(folder: Path) -> dict[str, Feature]:
    """Map what `extract` left in a folder."""
    depths = read_json(folder / _LIST)
    return {name: Feature(np.load(folder / f"{name}.npy", mmap_mode="r"), tuple(of)) for name, of in depths.items()}


def passes(config: FeatureConfig, templates: int) -> int:
    """How often each row is read."""
    return 1 + 2 * min(config.variants, max(1, templates))


def of_one_length(sequences: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of the sequences in groups of at most `size`, each of one length."""
    lengths = np.array([len(sequence) for sequence in sequences])
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        yield from (places[start : start + size].tolist() for start in range(0, len(places), size))


class _Store:
    """Arrays on disk that are filled row by row."""

    def __init__(self, folder: Path, rows: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rows = folder, rows
        self.arrays: dict[str, np.memmap] = {}
        self.depths: dict[str, tuple[float, ...]] = {}

    def put(
        self,
        name: str,
        places: list[int],
        values: Tensor,
        depths: Sequence[float],
        pair: tuple[int, int, int] | None = None,
    ) -> None:
        """Keep values (layers, batch, width) of the rows at these places; `pair`: variant, how many variants,
        answer."""
        array = values.float().cpu().numpy()
        if name not in self.arrays:
            inner = (pair[1], 2) if pair else ()
            shape = (array.shape[0], self.rows, *inner, array.shape[-1])
            self.arrays[name] = np.lib.format.open_memmap(
                self.folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape
            )
            self.depths[name] = tuple(depths)
        if pair:
            self.arrays[name][:, places, pair[0], pair[2]] = array
        else:
            self.arrays[name][:, places] = array

    def finish(self) -> dict[str, Feature]:
        for array in self.arrays.values():
            array.flush()
        write_json(self.folder / _LIST, self.depths)
        return load_features(self.folder)


def _last(adapter: ModelAdapter, hidden_states: Sequence[Tensor], lens: Lens) -> tuple[Tensor, Tensor]:
    """Hidden states at the last token and the same as the lens has them, (layers, batch, d_model) each, float32."""
    raw = torch.stack([hidden[:, -1] for hidden in hidden_states]).float()
    return raw, torch.stack([lens.transform_hidden(raw[i], i) for i in range(adapter.n_layers)])


@torch.no_grad()
def _read_prompts(
    adapter: ModelAdapter,
    encoded: Sequence[Encoded],
    lens: Lens,
    store: _Store,
    config: FeatureConfig,
    on_batch: Callable[[int], object],
) -> None:
    depths = [adapter.depth(i) for i in range(adapter.n_layers)]
    summary = _StateReader(config.projection, config.seed)
    for places in of_one_length([prompt.ids for prompt in encoded], config.micro_batch_size):
        ids = torch.tensor([encoded[i].ids for i in places], device=adapter.device)  # (batch, seq)
        forward, state = adapter.advance(ids) if adapter.has_state else (adapter.forward(ids), None)
        raw, translated = _last(adapter, forward.hidden_states, lens)
        store.put("raw", places, raw, depths)
        if not isinstance(lens, LogitLens):
            store.put("translated", places, translated, depths)
        answers = torch.tensor([encoded[i].answers for i in places], device=adapter.device)  # (batch, 2)
        read = torch.stack([_odds(lens.unembed(z), answers) for z in translated])  # (layers, batch, 1)
        store.put("lens_log_odds", places, read, depths)
        store.put("model_log_odds", places, _odds(adapter.logits(forward.final[:, -1]), answers)[None], [1.0])
        if state is not None:
            blocks = [i for i, block in enumerate(state.blocks) if any(name in block for name in adapter.state_names)]
            tensors = {
                i: [state.blocks[i][name] for name in adapter.state_names if name in state.blocks[i]] for i in blocks
            }
            after = [(i + 1) / len(adapter.blocks) for i in blocks]
            store.put("state", places, torch.stack([summary.projected(tensors[i]) for i in blocks]), after)
            store.put("state_heads", places, torch.stack([summary.heads(tensors[i]) for i in blocks]), after)
        on_batch(len(places))


def _odds(logits: Tensor, answers: Tensor) -> Tensor:
    """Log-odds (batch, 1) of the second answer against the first, from logits (batch, vocab_size)."""
    false, true = logits.float().gather(1, answers).split(1, dim=1)
    return true - false


@torch.no_grad()
def _read_pairs(
    adapter: ModelAdapter,
    encoded: Sequence[Encoded],
    lens: Lens,
    store: _Store,
    pair: tuple[int, int, int],
    config: FeatureConfig,
    on_batch: Callable[[int], object],
) -> None:
    depths = [adapter.depth(i) for i in range(adapter.n_layers)]
    sequences = [prompt.ids + prompt.choices[pair[2]] for prompt in encoded]
    for places in of_one_length(sequences, config.micro_batch_size):
        ids = torch.tensor([sequences[i] for i in places], device=adapter.device)  # (batch, seq)
        raw, translated = _last(adapter, adapter.forward(ids).hidden_states, lens)
        store.put("pairs", places, raw, depths, pair)
        if not isinstance(lens, LogitLens):
            store.put("pairs_translated", places, translated, depths, pair)
        on_batch(len(places))


class _StateReader:
    """Recurrent states of a block as vectors of moderate width."""

    def __init__(self, width: int, seed: int):
        self.width, self.seed = width, seed
        self.matrices: dict[int, Tensor] = {}

    def projected(self, tensors: Sequence[Tensor]) -> Tensor:
        """(batch, width): all recurrent tensors of a block, each divided by its root mean square so that none drowns
        the others, times one Gaussian matrix for all blocks (Johnson & Lindenstrauss 1984), which keeps lengths and
        angles on average."""
        parts = [t.flatten(1).float() for t in tensors]
        whole = torch.cat([part / part.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12) for part in parts], 1)
        if whole.shape[1] <= self.width:
            return whole
        return whole @ self._matrix(whole.shape[1]).to(whole.device)

    def _matrix(self, size: int) -> Tensor:
        if size not in self.matrices:
            generator = torch.Generator().manual_seed(self.seed)
            self.matrices[size] = torch.randn(size, self.width, generator=generator) / math.sqrt(self.width)
        return self.matrices[size]

    def heads(self, tensors: Sequence[Tensor]) -> Tensor:
        """(batch, summaries): of each tensor its heads, which are its second dimension (for Mamba-1 a channel), by mean
        and root mean square; where a head is one number, the number."""
        parts = []
        for tensor in tensors:
            inner = tensor.float().flatten(2) if tensor.ndim > 2 else tensor.float()[..., None]
            parts += [inner.mean(2)] + ([inner.square().mean(2).sqrt()] if inner.shape[2] > 1 else [])
        return torch.cat(parts, 1)
