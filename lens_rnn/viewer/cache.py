"""Trajectories and views for a page: models, lenses and what was read with them, kept for a while and asked for by many
users at once."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.evaluation.trajectory import Trajectory, predict
from lens_rnn.lens import LogitLens, open_lens
from lens_rnn.models import ModelAdapter
from lens_rnn.views.attention import HiddenAttention, hidden_attention
from lens_rnn.views.relevance import Explained, Relevance, relevance

from tuned_lens.nn.lenses import Lens

LOGIT = "logit lens"
MOST_TOKENS = 512
"""Longest text that is read."""
MOST_IN_MATRIX = 128
"""Longest text whose hidden attention is shown: a matrix has tokens² cells."""
MODELS_KEPT, LENSES_KEPT, TRAJECTORIES_KEPT = 2, 4, 24  # and as many views of each kind as trajectories


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model that a page offers."""

    model: str
    """Folder, file or Hub name."""
    lenses: Mapping[str, str] = field(default_factory=dict)
    """Its lenses of any kind: folder, file or name on the Hub by name. The logit lens is always there."""

    @property
    def lens_names(self) -> tuple[str, ...]:
        """What can be chosen: tuned lenses first."""
        return (*self.lenses, LOGIT)


class _Loaded(NamedTuple):
    """A model in memory."""

    adapter: ModelAdapter
    text: Callable[[int], str]
    """From a token id to its text."""


def shipped(folder: Path) -> dict[str, Choice]:
    """The models in the subfolders of `folder`, each with the lens in the subfolder of the same name and -lens, if
    there is one."""
    models = [path.parent for path in sorted(folder.glob("*/config.json")) if not path.parent.name.endswith("-lens")]
    beside = {model: model.with_name(f"{model.name}-lens") for model in models}
    return {
        model.name: Choice(model=str(model), lenses={lens.name: str(lens)} if lens.is_dir() else {})
        for model, lens in beside.items()
    }


class ViewerCache:
    """Trajectories and views by the names of model and lens.

    Safe to ask from several threads: one reads for all, as a model cannot do more.
    """

    def __init__(self, choices: Mapping[str, Choice], load: Callable[[str], ModelAdapter]) -> None:
        """load: makes the adapter of a `Choice.model`. The first choice is what a page opens on."""
        if not choices:
            raise ConfigError("there is no model to choose; name one with --model")
        self.choices = dict(choices)
        # Not a lock: torch and MKL keep threads and memory for every thread that calls them, and a web server has many.
        self._worker = ThreadPoolExecutor(1)
        self._load = load
        self._model = lru_cache(MODELS_KEPT)(self._load_model)
        self._lens = lru_cache(LENSES_KEPT)(self._load_lens)
        self._trajectory = lru_cache(TRAJECTORIES_KEPT)(self._read)
        self._attention = lru_cache(TRAJECTORIES_KEPT)(self._attend)
        self._relevance = lru_cache(TRAJECTORIES_KEPT)(self._explain)

    def choice(self, model: str) -> Choice:
        """Raises ConfigError, listing what there is, for an unknown name."""
        if model not in self.choices:
            raise ConfigError(f"there is no model {model!r:.80} here; choose from {', '.join(self.choices)}")
        return self.choices[model]

    def text(self, model: str) -> Callable[[int], str]:
        """What reads the model's tokens."""
        self.choice(model)
        return self._worker.submit(self._model, model).result().text

    def trajectory(self, model: str, lens: str, text: str, stride: int) -> Trajectory:
        """What `lens` reads of the whole text.

        Raises ConfigError for an unknown name, DataError for a text of no tokens or more than MOST_TOKENS, and what
        loading raises.
        """
        self._check(model, lens)
        return self._worker.submit(self._trajectory, model, lens, text, stride).result()

    def attention(self, model: str, text: str) -> HiddenAttention:
        """Hidden attention of the whole text, in all layers.

        Raises ConfigError for an unknown name, DataError for a text of no tokens or more than MOST_IN_MATRIX,
        ModelError for a model without this view, and what loading raises.
        """
        self.choice(model)
        return self._worker.submit(self._attention, model, text).result()

    def relevance(self, model: str, lens: str, text: str, layer: int | None, token: int | None) -> Relevance:
        """Relevance for the logit of `token`, by default the likeliest, after the text: the model's, or what `lens`
        reads at `layer`.

        Errors as for `trajectory`, ConfigError for a layer or token that is not there, and ModelError for a model
        without this view.
        """
        self._check(model, lens)
        return self._worker.submit(
            self._relevance, model, LOGIT if layer is None else lens, text, layer, token
        ).result()

    def names(self, model: str, text: str) -> list[str]:
        """The text's tokens, as text. Errors as for `trajectory`."""
        read = self.text(model)
        return [read(i) for i in self._worker.submit(self._ids, model, text, MOST_TOKENS).result()]

    def _check(self, model: str, lens: str) -> None:
        if lens not in self.choice(model).lens_names:
            raise ConfigError(
                f"there is no lens {lens!r:.80} for {model}; choose from {', '.join(self.choice(model).lens_names)}"
            )

    def _load_model(self, model: str) -> _Loaded:
        adapter = self._load(self.choices[model].model)
        return _Loaded(adapter, token_reader(adapter.tokenizer))

    def _load_lens(self, model: str, lens: str) -> Lens:
        adapter = self._model(model).adapter
        return open_lens(adapter, LogitLens.kind if lens == LOGIT else self.choices[model].lenses[lens])

    def _read(self, model: str, lens: str, text: str, stride: int) -> Trajectory:
        ids = self._ids(model, text, MOST_TOKENS)
        return predict(self._model(model).adapter, self._lens(model, lens), ids, stride=stride)

    def _attend(self, model: str, text: str) -> HiddenAttention:
        ids = self._ids(model, text, MOST_IN_MATRIX, "fit into the matrix")
        return hidden_attention(self._model(model).adapter, ids)

    def _explain(self, model: str, lens: str, text: str, layer: int | None, token: int | None) -> Relevance:
        ids = self._ids(model, text, MOST_TOKENS)
        adapter = self._model(model).adapter
        if layer is not None and layer not in adapter.fitted_layers:
            raise ConfigError(
                f"no lens reads layer {layer} of {model}; choose one of the heat map's, or none for the model's own "
                "logit"
            )
        return relevance(
            adapter, ids, Explained(token=token, layer=layer), lens=None if layer is None else self._lens(model, lens)
        )

    def _ids(self, model: str, text: str, most: int, where: str = "are read here") -> list[int]:
        """The text's tokens, at most so many."""
        adapter = self._model(model).adapter
        ids: list[int] = adapter.tokenizer(text)["input_ids"]
        most = min(most, adapter.longest_sequence or most)
        if len(ids) > most:
            begins = " ".join(text.split())[:20]
            raise DataError(f"the text “{begins}…” has {len(ids):,} tokens; at most {most:,} {where}, shorten it")
        return ids


def cut(trajectory: Trajectory, span: range) -> Trajectory:
    """Only the tokens of `span`."""
    part = slice(span.start, span.stop)
    by_row = ("entropy", "ce", "kl", "rank", "top_ids", "top_probabilities")
    arrays = {name: getattr(trajectory, name)[:, part] for name in by_row}
    return replace(trajectory, input_ids=trajectory.input_ids[part], targets=trajectory.targets[part], **arrays)
