"""Text from a layer: one token a step with a recurrent state is what feeding the whole text each time gives."""

from lens_rnn.errors import ConfigError
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter

import pytest
import torch
from torch import Tensor

PROMPT = torch.randint(96, (3, 7), generator=torch.Generator().manual_seed(4))


def a_lens(model: ModelAdapter) -> TunedLens:
    lens = TunedLens.from_adapter(model)
    torch.manual_seed(0)
    for layer in model.fitted_layers:
        lens[layer].weight.data.normal_(std=0.1)
    return lens


def refed(
    model: ModelAdapter, lens: TunedLens, layer: int, ids: Tensor, new: int, generator: torch.Generator | None
) -> Tensor:
    """The naive twin: the whole text again for every token."""
    for _ in range(new):
        logits = lens(model.forward(ids).hidden_states[layer][:, -1], layer)
        token = logits.argmax(-1, keepdim=True)
        if generator is not None:
            token = torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, token], 1)
    return ids


@pytest.mark.parametrize("sampled", [False, True])
def test_it_is_what_feeding_the_whole_text_gives(every_model: ModelAdapter, sampled: bool) -> None:
    lens = a_lens(every_model)
    for layer in (0, every_model.n_layers - 1):
        first, second = (torch.Generator().manual_seed(5) if sampled else None for _ in range(2))
        got = lens.generate(every_model, layer, PROMPT, do_sample=sampled, temp=0.7, max_new_tokens=8, generator=first)
        assert torch.equal(got, refed(every_model, lens, layer, PROMPT, 8, second))
        assert torch.equal(got[:, :7], PROMPT)


def test_a_recurrent_model_reads_each_token_once(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    advance = type(tiny_mamba).advance
    monkeypatch.setattr(
        type(tiny_mamba),
        "advance",
        lambda self, ids, state=None: read.append(ids.shape[1]) or advance(self, ids, state),
    )
    LogitLens.from_adapter(tiny_mamba).generate(tiny_mamba, 1, PROMPT, max_new_tokens=4)
    assert read == [7, 1, 1, 1]


def test_a_text_that_has_ended_stays_ended(tiny_mamba: ModelAdapter) -> None:
    lens = LogitLens.from_adapter(tiny_mamba)
    free = lens.generate(tiny_mamba, 2, PROMPT, do_sample=False, max_new_tokens=12)
    end = int(free[0, 9])
    got = lens.generate(tiny_mamba, 2, PROMPT, do_sample=False, max_new_tokens=12, eos_token_id=end)
    for text, untold in zip(got[:, 7:].tolist(), free[:, 7:].tolist(), strict=True):
        until = untold.index(end) + 1 if end in untold else len(untold)
        expected = untold[:until] + [end] * (len(text) - until)
        assert text == expected[: len(text)]
    alone = lens.generate(tiny_mamba, 2, PROMPT[:1], do_sample=False, max_new_tokens=12, eos_token_id=end)
    assert alone.shape[1] == 7 + free[0, 7:].tolist().index(end) + 1


def test_refusals(tiny_mamba: ModelAdapter) -> None:
    lens = LogitLens.from_adapter(tiny_mamba)
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=f"layer {layer}"):
            lens.generate(tiny_mamba, layer, PROMPT)
    with pytest.raises(ConfigError, match="temp is 0"):
        lens.generate(tiny_mamba, 0, PROMPT, temp=0)
