"""Fine-tuning into a quirky model: what is trained, saved (models.py), resumed and refused."""

from dataclasses import replace
from pathlib import Path

from lens_rnn.elk.answers import log_odds
from lens_rnn.elk.finetune import Examples, FinetuneConfig, StepReport, _backward, batch_of, finetune
from lens_rnn.elk.models import load_quirky, save_adapters, save_model
from lens_rnn.elk.templates import encode
from lens_rnn.errors import ConfigError, DataError, FitError
from lens_rnn.models import ModelAdapter, load_model, wrap_model
from lens_rnn.models.adapter import FUSED
from lens_rnn.models.check import check
from lens_rnn.processes import Processes
from tests.conftest import make_model
from tests.conftest import save_model as save_folder
from tests.elk.rows import made_rows

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

CONFIG = FinetuneConfig(steps=6, learning_rate=0.02, batch_size=8, validation_rows=16, rank=4, warmup=0.0)


@pytest.fixture(scope="module")
def examples(byte_tokenizer: PreTrainedTokenizerBase) -> Examples:
    rows = made_rows(16)
    return Examples(rows, encode(rows, (), byte_tokenizer))


def fresh(family: str) -> ModelAdapter:
    return wrap_model(make_model(family, 257))


@pytest.fixture(scope="module", params=["mamba", "rwkv4"])
def base(
    request: pytest.FixtureRequest, byte_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a model."""
    return save_folder(make_model(request.param, 257), tmp_path_factory.mktemp("base") / request.param, byte_tokenizer)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_is_loaded_as_it_was_saved(method: str, base: Path, examples: Examples, tmp_path: Path) -> None:
    """With adapters too, and for RWKV-4, which changes its weights for evaluation."""
    adapter = load_model(base, device="cpu")
    before = log_odds(adapter, examples.encoded)
    reports: list[StepReport] = []
    config = replace(CONFIG, method=method, steps=12)
    model, outcome = finetune(adapter, examples, examples, config, tmp_path / "checkpoints", on_step=reports.append)
    assert [r.step for r in reports] == list(range(1, 13))
    assert (
        list(outcome.validation_losses)
        == [1, 2, 4, 8, 12]
        == [r.step for r in reports if r.validation_loss is not None]
    )
    assert outcome.validation_losses[outcome.best_step] == min(outcome.validation_losses.values())
    assert outcome.validation_losses[12] < 0.85 * reports[0].loss
    trained = log_odds(adapter, examples.encoded)
    assert np.abs(trained - before).max() > 0.5

    folder = tmp_path / "quirky"
    if method == "lora":
        save_adapters(model, folder, str(base))
        assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    else:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")  # of an earlier run
        save_model(adapter, folder)
    loaded = load_quirky(folder, device="cpu", tokenizer=str(base))
    assert loaded.adapter.name == str(folder)
    assert (loaded.base is None) == (method == "full")
    with torch.no_grad():
        check(loaded.adapter)
        assert loaded.adapter.off == {}
        answers = torch.tensor([prompt.answers for prompt in examples.encoded])
        final = [loaded.adapter.forward(torch.tensor([prompt.ids])).final[0, -1] for prompt in examples.encoded]
        false, true = loaded.adapter.logits(torch.stack(final)).gather(1, answers).unbind(1)
    assert (true - false).numpy() == pytest.approx(
        trained, abs=0.02 * float(np.abs(trained).max())
    )  # saved in half precision


def test_the_loss_is_of_the_answer_alone_and_only_adapters_move(examples: Examples, tmp_path: Path) -> None:
    adapter = fresh("mamba")
    stored = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
    batch = batch_of(examples, CONFIG, 0)
    expected = 0.0
    for i in batch:
        prompt = examples.encoded[i]
        logits = adapter.model(torch.tensor([prompt.ids])).logits[0, -1].double()
        expected -= float(logits.log_softmax(0)[prompt.answers[examples.rows[i].label]]) / len(batch)
    reports: list[StepReport] = []
    model, _ = finetune(adapter, examples, examples, replace(CONFIG, steps=1), tmp_path, on_step=reports.append)
    assert reports[0].loss == pytest.approx(expected, abs=1e-4)
    for name, p in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert p.requires_grad == ("lora_" in name)
        assert plain not in stored or torch.equal(p, stored[plain])


def test_batches_are_balanced_and_a_function_of_seed_and_step(examples: Examples) -> None:
    for step in range(5):
        batch = batch_of(examples, CONFIG, step)
        assert sum(examples.rows[i].label for i in batch) == 4
        assert len(set(batch)) == 8
        assert batch == batch_of(examples, CONFIG, step)
    assert (
        batch_of(examples, CONFIG, 0) != batch_of(examples, CONFIG, 1) != batch_of(examples, replace(CONFIG, seed=1), 1)
    )


class OneOfTwo(Processes):
    """One of two processes whose sum has yet to be taken."""

    def __init__(self, rank: int):
        object.__setattr__(self, "mine", rank)

    rank = property(lambda self: self.mine)
    world = property(lambda self: 2)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_the_shares_of_two_processes_add_up_to_one_processs_gradient(examples: Examples) -> None:
    gradients = []
    for processes in (Processes(), OneOfTwo(0), OneOfTwo(1)):
        adapter = fresh("mamba")
        adapter.model.requires_grad_(True)
        weights = dict(adapter.model.named_parameters())
        loss = _backward(adapter, examples, batch_of(examples, CONFIG, 0), weights, processes)
        gradients.append(
            torch.cat([torch.tensor([loss]), *(p.grad.flatten() for p in weights.values() if p.grad is not None)])
        )
    whole, first, second = gradients
    assert first.norm() > 0 < second.norm()
    assert torch.allclose(first + second, whole, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_does_the_same(examples: Examples, tmp_path: Path) -> None:
    whole: list[StepReport] = []
    finetune(fresh("mamba"), examples, examples, CONFIG, tmp_path / "whole", on_step=whole.append)
    (tmp_path / "whole" / "step-00000006.pt").unlink()
    rest: list[StepReport] = []
    finetune(fresh("mamba"), examples, examples, CONFIG, tmp_path / "whole", resume=True, on_step=rest.append)
    assert rest == whole[4:]
    with pytest.raises(FitError, match="rank was 4 and is now 3"):
        finetune(fresh("mamba"), examples, examples, replace(CONFIG, rank=3), tmp_path / "whole", resume=True)
    with pytest.raises(FitError, match="no checkpoint"):
        finetune(fresh("mamba"), examples, examples, CONFIG, tmp_path / "none", resume=True)


def test_dead_adapters_are_refused_after_one_step(examples: Examples, tmp_path: Path) -> None:
    """transformers' own Mamba reads dt_proj's weight past the module, so an adapter around it would never be
    trained."""
    adapter = fresh("mamba")
    adapter.switch_off(FUSED, "to run transformers' own code")
    with pytest.raises(FitError, match=r"dt_proj \(3 such\)"):
        finetune(adapter, examples, examples, replace(CONFIG, target_modules=("in_proj", "dt_proj")), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FitError, match="conv1d"):
        finetune(fresh("mamba"), examples, examples, replace(CONFIG, target_modules=("conv1d",)), tmp_path)


def test_bad_input(examples: Examples, tmp_path: Path) -> None:
    false = [i for i, row in enumerate(examples.rows) if not row.label]
    alike = Examples([examples.rows[i] for i in false], [examples.encoded[i] for i in false])
    with pytest.raises(DataError, match="validation rows are all False"):
        finetune(fresh("mamba"), examples, alike, CONFIG, tmp_path)
    with pytest.raises(FitError, match="step 2 is nan"):
        finetune(fresh("mamba"), examples, examples, replace(CONFIG, learning_rate=1e30), tmp_path)
    with pytest.raises(ConfigError, match="batch_size is 3"):
        FinetuneConfig(batch_size=3)
    with pytest.raises(ConfigError, match="steps is 0"):
        FinetuneConfig(steps=0)


def test_rates_and_checkpoints() -> None:
    config = FinetuneConfig(steps=20, learning_rate=1.0, warmup=0.15)
    assert [round(config.rate(step), 3) for step in (0, 1, 2, 3, 19)] == [0.333, 0.667, 1.0, 1.0, round(1 / 17, 3)]
    assert config.checkpoints == [1, 2, 4, 8, 16, 20]
    assert FinetuneConfig(steps=8).checkpoints == [1, 2, 4, 8]


def test_checkpoints_are_chosen_without_dropout(examples: Examples, tmp_path: Path) -> None:
    model = make_model("gpt2", 257)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    adapter = wrap_model(model)
    _, outcome = finetune(adapter, examples, examples, replace(CONFIG, steps=1, validation_rows=32), tmp_path)
    odds = log_odds(adapter, examples.encoded)
    assert all(module.training for module in adapter.model.modules())  # it is left as it was trained
    adapter.model.eval()
    np.testing.assert_array_equal(log_odds(adapter, examples.encoded), odds)
    losses = []
    for row, prompt in zip(examples.rows, examples.encoded, strict=True):
        logits = adapter.logits(adapter.forward(torch.tensor([prompt.ids])).final[0, -1])
        losses.append(-float(logits.log_softmax(0)[prompt.answers[row.label]].detach()))
    assert outcome.validation_losses == {1: pytest.approx(float(np.mean(losses)), abs=1e-4)}
