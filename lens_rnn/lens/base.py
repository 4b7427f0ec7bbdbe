"""What all kinds of lens are: a reading of hidden states, and text as a layer would write it."""

from pathlib import Path
from typing import ClassVar

from lens_rnn.errors import ConfigError
from lens_rnn.lens.unembedding import Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import checked_layers

import torch
from jaxtyping import Int
from torch import Tensor
from tuned_lens.nn import lenses as stock


class Lens(stock.Lens):
    """Reads a hidden state as a prediction: unembed(transform_hidden(h, layer)). A subclass of tuned-lens's, so that
    what takes its lenses takes these.

    A kind of lens is one module: what it keeps, how it reads, and its files. `lens_rnn.lens.kinds` lists them.
    """

    unembed: Unembedding

    kind: ClassVar[str]
    """What people call it, and what a lens without another name is listed as."""

    def reads(self, layer: int) -> bool:  # noqa: ARG002 - most kinds read every layer
        """Whether it has something to read hidden states of this layer with."""
        return True

    @classmethod
    def is_at(cls, place: Path) -> bool:  # noqa: ARG003 - a kind without files is nowhere
        """Whether this file or folder, which is there, looks like a lens of this kind."""
        return False

    @torch.no_grad()
    def generate(
        self,
        adapter: ModelAdapter,
        layer: int,
        input_ids: Int[Tensor, "batch seq"],
        do_sample: bool = True,
        temp: float = 1.0,
        max_new_tokens: int = 100,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch longer"]:
        """Go on from input_ids (batch, seq), each token chosen by what the lens reads at `layer`.

        A recurrent model is fed one token a step and keeps its state; a transformer is fed the whole text again each
        step. do_sample: draw from softmax(logits ÷ temp), with `generator`; else take the likeliest. eos_token_id: what
        ends a text, and fills what is after it.

        Returns input_ids with up to max_new_tokens more, (batch, seq + new). Raises ConfigError for a layer that the
        model does not have or a temp that is not above 0.
        """
        checked_layers(adapter, layer)
        if not temp > 0:
            raise ConfigError(f"temp is {temp}; it must be above 0 (do_sample=False takes the likeliest token)")
        ids, fed, state = input_ids, input_ids, None
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(max_new_tokens):
            if adapter.has_state:
                forward, state = adapter.advance(fed, state)
            else:
                forward = adapter.forward(ids)
            logits = self(forward.hidden_states[layer][:, -1], layer).float()  # (batch, vocab)
            fed = (
                torch.multinomial((logits / temp).softmax(-1), 1, generator=generator)
                if do_sample
                else logits.argmax(-1, keepdim=True)
            )
            if eos_token_id is not None:
                fed = fed.masked_fill(ended[:, None], eos_token_id)
                ended |= fed[:, 0] == eos_token_id
            ids = torch.cat([ids, fed], dim=1)
            if ended.all():
                break
        return ids
