"""Steering the slow and plain way: one text, one edit, one multiplier at a time, every token read anew."""

from lens_rnn.models import ModelAdapter
from lens_rnn.steering.evaluation import Edit
from lens_rnn.steering.pairs import Pair, Question

import numpy as np
import torch
from torch import Tensor


def answer_log_probs(adapter: ModelAdapter, question: Question, edit: Edit, multiplier: float) -> np.ndarray:
    """(2): ln p of the matching and the other answer."""
    ids = torch.tensor([question.ids])
    vectors, target, layer = edit

    def add(h: Tensor) -> Tensor:
        h = h.clone()
        if target != "state":
            h[0, -1] += multiplier * vectors.tensors[f"residual.{layer}"]
        return h

    state = None
    if target != "residual":  # read up to the last token, before which the state is changed
        _, state = adapter.advance(ids[:, :-1])
        block = state.blocks[layer]
        for name in set(adapter.state_names) & block.keys():
            block[name] = block[name] + multiplier * vectors.tensors[f"{name}.{layer}"]
    with adapter.edited(layer, add):
        forward = adapter.forward(ids) if state is None else adapter.advance(ids[:, -1:], state)[0]
    log_p = torch.log_softmax(adapter.logits(forward.final[0, -1]).double(), -1)
    return log_p[[question.matching, question.other]].numpy()


def states_of_pairs(adapter: ModelAdapter, pairs: list[Pair]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By key, the states after the positive and after the negative texts, (pairs, size) each, float64."""
    read: dict[str, list[np.ndarray]] = {}
    for text in (text for side in zip(*pairs, strict=True) for text in side):
        ids = torch.tensor([text])
        found = {f"residual.{i}": h[0, -1] for i, h in enumerate(adapter.forward(ids).hidden_states)}
        for i, block in enumerate(adapter.advance(ids)[1].blocks if adapter.has_state else ()):
            found |= {f"{name}.{i}": block[name][0] for name in set(adapter.state_names) & block.keys()}
        for key, tensor in found.items():
            read.setdefault(key, []).append(tensor.double().flatten().numpy())
    return {key: (np.stack(states[: len(pairs)]), np.stack(states[len(pairs) :])) for key, states in read.items()}
