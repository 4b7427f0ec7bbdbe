"""The loop: that it lowers the loss, is reproducible, resumes to the bit, and refuses what cannot be fitted."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import FitError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fit_report import LayerStart
from lens_rnn.fitting import Checkpoints, FitConfig, FitResult, StepReport, fit
from lens_rnn.fitting.choice import Translators
from lens_rnn.fitting.fit import LATENESS, LateMean, _accumulate
from lens_rnn.fitting.kfac import FIRST_LENGTH
from lens_rnn.fitting.objective import Derivatives, FusedObjective
from lens_rnn.fitting.optimizers import OPTIMIZERS
from lens_rnn.fitting.plan import make_plan
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, load_model
from lens_rnn.processes import Processes
from tests.conftest import FAMILIES, make_model, save_model
from tests.data.blocks import make_blocks
from tests.reference import objective as naive

import numpy as np
import pytest
import torch


def config(**changes) -> FitConfig:
    """Products in float32: what is exact elsewhere is then exact to rounding, on every machine. Nothing is chosen, so
    that each layer is what the steps made of it."""
    fixed = {"batch_size": 4, "micro_batch_size": 2, "passes": 1, "checkpoint_every": 5, "products": "float32"}
    fixed |= {"choice_tokens": 0, "positions": 1.0}
    return FitConfig(**fixed | changes)


def state(lens: TunedLens) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lens.layer_translators.state_dict().items()}


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS])
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
        "start": fit(
            tiny_model, make_blocks(800), config(loss=loss, batch_size=16, micro_batch_size=16, learning_rate=1e-12)
        ).lens,
        "fitted": (
            result := fit(tiny_model, make_blocks(800), config(loss=loss, batch_size=16, micro_batch_size=16))
        ).lens,
    }
    evaluation = evaluate(tiny_model, lenses, held_out)
    figures = {
        name: [getattr(layers[i], loss) for i in tiny_model.fitted_layers] for name, layers in evaluation.lenses.items()
    }
    assert np.mean(figures["fitted"]) < np.mean(figures["start"])
    if loss == "kl":  # the closed form aims at the model, which need not know the text
        assert np.mean(figures["start"]) < np.mean(figures["logit"])
    assert np.mean(figures["fitted"]) < np.mean(figures["logit"])
    assert np.array(result.history).shape == (50, len(tiny_model.fitted_layers))
    assert tuple(result.start) == tiny_model.fitted_layers
    assert all(0 < start.explained <= 1 for start in result.start.values())


def test_one_step_of_plain_gradient_descent_is_the_mean_gradient(tiny_neox: ModelAdapter) -> None:
    """SGD's first step with Nesterov moves by lr × 1.9 × the clipped gradient, here computed by autograd."""
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


@dataclass(frozen=True)
class OneOfSeveral(Processes):
    """One of several processes that never meet: its sums are its own."""

    rank: int = 0
    world: int = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_the_mean_of_steps_weighs_the_late_ones_most() -> None:
    """Step t of n by (t + 1) (t + 2) … over their sum, which is about t³; and its state is all there is to it."""
    like = Translators(torch.zeros(1, 2, 2), torch.zeros(1, 2))
    mean, again = LateMean(like), LateMean(like)
    weights = np.cumprod([1.0, *((n + LATENESS) / n for n in range(1, 10))])
    values = np.random.default_rng(0).normal(size=10)
    for step, value in enumerate(values):
        mean.add(Translators(torch.full((1, 2, 2), value), torch.full((1, 2), -value)))
        if step == 4:
            again.load_state_dict(copy.deepcopy(mean.state_dict()))
            mean = again
    expected = weights @ values / weights.sum()
    np.testing.assert_allclose(mean.translators.weights, expected, rtol=1e-5)
    np.testing.assert_allclose(mean.translators.biases, -expected, rtol=1e-5)
    np.testing.assert_allclose(weights[-1] / weights[4], (10 / 5) ** LATENESS, rtol=0.3)


def sums_of_a_step(
    adapter: ModelAdapter, settings: FitConfig, step: int, processes: Processes | None = None
) -> StepSums:
    """The means over one process's tokens of a step, from the logit lens."""
    lens = TunedLens.from_adapter(adapter).requires_grad_(False)
    sums = StepSums(len(adapter.fitted_layers), adapter.d_model, adapter.device, fisher=True)
    objective = FusedObjective(lens.unembed, settings.loss, torch.float32, settings.chunk_tokens)
    plan = make_plan(adapter, make_blocks(12), settings, processes)
    _accumulate(sums, lens, adapter, make_blocks(12), objective, plan, step, processes or Processes())
    return sums


@pytest.mark.parametrize("positions", [1.0, 0.3])
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_sums_of_a_step_are_those_of_the_naive_twins(tiny_model: ModelAdapter, loss: str, positions: float) -> None:
    """Mean loss, gradients by autograd, and E[s sᵀ] for labels drawn by the inverse CDF of the model's own prediction
    from the step's draws, at the step's positions."""
    settings = config(loss=loss, chunk_tokens=7, positions=positions)
    sums = sums_of_a_step(tiny_model, settings, 1)
    sampling = make_plan(tiny_model, make_blocks(12), settings).sampling
    ids = make_blocks(12).batch(sampling.rows(1))
    forward = tiny_model.forward(ids)
    lens = TunedLens.from_adapter(tiny_model).requires_grad_(False)
    keep = slice(None) if loss == "kl" else slice(None, -1)
    positions = sampling.of_step(1, np.arange(4))
    kept = slice(None) if positions is None else positions
    final = forward.final[:, keep].flatten(0, 1)[kept]
    labels = ids[:, 1:].flatten()[kept] if loss == "ce" else None
    draws = sampling.draws(1, np.arange(4))
    drawn = (naive.model_logits(final, lens.unembed).double().softmax(-1).cumsum(-1) <= draws[:, None]).sum(-1)
    for k, layer in enumerate(tiny_model.fitted_layers):
        translator = lens[layer].requires_grad_(True)
        z = lens.transform_hidden(forward.hidden_states[layer][:, keep].flatten(0, 1)[kept], layer)
        values = naive.kl(z, final, lens.unembed) if loss == "kl" else naive.ce(z, labels, lens.unembed)
        *gradients, at_z = torch.autograd.grad(values.mean(), [translator.weight, translator.bias, z])
        both = naive.score(z, final, drawn, lens.unembed) + at_z * len(z)
        fisher = both.T @ both / len(z)
        got = (sums.losses[k], sums.weights[k], sums.biases[k], sums.fisher[k])
        for mean, expected in zip(got, (values.mean(), *gradients, fisher), strict=True):
            torch.testing.assert_close(mean, expected.detach(), rtol=1e-4, atol=1e-5)
        assert fisher.norm() > 0.01


@pytest.mark.parametrize("positions", [1.0, 0.3])
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_what_a_step_adds_up_does_not_depend_on_who_adds(tiny_neox: ModelAdapter, loss: str, positions: float) -> None:
    """One process, two or three, micro-batches and chunks of any size: the same positions, the same draws, the same
    means."""
    settings = config(batch_size=6, micro_batch_size=6, loss=loss, positions=positions)
    whole = sums_of_a_step(tiny_neox, settings, 1).flat
    assert whole.norm() > 0.1
    for world, micro_batch_size, chunk_tokens in ((1, 1, 5), (1, 4, 1000), (2, 2, 1000), (3, 6, 9)):
        cut = replace(settings, micro_batch_size=micro_batch_size, chunk_tokens=chunk_tokens)
        parts = [sums_of_a_step(tiny_neox, cut, 1, OneOfSeveral(rank=rank, world=world)).flat for rank in range(world)]
        torch.testing.assert_close(torch.stack(parts).mean(0)[:-1], whole[:-1], rtol=1e-4, atol=1e-6)
        assert torch.stack(parts).sum(0)[-1] == whole[-1]


def test_a_rounding_of_the_translators_changes_no_drawn_label(tiny_rwkv4: ModelAdapter) -> None:
    """K-FAC's factor follows translators that differ by a rounding as smoothly as its gradients do. (Labels from what
    is being fitted would jump: of 64 × 95 draws and boundaries some are within a thousandth.)"""
    adapter, ids = tiny_rwkv4, make_blocks(4).batch(slice(0, 4))
    forward, scores = adapter.forward(ids), []
    for nudge in (0.0, 1e-3):
        lens = TunedLens.from_adapter(adapter).requires_grad_(False)
        lens[0].weight.fill_(nudge)
        objective = FusedObjective(lens.unembed, "kl", torch.float32)
        (chunk,) = objective.chunks(forward, ids, torch.linspace(0, 0.999, 64))
        z = lens.transform_hidden(chunk.hidden[0], 0)
        scores.append(objective.derivatives(z, chunk.target, chunk.score).sampled)
    before, after = scores
    assert 0 < (after - before).norm(dim=1).max() < 0.05 * before.norm(dim=1).min()


def test_micro_batch_size_does_not_change_the_result(tiny_rwkv4: ModelAdapter) -> None:
    by_one, by_four = (state(fit(tiny_rwkv4, make_blocks(20), config(micro_batch_size=m)).lens) for m in (1, 4))
    for name in by_one:
        torch.testing.assert_close(by_one[name], by_four[name], rtol=1e-3, atol=1e-5)


class StopHereError(Exception):
    pass


def stopped_and_resumed(
    adapter: ModelAdapter, blocks: TokenBlocks, settings: FitConfig, stop_after: int, folder: Path, **arguments: Any
) -> tuple[FitResult, list[StepReport]]:
    """What a fit that was killed after a step comes to when it is resumed, and the reports of the resumed part."""
    checkpoints, reports = Checkpoints(folder, {"model": "a"}, kept=2), []

    def stop(report: StepReport) -> None:
        if report.step == stop_after:
            raise StopHereError

    with pytest.raises(StopHereError):
        fit(adapter, blocks, settings, checkpoints=checkpoints, on_step=stop, **arguments)
    last = checkpoints.last()
    return fit(
        adapter, blocks, settings, checkpoints=checkpoints, resume_from=last, on_step=reports.append, **arguments
    ), reports


@pytest.mark.parametrize(("optimizer", "stop_after"), [("kfac", 3), ("kfac", 7), ("kfac", 12), ("adamw", 12)])
def test_a_resumed_run_ends_bit_identical(
    tiny_mamba: ModelAdapter, tmp_path: Path, optimizer: str, stop_after: int
) -> None:
    """16 steps in two passes; kfac's inverses are made at steps 1 to 5, 9 and 13, its checkpoints after 5, 10 and
    15."""
    blocks, settings = make_blocks(32), config(optimizer=optimizer, passes=2)
    rates: list[float] = []
    whole = fit(tiny_mamba, blocks, settings, on_step=lambda report: rates.append(report.learning_rate))
    resumed, reports = stopped_and_resumed(tiny_mamba, blocks, settings, stop_after, tmp_path)
    assert_identical(state(whole.lens), state(resumed.lens))
    done = stop_after // 5 * 5
    assert [report.step for report in reports] == list(range(done + 1, 17))
    assert [report.learning_rate for report in reports] == rates[done:]
    assert resumed.history == whole.history
    assert resumed.start == whole.start
    assert len(whole.history) == 16


def test_the_start_is_kept_through_a_resume(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def on_start(lens: TunedLens) -> None:
        seen.append(state(lens))

    resumed, _ = stopped_and_resumed(tiny_mamba, make_blocks(32), config(), 7, tmp_path, on_start=on_start)
    assert len(seen) == 1, "a resumed run has no start"
    assert all(start.ridge and start.explained for start in resumed.start.values())
    assert_identical(state(resumed.start_lens), seen[0])
    nothing_yet = fit(tiny_mamba, make_blocks(32), config(learning_rate=1e-30)).lens
    for name, tensor in state(nothing_yet).items():
        torch.testing.assert_close(seen[0][name], tensor, rtol=1e-6, atol=1e-8)
    from_zero = fit(tiny_mamba, make_blocks(4), config(start="zero"), on_start=on_start)
    assert from_zero.start == {}
    assert not any(tensor.any() for tensor in seen[1].values())


@pytest.mark.parametrize("stop_after", [6, 13, 16])
def test_what_is_chosen_after_a_resume_is_the_same(tiny_mamba: ModelAdapter, tmp_path: Path, stop_after: int) -> None:
    """The start and the mean of the late steps are among the choices: killed before that mean began, in the middle of
    it, and after the last step."""
    blocks, settings = make_blocks(36), config(passes=2, choice_tokens=64, positions=0.5)
    whole = fit(tiny_mamba, blocks, settings)
    resumed, _ = stopped_and_resumed(tiny_mamba, blocks, settings, stop_after, tmp_path)
    assert len(whole.history) == 16
    assert whole.choices.keys() == set(tiny_mamba.fitted_layers)
    assert resumed.choices == whole.choices
    assert_identical(state(whole.lens), state(resumed.lens))


def poison(monkeypatch: pytest.MonkeyPatch, *bad_calls: int) -> None:
    """Make the objective's losses NaN at some of its calls, counted from 1."""
    plain, calls = FusedObjective.derivatives, 0

    def poisoned(self: FusedObjective, *arguments: object) -> Derivatives:
        nonlocal calls
        calls += 1
        derivatives = plain(self, *arguments)
        return derivatives._replace(loss=derivatives.loss * float("nan")) if calls in bad_calls else derivatives

    monkeypatch.setattr(FusedObjective, "derivatives", poisoned)


def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(
    tiny_mamba: ModelAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 6 * 4 + 2)  # step 7: two layers, two micro-batches a step
    with pytest.raises(FitError, match="layer 1 is nan at step 7"):
        fit(tiny_mamba, make_blocks(), config(optimizer="adamw"), checkpoints=Checkpoints(tmp_path, {}, kept=2))
    saved = Checkpoints(tmp_path, {}, kept=2).last()
    assert saved is not None
    assert saved["step"] == 5


def test_a_nan_loss_takes_a_step_of_kfac_back_and_a_second_one_stops(
    tiny_mamba: ModelAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 1 at step 7: it stays where it was before step 6, until step 8. Another NaN then cannot be its step's
    doing."""
    with monkeypatch.context() as patch:
        poison(patch, 6 * 4 + 2)
        translators: list[dict[str, torch.Tensor]] = []
        plain = fit_with_states(tiny_mamba, translators, config())
    assert [np.isnan(row).tolist() for row in plain.history].index([False, True]) == 6
    assert np.isnan(plain.history).sum() == 1
    for name in ("1.weight", "1.bias"):
        torch.testing.assert_close(translators[6][name], translators[4][name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(translators[5][name], translators[4][name])
        assert not torch.equal(translators[7][name], translators[6][name])
    assert all(tensor.isfinite().all() for tensor in state(plain.lens).values())

    poison(monkeypatch, 6 * 4 + 2, 7 * 4 + 2)
    with pytest.raises(FitError, match="layer 1 is nan at step 8"):
        fit(tiny_mamba, make_blocks(), config(), checkpoints=Checkpoints(tmp_path, {}, kept=2))
    saved = Checkpoints(tmp_path, {}, kept=2).last()
    assert saved is not None
    assert saved["step"] == 5


def fit_with_states(
    adapter: ModelAdapter, translators: list[dict[str, torch.Tensor]], settings: FitConfig
) -> FitResult:
    """A fit of 15 steps whose translators after each are appended to a list."""
    lenses: list[TunedLens] = []

    def on_step(report: StepReport) -> None:
        translators.append(state(lenses[0]))

    return fit(adapter, make_blocks(), settings, on_start=lenses.append, on_step=on_step)


def test_a_model_that_is_not_finite_is_refused_at_the_first_step(
    tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step can be blamed for that."""
    poison(monkeypatch, 1)
    with pytest.raises(FitError, match="layer 0"):
        fit(tiny_mamba, make_blocks(), config())


@pytest.mark.parametrize("optimizer", ["kfac", "adamw", "sgd"])
def test_each_step_is_reported_with_what_it_found_and_did(tiny_mamba: ModelAdapter, optimizer: str) -> None:
    reports: list[StepReport] = []
    result = fit(tiny_mamba, make_blocks(40), config(optimizer=optimizer), on_step=reports.append)
    assert [(report.step, report.steps, report.tokens) for report in reports] == [(n, 10, 64 * n) for n in range(1, 11)]
    assert [[report.losses[i] for i in tiny_mamba.fitted_layers] for report in reports] == result.history
    rates = [report.learning_rate for report in reports]
    if optimizer == "kfac":
        assert rates[0] == pytest.approx(FIRST_LENGTH)
        assert all(0 < rate <= 1 for rate in rates)
    elif optimizer == "sgd":
        assert rates == pytest.approx([0.1 * (10 - n) / 10 for n in range(10)])
    else:
        assert rates == pytest.approx([1e-3 * (10 - n) / 10 for n in range(10)])


def test_translators_that_overflow_are_never_saved(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    """The loss is looked at before a step and the translators after it, so a checkpoint is always good."""
    plan = make_plan(tiny_mamba, make_blocks(4), config(optimizer="adamw", checkpoint_every=1))
    plan = replace(plan, learning_rate=float("inf"))
    with pytest.raises(FitError, match="translator"):
        fit(tiny_mamba, make_blocks(4), plan, checkpoints=Checkpoints(tmp_path, {}, kept=2))
    saved = Checkpoints(tmp_path, {}, kept=2).last()
    assert saved is not None
    assert saved["step"] == 0


def test_one_block_is_enough_for_a_start(tiny_mamba: ModelAdapter) -> None:
    """Nothing can be held out then, and the ridge is a fixed one."""
    result = fit(tiny_mamba, make_blocks(1), config(batch_size=1))
    assert result.start[0] == LayerStart(ridge=0.1)
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


@pytest.fixture(
    scope="module",
    params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")],
    ids=" in ".join,
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    """The tiny model of each family, loaded in each format."""
    family, dtype = request.param
    return load_model(save_model(make_model(family), tmp_path_factory.mktemp(family)), dtype=dtype, device="cpu")


@pytest.mark.parametrize("learning_rate", [1.0, 20.0])
@pytest.mark.parametrize("start", ["ridge", "zero", "std 1", "std 30"])
def test_kfac_diverges_from_no_start(loaded: ModelAdapter, start: str, learning_rate: float) -> None:
    """Held-out KL of every layer at the end beside the start. Steps 20 times as long as measured only add noise."""
    init_lens, held_out = None, make_blocks(32, seed=1)
    if start.startswith("std"):
        init_lens, generator = TunedLens.from_adapter(loaded), torch.Generator().manual_seed(0)
        for parameter in init_lens.layer_translators.parameters():
            torch.nn.init.normal_(parameter.data, std=float(start[4:]), generator=generator)

    def kl(lens: TunedLens) -> dict[int, float]:
        figures = evaluate(loaded, {"it": lens}, held_out, micro_batch_size=32).lenses["it"]
        return {i: figures[i].kl for i in loaded.fitted_layers}

    settings = config(
        batch_size=8,
        micro_batch_size=8,
        learning_rate=learning_rate,
        start="ridge" if start == "ridge" else "zero",
        products="auto",
    )
    result = fit(loaded, make_blocks(96), settings, init_lens=init_lens)
    before = kl(result.start_lens)
    after, margin = kl(result.lens), 1.02 if learning_rate == 1 else 1.2
    assert {i: after[i] for i in after if not after[i] <= margin * before[i]} == {}
    assert np.isfinite(result.history).all()
    assert (np.max(result.history, axis=0) < 1.6 * np.array(result.history[0])).all()


def test_a_given_start_needs_no_moments_unless_kfac_does(
    tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: dict[str, int] = {}
    forward = type(tiny_mamba).forward

    def counted(self, ids):
        passes[optimizer] = passes.get(optimizer, 0) + 1
        return forward(self, ids)

    monkeypatch.setattr(type(tiny_mamba), "forward", counted)
    for optimizer in ("adamw", "kfac"):
        fit(
            tiny_mamba,
            make_blocks(8),
            config(optimizer=optimizer, passes=1),
            init_lens=TunedLens.from_adapter(tiny_mamba),
        )
    assert passes["adamw"] == 4 + 2  # the plan counts the operations and measures the memory of one
    assert passes["kfac"] > 6
