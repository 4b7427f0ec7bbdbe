"""How far each layer goes: no layer ends worse than it began, whatever the steps did, and what was chosen is said."""

from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.fitting.choice import END, START, ZERO, Translators, choose
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.plan import make_plan
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from tests.data.blocks import make_blocks
from tests.reference import objective as naive

import numpy as np
import pytest
import torch

SETTINGS = {"batch_size": 4, "micro_batch_size": 4, "products": "float32"}


def held_out_kl(adapter: ModelAdapter, **lenses: TunedLens) -> dict[str, np.ndarray]:
    held_out = make_blocks(120, seed=1)
    figures = evaluate(adapter, {"zero": LogitLens.from_adapter(adapter), **lenses}, held_out).lenses
    return {name: np.array([of[i].kl for i in adapter.fitted_layers]) for name, of in figures.items()}


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [("kfac", 1.0), ("kfac", 100.0), ("sgd", 30.0), ("adam", 1.0), ("adamw", 1.0), ("muon", 3.0)],
)
@pytest.mark.parametrize("blocks", [10, 40])
def test_no_layer_ends_worse_than_it_began(
    tiny_model: ModelAdapter, optimizer: str, learning_rate: float, blocks: int
) -> None:
    """Few tokens, tiny steps, rates that are far too high: beyond what the held-out text can tell."""
    settings = FitConfig(optimizer=optimizer, learning_rate=learning_rate, passes=3, **SETTINGS)
    result = fit(tiny_model, make_blocks(blocks), settings)
    kl = held_out_kl(tiny_model, start=result.start_lens, end=result.lens)
    for before in ("zero", "start"):
        assert (kl["end"] <= 1.05 * kl[before]).all(), before
    assert result.choices.keys() == set(tiny_model.fitted_layers)


def test_steps_that_ruin_a_layer_are_not_taken(tiny_mamba: ModelAdapter) -> None:
    """Layer 0 is ruined by its steps, layer 1 by its start too: the first goes back to the start, the second to zero,
    and the losses are those of the naive twin on what was kept apart."""
    blocks = make_blocks(200)
    plan = make_plan(tiny_mamba, blocks, FitConfig(choice_tokens=96, **SETTINGS))
    good = fit(tiny_mamba, blocks, plan).lens
    lens = TunedLens.from_adapter(tiny_mamba).requires_grad_(False)
    objective = FusedObjective(lens.unembed, "kl", torch.float32)
    fitted = Translators(
        *(torch.stack([getattr(good[i], name).detach() for i in (0, 1)]) for name in ("weight", "bias"))
    )
    ruined = Translators(torch.randn_like(fitted.weights), torch.randn_like(fitted.biases))
    start = Translators(
        torch.stack([fitted.weights[0], ruined.weights[1]]), torch.stack([fitted.biases[0], ruined.biases[1]])
    )
    translators = ruined.copy()
    choices = choose(tiny_mamba, blocks, objective, plan, Processes(), translators, start, ruined)
    assert (choices[0].towards, choices[1].towards) == (START, ZERO)
    assert choices[0].fraction > 0.5
    torch.testing.assert_close(translators.weights[0], choices[0].fraction * fitted.weights[0])
    assert not translators.weights[1].any()
    ids = blocks.batch(plan.sampling.kept_apart)
    forward = tiny_mamba.forward(ids)
    hidden, final = forward.hidden_states[0].flatten(0, 1), forward.final.flatten(0, 1)
    positions = plan.sampling.of_choice(np.arange(len(ids)), plan.choice_positions)
    kept = slice(None) if positions is None else positions
    for name, point in ((ZERO, None), (START, fitted), (END, ruined)):
        z = hidden if point is None else hidden + hidden @ point.weights[0].T + point.biases[0]
        expected = float(naive.kl(z[kept], final[kept], lens.unembed).mean())
        assert choices[0].losses[name] == pytest.approx(expected, rel=1e-4)


def test_too_little_text_to_tell_them_apart_leaves_what_was_there(tiny_mamba: ModelAdapter) -> None:
    """One position: an end that may be better is not taken, and of zero and a start that is ruined, zero is."""
    blocks = make_blocks(200)
    plan = make_plan(tiny_mamba, blocks, FitConfig(choice_tokens=1, **SETTINGS))
    good = fit(tiny_mamba, blocks, plan).lens
    fitted = Translators(*(torch.stack([getattr(good[i], n).detach() for i in (0, 1)]) for n in ("weight", "bias")))
    ruined = Translators(torch.randn_like(fitted.weights), 100 * torch.randn_like(fitted.biases))
    objective = FusedObjective(good.unembed, "kl", torch.float32)
    translators = fitted.copy()
    choices = choose(tiny_mamba, blocks, objective, plan, Processes(), translators, ruined, fitted)
    assert {choice.towards for choice in choices.values()} == {ZERO}
    assert not translators.weights.any()


def test_half_of_a_way_can_be_the_best(tiny_mamba: ModelAdapter) -> None:
    """An end twice as far from the start as it should be."""
    blocks = make_blocks(200)
    plan = make_plan(tiny_mamba, blocks, FitConfig(choice_tokens=160, **SETTINGS))
    good = fit(tiny_mamba, blocks, plan)
    objective = FusedObjective(good.lens.unembed, "kl", torch.float32)

    def stacked(lens: TunedLens) -> Translators:
        return Translators(*(torch.stack([getattr(lens[i], n).detach() for i in (0, 1)]) for n in ("weight", "bias")))

    start = Translators(torch.zeros_like(stacked(good.lens).weights), torch.zeros_like(stacked(good.lens).biases))
    far = Translators(*(2 * tensor for tensor in stacked(good.lens)))
    choices = choose(tiny_mamba, blocks, objective, plan, Processes(), far.copy(), start, far)
    assert {choice.fraction for choice in choices.values()} == {0.5}


def test_nothing_is_kept_apart_where_it_is_not_wanted(tiny_mamba: ModelAdapter) -> None:
    result = fit(tiny_mamba, make_blocks(20), FitConfig(choice_tokens=0, **SETTINGS))
    assert result.choices == {}
    assert len(result.history) == 4 * 5
