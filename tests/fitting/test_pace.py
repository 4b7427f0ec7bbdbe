"""How long a fit will take: measured parts, times what the plan has of them."""

from lens_rnn.fitting import FitConfig, make_plan
from lens_rnn.fitting.pace import Pace, measure_pace
from lens_rnn.fitting.plan_lines import describe_plan
from lens_rnn.lens import Unembedding
from lens_rnn.models import ModelAdapter
from tests.data.blocks import make_blocks

import pytest


def test_parts_add_up(tiny_mamba: ModelAdapter) -> None:
    blocks = make_blocks(200)
    plan = make_plan(tiny_mamba, blocks, FitConfig(passes=1))
    assert Pace(1.0, 0.0, 0.0).seconds(plan) == (plan.start_rows + plan.sampling.apart) * 16 + plan.tokens
    assert Pace(0.0, 1.0, 0.0).seconds(plan) == plan.start_rows * 16
    choice = 3 * plan.sampling.apart * plan.choice_positions
    assert Pace(0.0, 0.0, 1.0).seconds(plan) == plan.evaluations + choice


def test_a_measured_pace_is_said_in_the_plan(tiny_model: ModelAdapter) -> None:
    blocks = make_blocks(40)
    plan = make_plan(tiny_model, blocks, FitConfig(passes=1))
    pace = measure_pace(tiny_model, blocks, plan, Unembedding(tiny_model))
    assert all(0 < seconds < 1 for seconds in pace)
    (line,) = (line for line in describe_plan(plan, tiny_model, blocks, pace) if line.startswith("work"))
    assert line.endswith(" seconds at the pace of a step here")
    (line,) = (line for line in describe_plan(plan, tiny_model, blocks) if line.startswith("work"))
    assert "pace" not in line


@pytest.mark.parametrize(("forward", "words"), [(1.0, "seconds"), (100.0, "minutes"), (1e5, "hours")])
def test_durations_in_their_units(tiny_mamba: ModelAdapter, forward: float, words: str) -> None:
    blocks = make_blocks(40)
    plan = make_plan(tiny_mamba, blocks, FitConfig(passes=1))
    lines = describe_plan(plan, tiny_mamba, blocks, Pace(forward / 100, 0.0, 0.0))
    assert any(f" {words} at the pace" in line for line in lines)
