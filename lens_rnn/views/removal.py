"""Whether relevance is right: take tokens out of the text, the most relevant first, and see how fast the explained
logit falls.

The perturbation test of Jafari et al. 2024 (arXiv 2406.07592), with tokens left out of the text in place of blanked
ones.
"""

from collections.abc import Sequence

from lens_rnn.errors import ConfigError
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import OneText, one_text
from lens_rnn.views.relevance import Explained, read_logits

import numpy as np
import torch
from tuned_lens.nn.lenses import Lens


@torch.no_grad()
def without_tokens(
    adapter: ModelAdapter,
    input_ids: OneText,
    rankings: np.ndarray,
    counts: Sequence[int],
    explained: Explained,
    lens: Lens | None = None,
) -> np.ndarray:
    """What is explained, at the last token of a text or its token ids (tokens), without the first so many tokens of
    each ranking: (rankings, counts).

    rankings: (rankings, tokens − 1): all places but the last, which is where the logit is read, in the order in which
    they are left out. explained: with its token, as `relevance` returns it. Raises ConfigError if it has none, another
    place, or rankings are no such orders.
    """
    ids = one_text(adapter, input_ids)[0]
    last = len(ids) - 1
    if explained.token is None or explained.position not in (-1, last):
        raise ConfigError(
            "what is explained here is the logit of a named token after the last one; give token, and position -1"
        )
    if rankings.ndim != 2 or not np.array_equal(
        np.sort(rankings), np.broadcast_to(np.arange(last), (len(rankings), last))
    ):
        raise ConfigError(
            f"each ranking must hold every place from 0 to {last - 1} once, and they have the shape {rankings.shape}"
        )
    if not all(0 <= count <= last for count in counts):
        raise ConfigError(f"counts {', '.join(map(str, counts))}: of {last + 1} tokens 0 to {last} can be left out")
    columns = []
    for count in counts:
        kept = np.sort(rankings[:, count:])
        places = torch.from_numpy(np.column_stack([kept, np.full(len(kept), last)])).to(ids.device)
        forward = adapter.forward(ids[places])
        hidden = forward.norm_input if explained.layer is None else forward.hidden_states[explained.layer]
        logits = read_logits(adapter, lens, explained, hidden[:, -1])  # (rankings, vocab)
        value = logits[:, explained.token] - (0 if explained.against is None else logits[:, explained.against])
        columns.append(value.float().cpu().numpy())
    return np.stack(columns, axis=1)
