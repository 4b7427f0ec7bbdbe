"""Latent state reading: a multiplier of 0 is the prompt alone, an exchanged state is the source's, and effects are of
naive sums."""

from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.models import ModelAdapter
from lens_rnn.models.state import combined, is_short
from lens_rnn.views.state_reading import Source, _derangement, read_state, reading_experiment
from tests.refusals import refusal

import numpy as np
import pytest
import torch

SOURCE, PROMPT = [3, 9, 4, 1, 7], [5, 2, 8]


def test_nothing_added_is_the_prompt_alone(every_model: ModelAdapter) -> None:
    if not every_model.has_state:
        assert every_model.no_state in refusal(lambda: read_state(every_model, SOURCE, PROMPT), ModelError)
        return
    read = read_state(every_model, SOURCE, PROMPT, 0.0, tokens=3)
    logits = every_model.logits(every_model.forward(torch.tensor([PROMPT])).final[0, -1])
    torch.testing.assert_close(read.log_probabilities, logits.float().log_softmax(-1), rtol=1e-3, atol=1e-4)
    assert read.kl == pytest.approx(0, abs=1e-4)
    ids = [*PROMPT]
    for token in read.continuation:
        assert token == int(every_model.logits(every_model.forward(torch.tensor([ids])).final[0, -1]).argmax())
        ids.append(token)


def test_an_exchanged_state_is_the_source_s(every_model: ModelAdapter) -> None:
    """But for what convolutions, token shifts and attention remember, which stays the prompt's."""
    if not every_model.has_state:
        return
    read = read_state(every_model, SOURCE, PROMPT, 1.0, exchange=True)
    _, of_source = every_model.advance(torch.tensor([SOURCE]))
    _, state = every_model.advance(torch.tensor([PROMPT[:-1]]))
    for own, other in zip(state.blocks, of_source.blocks, strict=True):
        own.update({name: other[name] for name in own if not is_short(name) and name not in ("keys", "values")})
    final = every_model.advance(torch.tensor([PROMPT[-1:]]), state)[0].final[0, -1]
    expected = every_model.logits(final).float().log_softmax(-1)
    torch.testing.assert_close(read.log_probabilities, expected, rtol=1e-3, atol=1e-4)
    assert read.kl > 0


def test_sums_of_rwkv4_are_those_of_what_they_stand_for() -> None:
    random = np.random.default_rng(0)
    own, other = (
        {name: torch.from_numpy(random.normal(size=(1, 4))) for name in ("num", "den", "max", "att_shift")}
        for _ in range(2)
    )
    mixed = combined(own, other, 0.5, 3.0)
    for name in ("num", "den"):
        expected = 0.5 * own[name] * own["max"].exp() + 3.0 * other[name] * other["max"].exp()
        torch.testing.assert_close(mixed[name] * mixed["max"].exp(), expected)
    assert mixed["att_shift"] is own["att_shift"]


def test_blocks_that_take_no_part_keep_their_state(tiny_mamba: ModelAdapter) -> None:
    one, all_blocks = (
        read_state(tiny_mamba, SOURCE, PROMPT, 5.0, blocks=blocks).log_probabilities for blocks in ([1], None)
    )
    _, of_source = tiny_mamba.advance(torch.tensor([SOURCE]))
    _, state = tiny_mamba.advance(torch.tensor([PROMPT[:-1]]))
    state.blocks[1]["ssm"] += 5 * of_source.blocks[1]["ssm"]
    final = tiny_mamba.advance(torch.tensor([PROMPT[-1:]]), state)[0].final[0, -1]
    torch.testing.assert_close(one, tiny_mamba.logits(final).float().log_softmax(-1), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, all_blocks, atol=1e-4)


def test_an_experiment_is_its_readings(tiny_mamba: ModelAdapter) -> None:
    told: list[int] = []
    sources = [Source(text=[i, 9, 4, i], about=about) for i, about in ((1, 11), (2, 12), (3, 11))]
    result = reading_experiment(tiny_mamba, sources, PROMPT, 2.0, on_source=told.append)
    assert sum(told) == 3
    read = [read_state(tiny_mamba, source.text, PROMPT, 2.0).log_probabilities for source in sources]
    plain = read_state(tiny_mamba, SOURCE, PROMPT, 0.0).log_probabilities
    np.testing.assert_allclose(result.own, [read[0][11], read[1][12], read[2][11]], rtol=1e-5)
    np.testing.assert_allclose(result.others, [read[1][11], (read[0][12] + read[2][12]) / 2, read[1][11]], rtol=1e-5)
    np.testing.assert_allclose(result.plain, [plain[11], plain[12], plain[11]], rtol=1e-5)
    wrong = [tiny_mamba.n_layers - 1, *range(tiny_mamba.n_layers - 1)]
    assert sorted(_derangement(tiny_mamba.n_layers, 0)) == sorted(wrong)
    effect = result.effect("others")
    assert effect.value == pytest.approx(np.mean(result.own - result.others))


@pytest.mark.parametrize("blocks", [2, 3, 8, 64])
def test_no_block_gets_its_own_state_when_they_are_shuffled(blocks: int) -> None:
    order = _derangement(blocks, 0)
    assert sorted(order) == [*range(blocks)]
    assert all(order[i] != i for i in range(blocks))


def test_what_is_refused(tiny_mamba: ModelAdapter) -> None:
    assert "one token" in refusal(lambda: read_state(tiny_mamba, SOURCE, [5]), DataError)
    assert "no layer 9" in refusal(lambda: read_state(tiny_mamba, SOURCE, PROMPT, blocks=[9]), ConfigError)
    same = [Source(text=SOURCE, about=1)] * 2
    assert "about the same" in refusal(lambda: reading_experiment(tiny_mamba, same, PROMPT), DataError)
    unequal = [Source(text=SOURCE, about=1), Source(text=SOURCE[:-1], about=2)]
    assert "4, 5 tokens" in refusal(lambda: reading_experiment(tiny_mamba, unequal, PROMPT), DataError)
