"""What fit.json says of a fitted lens. `artifacts` reads and writes it.

Every field has a default, because older files and those of others say less: a field that they leave out is unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any

FORMAT = 1


def _unknown() -> None:
    """The default of what is written as null."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What identifies the model."""

    name: str = ""
    revision: str | None = field(default_factory=_unknown)
    model_type: str = ""
    d_model: int = 0
    n_layers: int = 0
    vocab_size: int | None = field(default_factory=_unknown)
    dtype: str = ""
    stock_attaches: bool = False
    """Whether tuned-lens by itself attaches a lens to it."""
    unembedding_sha256: str | None = field(default_factory=_unknown)
    """Of norm and head, in this dtype."""
    weights_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What identifies the tokens of one half of a text."""

    source: str = ""
    tokens: int = 0
    seq_len: int = 0
    documents: int = 0
    """Of the whole half, from which the tokens are."""
    bytes: int = 0
    """Of the text of these tokens, in UTF-8."""
    tokens_per_byte: float = nan
    sha256: str = ""
    held_out: str = ""
    """What of the text was held out, in words."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of itself, such as its commit on the Hub."""


@dataclass(frozen=True, kw_only=True)
class FitData:
    """The tokens that the lens was fitted on, and those that it was measured on."""

    fit: DataFacts = DataFacts()
    eval: DataFacts = DataFacts()


@dataclass(frozen=True, kw_only=True)
class Units:
    """The units of the figures."""

    kl: str = "nats per token"
    ce: str = "bits per byte"
    distance_to_reference: str = "relative"
    bits_per_byte_per_nat: float = nan


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Cross-entropy without a lens."""

    uniform_ce: float = nan
    unigram_ce: float | None = field(default_factory=_unknown)
    model_ce: float = nan


@dataclass(frozen=True, kw_only=True)
class LayerStart:
    """Where the steps of a layer began."""

    ridge: float | None = field(default_factory=_unknown)
    """λ of the closed-form start, where there was one."""
    explained: float | None = field(default_factory=_unknown)
    """The fraction of the final norm's input that it explained on held-out tokens, where some were held out."""


@dataclass(frozen=True)
class LayerChoice:
    """Where a layer's translator was put on its way: from zero to the start, and from there to the end of the steps or
    the mean of the late ones."""

    towards: str = ""
    fraction: float = 1.0
    """Of the way there from the point before; 1 is there."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Nats a token of every place that was tried, on tokens that were kept apart for this."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer before and after."""

    depth: float = nan
    fitted: bool = True
    kl_logit: float = nan
    kl_start: float | None = field(default_factory=_unknown)
    kl_tuned: float = nan
    kl_reference: float | None = field(default_factory=_unknown)
    """Of the best known translators."""
    ce_logit: float = nan
    ce_tuned: float = nan
    start: LayerStart | None = field(default_factory=_unknown)
    choice: LayerChoice | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingLoss:
    """The loss of each step."""

    unit: str = "nats per token"
    layers: tuple[int, ...] = ()
    """Those that were fitted."""
    steps: tuple[tuple[float, ...], ...] = ()
    """(rows, layers); NaN for what was not finite."""
    steps_a_row: int = 1
    """Steps whose mean is a row: of a long fit several, the last of them perhaps fewer."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Where the fit ran."""

    processes: int = 1
    threads: int = 0
    device: str = ""
    python: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """All of fit.json."""

    model: ModelFacts = ModelFacts()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As the command line has them, with what the plan made of defaults."""
    data: FitData = FitData()
    units: Units = Units()
    baselines: Baselines = Baselines()
    layers: Mapping[int, LayerReport] = field(default_factory=dict)
    distance_to_reference: float | None = field(default_factory=_unknown)
    """Of the mean KL over fitted layers from that of the best known translators; 0.02 is 2 % above."""
    training_loss: TrainingLoss = TrainingLoss()
    run: RunFacts = RunFacts()
