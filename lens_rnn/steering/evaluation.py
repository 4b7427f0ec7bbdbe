"""What steering does to answers: log-probabilities of both answers for every vector, layer and multiplier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lens_rnn.errors import ConfigError
from lens_rnn.intervals import NO_LIMITS, Estimate, least_mean_estimate, mean_estimate
from lens_rnn.models import Forward, ModelAdapter, RecurrentState
from lens_rnn.models.inputs import checked_layers
from lens_rnn.steering.apply import steer, steer_state
from lens_rnn.steering.clusters import clusters_of
from lens_rnn.steering.pairs import Question
from lens_rnn.steering.vectors import SteeringVectors

import numpy as np
import torch
from torch import Tensor

Target = Literal["residual", "state", "both"]
TARGETS: tuple[Target, ...] = ("residual", "state", "both")
NOTHING = -700.0
"""ln p of an answer that a broken model cannot give: as good as 0, and finite."""


class Edit(NamedTuple):
    """What is added where."""

    vectors: SteeringVectors
    target: Target
    layer: int


@dataclass(frozen=True, eq=False)
class Scores:
    """Answers to some questions, by the probabilities of the two answer tokens."""

    log_p: np.ndarray
    """(…, questions, 2): ln p of the matching and of the other answer, float64."""
    clusters: np.ndarray | None = None
    """(questions): the number of each one's cluster; None if each is its own."""

    @property
    def matching(self) -> np.ndarray:
        """(…, questions): p(matching) ÷ (p(matching) + p(other))."""
        return 1 / (1 + np.exp(-self.log_odds))

    @property
    def log_odds(self) -> np.ndarray:
        """(…, questions): ln p(matching) − ln p(other)."""
        return self.log_p[..., 0] - self.log_p[..., 1]

    @property
    def nonsense(self) -> np.ndarray:
        """(…, questions): 1 − p(matching) − p(other)."""
        return 1 - self.mass

    @property
    def mass(self) -> np.ndarray:
        """(…, questions): p(matching) + p(other)."""
        return np.exp(self.log_p).sum(-1)

    def mean(self, values: np.ndarray, possible: tuple[float, float] = NO_LIMITS) -> Estimate:
        """The mean of what was computed of each question, (questions), with clusters resampled. possible: what it can
        be."""
        return mean_estimate(values, self.clusters, possible=possible)

    def __getitem__(self, index: Any) -> "Scores":
        """Of some edits and multipliers, all questions."""
        return Scores(self.log_p[index], self.clusters)


@torch.no_grad()
def score_answers(
    adapter: ModelAdapter,
    questions: Sequence[Question],
    edits: Sequence[Edit],
    multipliers: Sequence[float],
    on_question: Callable[[int], Any] | None = None,
) -> Scores:
    """Answers under every edit and multiplier, log_p (edits, multipliers, questions, 2).

    All but the last token of a question are read once; from a copy of that state the last token is read for all
    multipliers at once, its residual stream steered, or the state before it, or both. A model without recurrent state
    reads the whole question for each edit.
    """
    checked_layers(adapter, [edit.layer for edit in edits])
    times = torch.tensor(multipliers, dtype=torch.float32, device=adapter.device)
    log_p = np.empty((len(edits), len(multipliers), len(questions), 2))
    for q, question in enumerate(questions):
        prefix = Prefix.of(adapter, question.ids, len(times))
        for e, edit in enumerate(edits):
            forward = prefix.finish(adapter, edit, times)
            log_p[e, :, q] = answers(adapter, forward, question).numpy()
        if on_question:
            on_question(1)
    return Scores(log_p, clusters_of(questions))


def answers(adapter: ModelAdapter, forward: Forward, question: Question) -> Tensor:
    """(batch, 2): ln p of the matching and the other answer after the last token of a pass, float64, on the CPU.

    Where steering has broken the model, and its logits are NaN, both are NOTHING: the answer is nonsense and takes no
    side.
    """
    log_p = torch.log_softmax(adapter.logits(forward.final[:, -1]).double(), -1)
    return log_p[:, [question.matching, question.other]].cpu().nan_to_num(nan=NOTHING, neginf=NOTHING)


class Prefix(NamedTuple):
    """A question that is read up to its last token, in as many copies as there are multipliers."""

    last: Tensor
    """(copies, tokens): what is still to be read: the last token or, without a recurrent state, all of them."""
    state: RecurrentState | None

    @classmethod
    def of(cls, adapter: ModelAdapter, ids: Sequence[int], copies: int) -> "Prefix":
        """Read all but the last token, once."""
        tokens = torch.tensor([ids], device=adapter.device)  # (1, tokens)
        if not adapter.has_state:
            return cls(tokens.expand(copies, -1), None)
        return cls(tokens[:, -1:].expand(copies, -1), adapter.advance(tokens[:, :-1])[1].repeat(copies))

    def finish(self, adapter: ModelAdapter, edit: Edit, multipliers: Tensor) -> Forward:
        """Read the rest, steered by each copy's multiplier. The state is left as it is."""
        vectors, target, layer = edit
        if target != "residual" and self.state is None:
            raise ConfigError(f"{adapter.no_state}; steer the residual stream")
        state = self.state
        if state is not None and target != "residual":
            state = steer_state(state, vectors, multipliers, layer)
        if target == "state":
            return adapter.advance(self.last, state)[0]
        with steer(adapter, vectors, multipliers, layer, positions=-1):
            return adapter.forward(self.last) if state is None else adapter.advance(self.last, state)[0]


def edits_of(
    adapter: ModelAdapter, vectors: SteeringVectors, targets: Sequence[Target], layers: Sequence[int] = ()
) -> list[Edit]:
    """Every target at every layer where it can be steered, of those named or of all: of a hybrid model's blocks without
    state the residual stream alone; of a trivial layer, unless it is named, the state alone, because adding to the
    final norm's input is a bias on logits.
    """
    named = checked_layers(adapter, layers) if layers else None
    with_residual = set(named or adapter.fitted_layers)
    with_state = set(named or range(adapter.n_layers)) & set(vectors.state_layers)
    at = {"residual": with_residual, "state": with_state, "both": with_residual & with_state}
    return [Edit(vectors, target, layer) for target in targets for layer in sorted(at[target])]


def beyond_controls(values: np.ndarray, controls: np.ndarray, clusters: np.ndarray | None = None) -> Estimate:
    """How far the mean of values (questions) lies beyond the largest of the controls (controls, questions), whatever
    their sign: the least of its distances from each control and from each control's negative.

    A lower limit above 0 says in at most 2.5 % of cases wrongly that an effect is larger than that of every control,
    however many there are and however alike (`least_mean_estimate`).
    """
    return least_mean_estimate(np.concatenate([values - controls, values + controls]), clusters)
