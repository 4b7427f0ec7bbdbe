"""What one result says: cross-entropies over the depth of a model, and what its translators make of other layers."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lens_rnn.errors import DataError

import numpy as np

UNITS = "bits per byte"
PER_TOKEN = "nats per token"
UNIFORM_IS_KNOWN_TO = 0.005
"""How far above the uniform baseline a layer must be to count as worse: the one of published results is known to two
decimals."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTransfer:
    """What translators make of the hidden states of layers that they were not fitted to, in bits per byte (Belrose et
    al. 2023)."""

    translator_depth: np.ndarray
    """Fraction of blocks applied at the layer of each translator, (translators,)."""
    source_depth: np.ndarray
    """The same of the layers whose hidden states are read, (sources,)."""
    ce: np.ndarray
    """Cross-entropy of each translator on each source, (translators, sources)."""
    kl: np.ndarray
    """KL from the source's prediction with its own translator, (translators, sources)."""
    own: np.ndarray
    """Row of each source's own translator, (sources,)."""

    @property
    def penalty(self) -> np.ndarray:
        """(translators, sources) What another layer's translator costs: its cross-entropy minus that of the source's
        own."""
        return self.ce - self.ce[self.own, np.arange(len(self.own))]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Cross-entropy over the depth of one model. Arrays have shape (layers,); every entropy is in `units`."""

    name: str
    """What a legend calls it."""
    depth: np.ndarray
    """Fraction of blocks applied at each layer, increasing, 0 to 1."""
    logit_ce: np.ndarray
    """Cross-entropy of the logit lens against the next token."""
    tuned_ce: np.ndarray | None = None
    """The same for the tuned lens."""
    model_ce: float
    """Cross-entropy of the model itself."""
    uniform_ce: float | None = None
    """Cross-entropy of the uniform distribution over the vocabulary."""
    unigram_ce: float | None = None
    """Cross-entropy of token frequencies."""
    logit_kl: np.ndarray | None = None
    """KL from the model's prediction to the logit lens's."""
    tuned_kl: np.ndarray | None = None
    """The same for the tuned lens."""
    family: str | None = None
    """Architecture, for colours: "mamba", "rwkv", "gpt_neox" or another."""
    transfer: LayerTransfer | None = None
    """What translators make of other layers, where it was measured."""
    bits_per_byte_per_nat: float | None = None
    """Bits per byte that one nat per token makes on the text of the result; it depends on the tokenizer and the
    text."""
    units: str = UNITS
    """Bits per byte, or nats per token."""
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Cross-entropy of other lenses by name, NaN at layers that they do not read."""

    def __post_init__(self) -> None:
        named = {name: getattr(self, name) for name in ("logit_ce", "tuned_ce", "logit_kl", "tuned_kl")}
        for name, values in (named | dict(self.others)).items():
            if values is not None and np.shape(values) != np.shape(self.depth):
                raise DataError(
                    f"{self.name}: {name} has {np.size(values)} layers and depth {np.size(self.depth)}; they must agree"
                )
        if self.bits_per_byte_per_nat is not None and self.bits_per_byte_per_nat <= 0:
            raise DataError(f"{self.name}: bits_per_byte_per_nat is {self.bits_per_byte_per_nat}; it must be above 0")

    @property
    def broken(self) -> str | None:
        """Why the result cannot be trusted, or None: the model itself predicts worse than a uniform distribution."""
        if self.uniform_ce is None or self.model_ce <= self.uniform_ce:
            return None
        return f"model {self.model_ce:.2f} > uniform {self.uniform_ce:.2f}"

    @property
    def parameters(self) -> float | None:
        """Number of parameters, where a name like "mamba-130m-hf", "RWKV 1b5" or "Pythia 2.8b" tells it."""
        return parameters_in(self.name)

    @property
    def fitted(self) -> np.ndarray:
        """Indices of the layers before the end of the blocks. A layer at the end is the model's own prediction, and in
        no mean."""
        return np.flatnonzero(self.depth < 1)

    @property
    def tuned_worse_than_logit(self) -> np.ndarray:
        """Indices of the fitted layers where the tuned lens has the higher cross-entropy."""
        return np.empty(0, int) if self.tuned_ce is None else self.fitted[(self.tuned_ce > self.logit_ce)[self.fitted]]

    def worse_than_uniform(self, ce: np.ndarray | None) -> np.ndarray:
        """Indices of the fitted layers where a lens's cross-entropy, (layers,), is above that of the uniform
        distribution."""
        return (
            np.empty(0, int)
            if ce is None or self.uniform_ce is None
            else self.fitted[ce[self.fitted] > self.uniform_ce + UNIFORM_IS_KNOWN_TO]
        )

    def per_token(self) -> "Curves":
        """The same in nats per token, of which exp is the perplexity. Raises DataError where the conversion is not
        known."""
        factor = self.bits_per_byte_per_nat
        if factor is None:
            raise DataError(
                f"{self.name} has no lens_rnn.bits_per_byte_per_nat (bytes per token of its text); measure it with "
                "eval/perplexity.py"
            )
        entropies = ("logit_ce", "tuned_ce", "model_ce", "uniform_ce", "unigram_ce", "logit_kl", "tuned_kl")
        known = {name: getattr(self, name) for name in entropies if getattr(self, name) is not None}
        changes: dict[str, Any] = {name: value / factor for name, value in known.items()}
        others = {name: ce / factor for name, ce in self.others.items()}
        return replace(self, **changes, others=others, transfer=None, units=PER_TOKEN)

    def joined_to_model(self, ce: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth and cross-entropy of a lens, ended by the model itself at depth 1 where the layers end before it."""
        if self.depth[-1] >= 1:
            return self.depth, ce
        return np.append(self.depth, 1.0), np.append(ce, self.model_ce)


def warn_of_broken(results: Iterable[Curves]) -> None:
    """Log a warning for each broken run, which pictures draw in grey."""
    for curves in results:
        if curves.broken:
            message = "%s is a broken run (%s bits per byte) and is drawn as one"
            logging.getLogger(__name__).warning(message, curves.name, curves.broken)


def parameters_in(text: str) -> float | None:
    """Number of parameters that a text names as 160m, 2.8b or 1b5, or None."""
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(\d*)(?![a-z0-9])", text.lower())
    if not size:
        return None
    whole, unit, decimals = size.groups()
    return float(f"{whole}.{decimals}" if decimals else whole) * {"m": 1e6, "b": 1e9}[unit]
