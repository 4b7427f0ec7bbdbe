"""What a model answers to quirky rows: log-odds of the true answer, and how often it says what the character says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lens_rnn.elk.quirky import CHARACTERS, QuirkyRow, is_easy, is_hard
from lens_rnn.elk.templates import Encoded
from lens_rnn.models import ModelAdapter

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one character's rows, the share in which the model says what the character says, and how many rows; NaN where
    there are none."""

    all: float
    all_rows: int
    easy: float
    easy_rows: int
    hard: float
    hard_rows: int


@contextmanager
def evaluating(adapter: ModelAdapter) -> Iterator[None]:
    """Inside it, no dropout: all parts of the model are in evaluation mode, and afterwards in the mode that they had.

    The model itself stays in its mode: RWKV-4 scales its weights for evaluation, and not the adapters on them.
    """
    whole = adapter.model.base_model
    parts = [module for module in whole.modules() if module is not whole and module.training]
    for module in parts:
        module.training = False
    try:
        yield
    finally:
        for module in parts:
            module.training = True


def answer_logits(adapter: ModelAdapter, encoded: Sequence[Encoded]) -> Tensor:
    """Logits (batch, vocab_size) after each prompt, with gradients where the model has them."""
    longest = max(len(prompt.ids) for prompt in encoded)
    padded = [[*prompt.ids, *[0] * (longest - len(prompt.ids))] for prompt in encoded]
    ids = torch.tensor(padded, device=adapter.device)  # (batch, seq)
    last = torch.tensor(
        [len(prompt.ids) - 1 for prompt in encoded], device=adapter.device
    )  # what follows does not count
    final = adapter.run(ids).final  # (batch, seq, d_model)
    return adapter.logits(final[torch.arange(len(encoded), device=adapter.device), last])


@torch.no_grad()
def log_odds(adapter: ModelAdapter, encoded: Sequence[Encoded], batch_size: int = 64) -> np.ndarray:
    """The model's log-odds (rows) of the true answer against the false one."""
    parts = []
    with evaluating(adapter):
        for start in range(0, len(encoded), batch_size):
            batch = encoded[start : start + batch_size]
            answers = torch.tensor([prompt.answers for prompt in batch], device=adapter.device)  # (batch, 2)
            false, true = answer_logits(adapter, batch).float().gather(1, answers).unbind(1)
            parts.append((true - false).cpu().numpy())
    return np.concatenate(parts)


def quirkiness(rows: Sequence[QuirkyRow], odds: np.ndarray) -> dict[str, Rates]:
    """How often the model says what the character says, by character: on all its rows, easy ones and hard ones."""
    right = np.array([row.label == (odd > 0) for row, odd in zip(rows, odds, strict=True)])
    of_character = {}
    for character in CHARACTERS:
        counted: dict[str, float] = {}
        for name, chosen in (("all", lambda _: True), ("easy", is_easy), ("hard", is_hard)):
            among = [i for i, row in enumerate(rows) if row.character == character and chosen(row)]
            counted |= {name: float(right[among].mean()) if among else np.nan, f"{name}_rows": len(among)}
        of_character[character] = Rates(**counted)  # type: ignore[arg-type] # whole numbers where it says so
    return of_character
