"""A model without weights: what can be planned with its configuration alone, and what is refused."""

from pathlib import Path

from lens_rnn.errors import ModelError
from lens_rnn.fitting import FitConfig, make_plan
from lens_rnn.fitting.plan_lines import describe_plan
from lens_rnn.models import has_weights_here, load_model, outline_model
from tests.conftest import make_model, save_model
from tests.data.blocks import make_blocks

import pytest
import torch


def without_weights(folder: Path) -> Path:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return folder


@pytest.mark.parametrize("family", ["mamba", "rwkv4", "mamba2", "falcon_mamba"])
def test_the_plan_is_the_one_with_weights(family: str, tmp_path: Path) -> None:
    """But for what a pass takes of memory, which is measured."""
    folder, blocks = save_model(make_model(family), tmp_path), make_blocks(60)
    assert has_weights_here(str(folder))
    whole = make_plan(load_model(folder, device="cpu"), blocks, FitConfig())
    outline = outline_model(str(without_weights(folder)), torch.float32)
    assert not has_weights_here(str(folder))
    plan = make_plan(outline, blocks, FitConfig(), device=torch.device("cpu"))
    assert plan.resolved() == whole.resolved()
    assert plan.memory.lasting == whole.memory.lasting
    assert plan.memory.needed <= whole.memory.needed
    assert plan.costs.position == whole.costs.position
    assert plan.costs.forward == pytest.approx(whole.costs.forward, rel=0.1)
    assert any("as the weights are not here" in line for line in describe_plan(plan, outline, blocks))


def test_what_is_found_by_running_a_model_needs_its_weights(tmp_path: Path) -> None:
    folder = without_weights(save_model(make_model("llama"), tmp_path))
    with pytest.raises(ModelError, match="cannot be planned without its weights"):
        outline_model(str(folder))


def test_where_weights_lie(tmp_path: Path) -> None:
    assert has_weights_here(str(tmp_path)), "no config.json: only loading tells"
    assert has_weights_here("some/model/file.pth")
    assert has_weights_here("./nowhere")
    assert not has_weights_here("nobody/has-this-model")


def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(ModelError, match="from its configuration"):
        outline_model(str(tmp_path))
