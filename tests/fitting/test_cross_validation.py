"""A text too short to judge steps on: the start alone, chosen by cross-validation."""

from pathlib import Path

from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import Checkpoints, FitConfig, fit
from lens_rnn.fitting.choice import START, ZERO
from lens_rnn.fitting.closed_form import RIDGES
from lens_rnn.fitting.plan import make_plan
from lens_rnn.fitting.plan_lines import describe_plan
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter
from tests.data.blocks import make_blocks

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_no_steps_and_no_layer_worse_than_the_logit_lens(tiny_model: ModelAdapter, blocks: int) -> None:
    text = make_blocks(blocks)
    result = fit(tiny_model, text, FitConfig(products="float32"))
    assert result.history == []
    figures = evaluate(
        tiny_model, {"logit": LogitLens.from_adapter(tiny_model), "tuned": result.lens}, make_blocks(200, seed=1)
    ).lenses
    for i in tiny_model.fitted_layers:
        assert figures["tuned"][i].kl <= 1.05 * figures["logit"][i].kl
        choice, start = result.choices[i], result.start[i]
        assert choice.losses.keys() == {ZERO, *(f"ridge {ridge:g}" for ridge in RIDGES)}
        chosen = ZERO if choice.towards == ZERO else f"ridge {start.ridge:g}"
        assert choice.losses[chosen] == min(loss for loss in choice.losses.values() if np.isfinite(loss))
        assert (choice.towards == ZERO) == (not result.lens[i].weight.any())
        assert torch.equal(result.lens[i].weight, result.start_lens[i].weight)


def test_enough_to_say_something_is_used(tiny_mamba: ModelAdapter) -> None:
    result = fit(tiny_mamba, make_blocks(7, seq_len=64), FitConfig(products="float32"))
    assert START in {choice.towards for choice in result.choices.values()}


def test_the_plan_says_so(tiny_mamba: ModelAdapter) -> None:
    few, enough = make_blocks(7), make_blocks(8)
    plan = make_plan(tiny_mamba, few, FitConfig())
    assert plan.start_alone
    assert any("too few to keep one apart" in line for line in describe_plan(plan, tiny_mamba, few))
    assert not make_plan(tiny_mamba, enough, FitConfig()).start_alone
    assert not make_plan(tiny_mamba, few, FitConfig(choice_tokens=0)).start_alone


def test_a_resume_makes_it_again(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    checkpoints, text = Checkpoints(tmp_path, {"model": "a"}), make_blocks(5)
    first = fit(tiny_mamba, text, FitConfig(products="float32"), checkpoints=checkpoints)
    again = fit(
        tiny_mamba, text, FitConfig(products="float32"), checkpoints=checkpoints, resume_from=checkpoints.last()
    )
    assert again.choices == first.choices
    assert again.start == first.start
    assert torch.equal(again.lens[0].weight, first.lens[0].weight)
