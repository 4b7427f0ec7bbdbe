"""Activation patching: where in depth and text does a model carry what makes it say one thing and not another?

Two texts of the same length differ in what should be said after them: the clean one calls for an answer, the corrupted
one for a foil. The model reads the corrupted one, but at one layer and one token goes on from what the clean run had
there. How far the difference of the two logits follows, as a share, says how much of it passes through that place:

    share = (patched − corrupted) ÷ (clean − corrupted)      of logit[answer] − logit[foil] after the last token

0: nothing passes there that tells the texts apart; 1: all of it (Sharma et al. 2024, arXiv 2404.03646, for Mamba). All
hidden states of a layer together recover 1, but in RWKV-7, whose blocks read values of the first block too. What is
exchanged is one of these kinds, of which a model has those in its blocks:

    residual      the hidden state of a layer at a token
    convolution   what a block's short convolution or token shift remembers after a token
    recurrent     a block's recurrent state after a token
    attention     keys and values that a block of softmax attention has kept up to a token
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.intervals import Estimate, mean_estimate
from lens_rnn.models import ModelAdapter, RecurrentState
from lens_rnn.models.inputs import OneText, one_text
from lens_rnn.models.state import is_short
from lens_rnn.reports import to_json

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RESIDUAL, CONVOLUTION, RECURRENT, ATTENTION = KINDS = ("residual", "convolution", "recurrent", "attention")
LEAST_DIFFERENCE = 0.5
"""Nats between clean and corrupted, below which a share says nothing."""
_ROWS = 64  # sequences in one pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two texts of as many tokens, and what the first calls for where the second does not."""

    clean: OneText
    corrupted: OneText
    answer: int
    """Id of the token that the clean text calls for."""
    foil: int
    """Id of the token that the corrupted text calls for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Patching:
    """What passes where, of some pairs."""

    shares: Mapping[str, Float[np.ndarray, "pairs layers tokens"]]
    """By kind: the share that an exchange recovers. A row of states is the block's, NaN where a block has none of the
    kind; after the last token no state is read, so its column is 0."""
    clean: Float[np.ndarray, " pairs"]
    """logit[answer] − logit[foil] of the clean runs."""
    corrupted: Float[np.ndarray, " pairs"]
    depth: tuple[float, ...]
    """Fraction of blocks applied at each layer of the residual stream."""

    def mean(self, kind: str) -> Float[np.ndarray, "layers tokens"]:
        """Mean share over pairs."""
        return self.shares[kind].mean(0)

    def estimate(self, kind: str, layer: int, token: int) -> Estimate:
        """Mean share at a place with its 95 % interval over pairs."""
        return mean_estimate(self.shares[kind][:, layer, token])

    def report(self) -> dict[str, Any]:
        """All of it, JSON-ready, with means and intervals by kind."""
        kinds = {}
        for kind, shares in self.shares.items():
            layers, tokens = shares.shape[1:]
            there = [k for k in range(layers) if np.isfinite(shares[:, k]).all()]
            kinds[kind] = {k: [self.estimate(kind, k, token) for token in range(tokens)] for k in there}
        return {"clean": self.clean.tolist(), "corrupted": self.corrupted.tolist(), "shares": to_json(kinds)}


def patch(
    adapter: ModelAdapter,
    pairs: Sequence[Pair],
    kinds: Sequence[str] | None = None,
    *,
    on_pair: Callable[[int], Any] | None = None,
) -> Patching:
    """Exchange each kind at each layer and token, one place at a time, for every pair.

    kinds: some of KINDS, by default all that the model has. on_pair is told the pairs done.

    Raises DataError for no pair, texts of different lengths or that cannot be read, a token that the model does not
    have, or a pair whose two runs hardly differ; ConfigError for an unknown kind; ModelError for a kind of state that
    the model does not have, or that cannot be reached.
    """
    chosen = _kinds(adapter, kinds)
    read = checked_pairs(adapter, pairs)
    maps: dict[str, list[np.ndarray]] = {kind: [] for kind in chosen}
    ends: list[tuple[float, float]] = []
    for number, pair in enumerate(pairs):
        run = PairRun.of(adapter, number, read[number], pair)
        ends.append((run.clean, run.corrupted))
        for kind in chosen:
            maps[kind].append(run.residual() if kind == RESIDUAL else run.states(kind))
        if on_pair:
            on_pair(1)
    return Patching(
        shares={kind: np.stack(of_kind) for kind, of_kind in maps.items()},
        clean=np.array([clean for clean, _ in ends]),
        corrupted=np.array([corrupted for _, corrupted in ends]),
        depth=tuple(adapter.depth(i) for i in range(adapter.n_layers)),
    )


def kinds_of(adapter: ModelAdapter) -> dict[str, list[tuple[str, ...]]]:
    """The kinds of state that the model has, with the names of its tensors in each block's state."""
    if not adapter.has_state:
        return {}
    blocks = adapter.advance(torch.zeros(1, 1, dtype=torch.long, device=adapter.device))[1].blocks
    by_kind = {kind: [tuple(name for name in block if _kind(name) == kind) for block in blocks] for kind in KINDS[1:]}
    return {kind: names for kind, names in by_kind.items() if any(names)}


def _kind(name: str) -> str:
    """Of a tensor in a block's state."""
    if name in ("keys", "values"):
        return ATTENTION
    return CONVOLUTION if is_short(name) else RECURRENT


def _kinds(adapter: ModelAdapter, kinds: Sequence[str] | None) -> list[str]:
    there = [RESIDUAL, *kinds_of(adapter)]
    if kinds is None:
        return there
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"there is no kind {kind!r} to patch; choose from {', '.join(KINDS)}")
        if kind not in there:
            why = adapter.no_state if not adapter.has_state else f"model type {adapter.model_type!r} has none"
            raise ModelError(f"no {kind} state to patch: {why}")
    return list(dict.fromkeys(kinds))


def checked_pairs(
    adapter: ModelAdapter, pairs: Sequence[Pair]
) -> list[tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]]:
    """The token ids of each pair's texts, all of one length. Raises DataError for none, or for others."""
    read = [_read(adapter, number, pair) for number, pair in enumerate(pairs)]
    if not read:
        raise DataError("there is no pair to patch")
    if len(lengths := {len(clean) for clean, _ in read}) > 1:
        raise DataError(f"pairs have {', '.join(map(str, sorted(lengths)))} tokens; give pairs of one length")
    return read


def _read(adapter: ModelAdapter, number: int, pair: Pair) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    clean, corrupted = (one_text(adapter, text)[0] for text in (pair.clean, pair.corrupted))
    if len(clean) != len(corrupted):
        raise DataError(
            f"pair {number}: the clean text has {len(clean)} tokens and the corrupted one {len(corrupted)}; patching "
            "needs as many"
        )
    for token in (pair.answer, pair.foil):
        if not 0 <= token < adapter.vocab_size:
            raise DataError(f"pair {number}: {adapter.name} has no token {token}, only 0 to {adapter.vocab_size - 1}")
    return clean, corrupted


class PairRun:
    """Both runs of a pair, and exchanges between them."""

    def __init__(self, adapter: ModelAdapter, clean: Tensor, corrupted: Tensor, tokens: tuple[int, int]):
        """clean, corrupted: ids (tokens). tokens: answer and foil."""
        self.adapter, self.tokens = adapter, tokens
        self.clean_ids, self.corrupted_ids = clean[None], corrupted[None]
        forward = adapter.forward(self.clean_ids)
        self.hidden = forward.hidden_states
        self.clean = float(self.difference(forward.final)[0])
        self.corrupted = float(self.difference(adapter.forward(self.corrupted_ids).final)[0])

    @classmethod
    def of(cls, adapter: ModelAdapter, number: int, ids: tuple[Tensor, Tensor], pair: Pair) -> Self:
        """Of a pair, whose number is named where its two runs hardly differ: then it raises DataError."""
        run = cls(adapter, *ids, (pair.answer, pair.foil))
        if abs(run.clean - run.corrupted) < LEAST_DIFFERENCE:
            raise DataError(
                f"pair {number}: logit[answer] − logit[foil] is {run.clean:.2f} after the clean text and "
                f"{run.corrupted:.2f} after the corrupted one, less than {LEAST_DIFFERENCE} apart: there is nothing to "
                "recover"
            )
        return run

    def difference(self, final: Float[Tensor, "rows tokens d_model"]) -> Float[Tensor, " rows"]:
        """logit[answer] − logit[foil] after the last token of each row."""
        answer, foil = self.tokens
        logits = self.adapter.logits(final[:, -1]).float()
        return logits[:, answer] - logits[:, foil]

    def share(self, differences: Float[Tensor, " rows"]) -> np.ndarray:
        return ((differences.double().cpu().numpy()) - self.corrupted) / (self.clean - self.corrupted)

    def residual(self) -> Float[np.ndarray, "layers tokens"]:
        """Each layer's hidden state at each token."""
        tokens = self.clean_ids.shape[1]
        places = torch.eye(tokens, dtype=torch.bool, device=self.adapter.device)
        return np.stack([self.of_residual(layer, places) for layer in range(self.adapter.n_layers)])

    @torch.no_grad()
    def of_residual(self, layer: int, places: Bool[Tensor, "rows tokens"]) -> Float[np.ndarray, " rows"]:
        """The share of each row, whose hidden states of the layer are the clean run's at its `places`."""
        shares = []
        for part in places.split(_ROWS):
            ids = self.corrupted_ids.expand(len(part), -1)
            clean = self.hidden[layer]

            def change(h: Tensor, part: Tensor = part, clean: Tensor = clean) -> Tensor:
                return torch.where(part[:, :, None], clean.to(h.dtype), h)

            with self.adapter.edited(layer, change):
                shares.append(self.share(self.difference(self.adapter.forward(ids).final)))
        return np.concatenate(shares)

    def states(self, kind: str) -> Float[np.ndarray, "layers tokens"]:
        """Each block's state of a kind after each token."""
        blocks, tokens = self.adapter.n_layers, self.clean_ids.shape[1]
        shares = np.zeros((blocks, tokens))
        places = torch.eye(blocks, dtype=torch.bool)
        for token, (clean, corrupted) in enumerate(self._states()):
            has = [any(_kind(name) == kind for name in block) for block in corrupted.blocks]
            shares[:, token] = self.of_states(kind, token, clean, corrupted, places)
            shares[~np.array(has), token] = np.nan
        shares[np.isnan(shares[:, 0]), -1] = np.nan
        return shares

    def _states(self) -> Iterator[tuple[RecurrentState, RecurrentState]]:
        """The states of both runs after each token but the last."""
        clean = corrupted = None
        for token in range(self.clean_ids.shape[1] - 1):
            clean = self.adapter.advance(self.clean_ids[:, token : token + 1], clean)[1]
            corrupted = self.adapter.advance(self.corrupted_ids[:, token : token + 1], corrupted)[1]
            yield clean, corrupted

    def of_states(
        self,
        kind: str,
        token: int,
        clean: RecurrentState,
        corrupted: RecurrentState,
        places: Bool[Tensor, "rows blocks"],
    ) -> Float[np.ndarray, " rows"]:
        """The share of each row, which reads on after `token` with the clean run's state of a kind in its `places`."""
        state = corrupted.repeat(len(places))
        for block, (own, others) in enumerate(zip(state.blocks, clean.blocks, strict=True)):
            rows = places[:, block].to(self.adapter.device)
            for name in own:
                if _kind(name) == kind:
                    own[name][rows] = others[name].expand_as(own[name])[rows]
        rest = self.corrupted_ids[:, token + 1 :].expand(len(places), -1)
        return self.share(self.difference(self.adapter.advance(rest, state)[0].final))
