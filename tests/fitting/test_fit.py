"""The loop: that it lowers the loss, is reproducible, resumes to the bit, and refuses what cannot be fitted."""

from pathlib import Path

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, FitError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import Checkpoints, FitConfig, StepReport, fit
from lens_rnn.fitting.fit import check_batches
from lens_rnn.fitting.objective import FusedObjective, Target
from lens_rnn.fitting.optimizers import LEARNING_RATES
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import pytest
import torch


def make_blocks(blocks: int = 60, seq_len: int = 16, vocab_size: int = 96, seed: int = 0) -> TokenBlocks:
    """Tokens of which four in five follow from the one before, so that there is something to predict."""
    random = np.random.default_rng(seed)
    tokens = random.integers(vocab_size, size=(blocks, seq_len))
    for t in range(1, seq_len):
        follows = random.random(blocks) < 0.8
        tokens[follows, t] = (5 * tokens[follows, t - 1] + 3) % vocab_size
    return TokenBlocks(tokens.astype(np.uint16), "made tokens", 3 * tokens.size, tokens.size, 1, "0" * 64)


def config(**changes) -> FitConfig:
    return FitConfig(**{"batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 5} | changes)


def state(lens: TunedLens) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lens.layer_translators.state_dict().items()}


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("optimizer", [*LEARNING_RATES])
def test_every_optimizer_lowers_held_out_kl(tiny_mamba: ModelAdapter, optimizer: str) -> None:
    start = TunedLens.from_adapter(tiny_mamba)
    result = fit(tiny_mamba, make_blocks(400), config(optimizer=optimizer, start="zero"))
    held_out = make_blocks(seed=1)
    evaluation = evaluate(tiny_mamba, {"logit": LogitLens.from_adapter(tiny_mamba), "tuned": result.lens}, held_out)
    for i in tiny_mamba.fitted_layers:
        assert evaluation.lenses["tuned"][i].kl < 0.97 * evaluation.lenses["logit"][i].kl
    assert torch.equal(start[2].weight, result.lens[2].weight), "the trivial translator is never touched"


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_steps_improve_on_the_closed_form_which_improves_on_nothing(tiny_model: ModelAdapter, loss: str) -> None:
    held_out = make_blocks(seed=1)
    lenses = {
        "logit": LogitLens.from_adapter(tiny_model),
        "start": fit(tiny_model, make_blocks(800), config(loss=loss, batch_size=16, micro_batch_size=16, learning_rate=1e-12)).lens,
        "fitted": (result := fit(tiny_model, make_blocks(800), config(loss=loss, batch_size=16, micro_batch_size=16))).lens,
    }
    evaluation = evaluate(tiny_model, lenses, held_out)
    figures = {name: [getattr(layers[i], loss) for i in tiny_model.fitted_layers] for name, layers in evaluation.lenses.items()}
    assert np.mean(figures["fitted"]) < np.mean(figures["start"])
    if loss == "kl":  # the closed form aims at the model, which need not know the text
        assert np.mean(figures["start"]) < np.mean(figures["logit"])
    assert np.mean(figures["fitted"]) < np.mean(figures["logit"])
    assert np.array(result.history).shape == (50, len(tiny_model.fitted_layers))
    assert set(result.start) == {str(i) for i in tiny_model.fitted_layers}
    assert all(0 < s["explained"] <= 1 for s in result.start.values())


def test_one_step_of_plain_gradient_descent_is_the_mean_gradient(tiny_neox: ModelAdapter) -> None:
    """SGD's first step with Nesterov moves by lr × 1.9 × the clipped gradient, here computed by autograd."""
    from tests.reference import objective as naive

    blocks = make_blocks(4)
    result = fit(tiny_neox, blocks, config(optimizer="sgd", start="zero", learning_rate=0.5, clip=1e9))
    lens = TunedLens.from_adapter(tiny_neox).requires_grad_(False)
    forward = tiny_neox.forward(blocks.batch(slice(None)))
    for i in tiny_neox.fitted_layers:
        lens[i].requires_grad_(True)
        z = lens.transform_hidden(forward.hidden_states[i].flatten(0, 1), i)
        naive.kl(z, forward.final.flatten(0, 1), lens.unembed).mean().backward()
        torch.testing.assert_close(result.lens[i].weight, -0.5 * 1.9 * lens[i].weight.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result.lens[i].bias, -0.5 * 1.9 * lens[i].bias.grad, rtol=1e-4, atol=1e-6)


def test_each_layer_is_clipped_by_its_own_norm(tiny_neox: ModelAdapter) -> None:
    result = fit(tiny_neox, make_blocks(4), config(optimizer="sgd", start="zero", learning_rate=1.0, clip=1e-3))
    for i in tiny_neox.fitted_layers:
        moved = torch.cat([result.lens[i].weight.flatten(), result.lens[i].bias])
        assert float(moved.norm()) == pytest.approx(1.9e-3, rel=1e-4)


def test_micro_batch_size_does_not_change_the_result(tiny_rwkv4: ModelAdapter) -> None:
    one, two = (state(fit(tiny_rwkv4, make_blocks(20), config(micro_batch_size=m)).lens) for m in (1, 4))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [3, 7, 12])
def test_a_resumed_run_ends_bit_identical(tiny_mamba: ModelAdapter, tmp_path: Path, stop_after: int) -> None:
    blocks = make_blocks()
    whole = state(fit(tiny_mamba, blocks, config()).lens)
    checkpoints = Checkpoints(tmp_path, {"model": "a"})

    def stop(report: StepReport) -> None:
        if report.step == stop_after:
            raise StopHereError

    with pytest.raises(StopHereError):
        fit(tiny_mamba, blocks, config(), checkpoints=checkpoints, on_step=stop)
    steps: list[int] = []
    result = fit(
        tiny_mamba, blocks, config(), checkpoints=checkpoints, resume_from=checkpoints.last(), on_step=lambda r: steps.append(r.step)
    )
    assert_identical(whole, state(result.lens))
    assert steps[0] == stop_after // 5 * 5 + 1
    assert len(result.history) == 15


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    whole = fit(tiny_mamba, make_blocks(), config(), checkpoints=checkpoints)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000010.pt", "step-00000015.pt"]
    (tmp_path / "step-00000015.pt").write_bytes(b"cut")
    (tmp_path / ".step-00000020.pt.x.partial").write_bytes(b"left by a killed process")
    resumed = fit(tiny_mamba, make_blocks(), config(), checkpoints=checkpoints, resume_from=checkpoints.last())
    assert_identical(state(whole.lens), state(resumed.lens))
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.iterdir():
        path.write_bytes(b"cut")
    with pytest.raises(FitError, match="none of the checkpoints"):
        fit(tiny_mamba, make_blocks(), config(), checkpoints=checkpoints, resume_from=checkpoints.last())


def test_a_checkpoint_of_another_run_is_refused_by_name(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    fit(tiny_mamba, make_blocks(8), config(), checkpoints=Checkpoints(tmp_path, {"world size": 1, "setting loss": "kl"}))
    with pytest.raises(FitError, match="world size was 1 and is now 2"):
        Checkpoints(tmp_path, {"world size": 2, "setting loss": "kl"}).last()


def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(tiny_mamba: ModelAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = FusedObjective.value_and_gradient, 0

    def poisoned(self: FusedObjective, z: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        losses, gradient = plain(self, z, target)
        return (losses * float("nan") if calls == 6 * 4 + 2 else losses), gradient  # step 7: two layers, two micro-batches a step

    monkeypatch.setattr(FusedObjective, "value_and_gradient", poisoned)
    with pytest.raises(FitError, match="layer 1 is nan at step 7"):
        fit(tiny_mamba, make_blocks(), config(), checkpoints=Checkpoints(tmp_path, {}))
    saved = Checkpoints(tmp_path, {}).last()
    assert saved is not None
    assert saved["step"] == 5


def test_translators_that_overflow_are_never_saved(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    """The loss is looked at before a step and the translators after it, so a checkpoint is always good."""
    with pytest.raises(FitError, match="translator of layer 0 is not finite after step 1"):
        fit(tiny_mamba, make_blocks(4), config(learning_rate=float("inf"), checkpoint_every=1), checkpoints=Checkpoints(tmp_path, {}))
    saved = Checkpoints(tmp_path, {}).last()
    assert saved is not None
    assert saved["step"] == 0


def test_one_block_is_enough_for_a_start(tiny_mamba: ModelAdapter) -> None:
    """Nothing can be held out then, and the ridge is a fixed one."""
    result = fit(tiny_mamba, make_blocks(1), config(batch_size=1))
    assert result.start["0"] == {"ridge": 0.1, "explained": None}
    assert np.isfinite(result.history).all()


def test_an_init_lens_is_copied_and_its_trivial_translator_left_out(tiny_mamba: ModelAdapter) -> None:
    lens = TunedLens.from_adapter(tiny_mamba)
    for translator in lens:
        torch.nn.init.constant_(translator.bias, 0.5)
    result = fit(tiny_mamba, make_blocks(4), config(), init_lens=lens)
    assert not result.lens[2].bias.any()
    assert (lens[0].bias == 0.5).all()


def test_an_init_lens_is_where_the_fit_starts(tiny_mamba: ModelAdapter) -> None:
    first = fit(tiny_mamba, make_blocks(200), config()).lens
    expected = evaluate(tiny_mamba, {"tuned": first}, make_blocks(4)).lenses["tuned"]
    result = fit(tiny_mamba, make_blocks(4), config(learning_rate=1e-9), init_lens=first)
    assert result.start == {}
    assert result.history[0] == pytest.approx([expected[i].kl for i in tiny_mamba.fitted_layers], rel=1e-4)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    class Two(Processes):
        world = 2

    with pytest.raises(ConfigError, match="batch_size 7 cannot be shared evenly by 2 processes"):
        check_batches(config(batch_size=7), make_blocks(), Two())


def test_too_little_data_is_refused(tiny_mamba: ModelAdapter) -> None:
    with pytest.raises(FitError, match="less than one batch of 4; lower --batch-size"):
        fit(tiny_mamba, make_blocks(3), config())


BAD_SETTINGS = {"batch_size": 0, "learning_rate": -1.0, "clip": 0.0, "seed": -1, "chunk_tokens": 0, "start_tokens": 0}
UNKNOWN_NAMES = {"optimizer": "lion", "loss": "mse", "products": "fp8", "start": "pca"}


@pytest.mark.parametrize(("name", "value"), [*BAD_SETTINGS.items(), *UNKNOWN_NAMES.items()])
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        config(**{name: value})
