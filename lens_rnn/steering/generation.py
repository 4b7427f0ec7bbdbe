"""What a model goes on to write, unsteered and steered."""

from collections.abc import Sequence

from lens_rnn.models import ModelAdapter
from lens_rnn.steering.apply import steer, steer_state
from lens_rnn.steering.evaluation import Edit, Prefix

import torch


@torch.no_grad()
def generate(
    adapter: ModelAdapter,
    ids: Sequence[int],
    edit: Edit,
    multipliers: Sequence[float],
    new_tokens: int = 40,
    *,
    every_token: bool = False,
) -> list[list[int]]:
    """The likeliest next token, again and again: one text of new_tokens a multiplier, all in one batch.

    The residual stream is steered from the last token of `ids` on; the recurrent state before that token, and with
    every_token before each one that follows.
    """
    times = torch.tensor(multipliers, dtype=torch.float32, device=adapter.device)
    token, state = Prefix.of(adapter, ids, len(times))
    strength = times if edit.target != "state" else torch.zeros_like(times)
    written = []
    for step in range(new_tokens):
        if state is not None and edit.target != "residual" and (every_token or step == 0):
            state = steer_state(state, edit.vectors, times, edit.layer)
        with steer(adapter, edit.vectors, strength, edit.layer, slice(len(ids) - 1 if state is None else 0, None)):
            if state is None:  # all that there is, anew
                forward = adapter.forward(token)
            else:
                forward, state = adapter.advance(token, state)
        new = adapter.logits(forward.final[:, -1]).argmax(-1, keepdim=True)  # (copies, 1)
        written.append(new)
        token = torch.cat([token, new], 1) if state is None else new
    return torch.cat(written, 1).tolist()
