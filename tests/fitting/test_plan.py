"""The plan: what settings come to for a model, a text and processes, and what is refused before anything runs."""

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, FitError
from lens_rnn.fitting import FitConfig, Plan, make_plan, plan
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.plan import product_dtype
from lens_rnn.fitting.plan_lines import describe_plan
from lens_rnn.fitting.sums import StepSums
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from tests.data.blocks import make_blocks

import numpy as np
import pytest
import torch

CPU = torch.device("cpu")


def lines(adapter: ModelAdapter, blocks: TokenBlocks, **settings) -> list[str]:
    return describe_plan(make_plan(adapter, blocks, FitConfig(**settings)), adapter, blocks)


# --- which blocks a step sees -----------------------------------------------------------------------------------------


def test_what_is_kept_apart_is_in_no_step_and_no_start(tiny_mamba: ModelAdapter) -> None:
    """One block in 16, at least 512 tokens where those are a quarter at most, and at most 64 blocks."""

    def planned(blocks: int, seq_len: int = 256, **settings) -> Plan:
        tokens = TokenBlocks.of_tokens(np.zeros((blocks, seq_len), dtype=np.uint16))
        return make_plan(tiny_mamba, tokens, FitConfig(batch_size=4, passes=1, **settings))

    for blocks, apart in ((8, 2), (32, 2), (160, 10), (4000, 64)):
        plan = planned(blocks)
        assert plan.sampling.apart == apart
        assert plan.steps == (blocks - apart) // 4
        assert plan.start_rows <= blocks - apart
        assert 0 < plan.choice_positions <= 256
    assert planned(40, choice_tokens=1000).sampling.apart == 4
    assert planned(40, choice_tokens=0).sampling.apart == 0
    assert planned(40, choice_tokens=0).choice_positions == 0


@pytest.mark.parametrize("vocab", [96, 50_000])
def test_positions_follow_from_costs(tiny_mamba: ModelAdapter, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dear objective, a small share; little text, more of it."""
    monkeypatch.setattr(type(tiny_mamba), "vocab_size", vocab)

    def planned(tokens: int, **settings) -> Plan:
        blocks = TokenBlocks.of_tokens(np.zeros((tokens // 256, 256), dtype=np.uint16))
        return make_plan(tiny_mamba, blocks, FitConfig(**settings))

    much, little = planned(1_048_576), planned(16_384)
    assert much.share == much.costs.best_share == {96: 1.0, 50_000: 1 / 16}[vocab]
    assert little.share == min(1.0, 32 * much.share) == 1.0
    given = planned(1_048_576, positions=0.3)
    assert given.sampling.positions == 77
    assert given.evaluations == given.steps * 16 * 77


@pytest.mark.parametrize(
    ("tokens", "passes"), [(4_096, 4), (131_072, 4), (196_608, 2), (262_144, 2), (524_288, 1), (2_097_152, 1)]
)
def test_few_tokens_are_seen_several_times(tiny_mamba: ModelAdapter, tokens: int, passes: int) -> None:
    blocks = TokenBlocks.of_tokens(np.zeros((tokens // 256, 256), dtype=np.uint16))
    assert make_plan(tiny_mamba, blocks, FitConfig()).passes == passes
    assert make_plan(tiny_mamba, blocks, FitConfig(passes=3)).passes == 3


# --- what is resolved -------------------------------------------------------------------------------------------------


def test_what_was_left_to_defaults_is_resolved(tiny_mamba: ModelAdapter) -> None:
    resolved = make_plan(tiny_mamba, make_blocks(70), FitConfig(products="float32")).resolved()
    assert resolved == {
        "learning_rate": 1.0,
        "start_tokens": 53 * 16,
        "choice_tokens": 17 * 16,
        "products": "float32",
        "chunk_tokens": 1024,
        "dtype": "float32",
        "tokens": 48 * 16,
        "positions": 1.0,
        "batch_size": 16,
        "passes": 4,
        "steps": 12,
        "evaluations": 12 * 16 * 16,
        "checkpoint_every": 50,
    }
    fixed = FitConfig(optimizer="adamw", learning_rate=0.5, start="zero", chunk_tokens=7, products="bfloat16")
    resolved = make_plan(tiny_mamba, make_blocks(70), fixed).resolved()
    expected = {"learning_rate": 0.5, "start_tokens": 0, "products": "bfloat16", "chunk_tokens": 7}
    assert {name: resolved[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("optimizer", "start", "rows"), [("kfac", "zero", 3), ("adamw", "ridge", 3), ("sgd", "zero", 0)]
)
def test_moments_are_taken_where_something_uses_them(
    tiny_mamba: ModelAdapter, optimizer: str, start: str, rows: int
) -> None:
    settings = FitConfig(optimizer=optimizer, start=start, start_tokens=50)
    assert make_plan(tiny_mamba, make_blocks(), settings).start_rows == rows


def test_products_are_what_the_processor_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"amx_bf16": fast})
        for head in (torch.float32, torch.float16):
            assert product_dtype(FitConfig(), head, CPU) == (torch.bfloat16 if fast else torch.float32)
        assert product_dtype(FitConfig(), torch.bfloat16, CPU) == torch.bfloat16
        assert product_dtype(FitConfig(products="float32"), torch.bfloat16, CPU) == torch.float32


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tiny_mamba: ModelAdapter) -> None:
    class Two(Processes):
        world = 2

    with pytest.raises(ConfigError, match="batch_size 7"):
        make_plan(tiny_mamba, make_blocks(), FitConfig(batch_size=7), Two())


def test_a_batch_is_at_most_what_there_is(tiny_mamba: ModelAdapter) -> None:
    class Two(Processes):
        world = 2

    whole = {"batch_size": 4, "choice_tokens": 0}
    short = make_plan(tiny_mamba, make_blocks(3), FitConfig(**whole))
    assert (short.sampling.batch_size, short.sampling.steps_a_pass, short.resolved()["batch_size"]) == (3, 1, 3)
    notes = [line for line in lines(tiny_mamba, make_blocks(3), **whole) if line.startswith("note")]
    assert notes == ["note       a batch is 3 blocks, all there are, in place of 4"]
    assert not [line for line in lines(tiny_mamba, make_blocks(4), **whole) if line.startswith("note")]
    assert make_plan(tiny_mamba, make_blocks(3), FitConfig(**whole), Two()).sampling.batch_size == 2
    with pytest.raises(FitError, match="too few for 2 processes"):
        make_plan(tiny_mamba, make_blocks(1), FitConfig(batch_size=4), Two())


def test_a_model_with_nothing_to_fit_is_refused(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny_mamba), "fitted_layers", ())
    with pytest.raises(FitError, match="nothing to fit"):
        make_plan(tiny_mamba, make_blocks(), FitConfig())


# --- for people -------------------------------------------------------------------------------------------------------


def test_it_says_what_memory_goes_to(tiny_mamba: ModelAdapter) -> None:
    (memory,) = (line for line in lines(tiny_mamba, make_blocks()) if line.startswith("memory"))
    parts = ("model", "unembedding", "translators", "gradients", "states of kfac", "forward pass", "logits", "moments")
    assert [part for part in parts if part not in memory] == []
    layers, d = len(tiny_mamba.fitted_layers), tiny_mamba.d_model
    for fisher in (True, False):
        held = StepSums(layers, d, CPU, fisher).flat.nbytes
        assert StepSums.bytes_needed(layers, d, fisher, world=1) == pytest.approx(held, rel=0.01)
    kfac = KFAC(torch.zeros(layers, d, d), torch.zeros(layers, d), 1.0)
    values = [value for layer in kfac.state_dict()["layers"] for value in layer.values()]
    states = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    assert KFAC.bytes_needed(layers, d, world=1) == pytest.approx(states + 3 * d * d * 4, rel=0.05)


def test_it_warns_of_too_little_memory_and_knows_what_needs_less(
    tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(**settings) -> list[str]:
        return [line for line in lines(tiny_mamba, make_blocks(), **settings) if line.startswith("warning")]

    assert warnings() == []
    monkeypatch.setattr(plan, "of_device", lambda device: 1024)
    (line,) = warnings()
    assert "1 KiB" in line
    assert "--optimizer adamw needs" in line
    (line,) = warnings(optimizer="adamw")
    assert "--optimizer" not in line
    monkeypatch.setattr(plan, "of_device", lambda device: 0)
    assert warnings() == [], "where it is not known, nothing is said"


def test_processes_of_a_machine_share_its_memory(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "of_device", lambda device: 1024)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert make_plan(tiny_mamba, make_blocks(), FitConfig()).memory_there == 256


def test_it_says_how_often_tokens_are_seen(tiny_mamba: ModelAdapter) -> None:
    once, often = (lines(tiny_mamba, make_blocks(70), passes=passes, choice_tokens=0) for passes in (1, 3))
    assert "1,024 tokens in blocks of 16 (96 are left over), 1 pass" in once[1]
    assert "4 steps of 16 × 16 tokens, kl, kfac, ridge start" in once[2]
    assert often[1].endswith("3 passes")
    assert "12 steps" in often[2]
