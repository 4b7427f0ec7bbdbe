"""What quality_per_token.py runs on one model: tuned-lens's recipe and our fit, with the clock on the training
alone."""

from pathlib import Path
from typing import Any, Literal

from lens_rnn.data import DataConfig, TokenBlocks, load_blocks
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import Checkpoints, FitConfig, fit, make_plan
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter

import torch
from tqdm import tqdm
from tuned_lens.nn.lenses import Lens

from common import Clock
from tuned_lens_loop import Backward, backward, fused_gradients, train

Run = dict[str, Any]
"""kl: by layer, nats a token; seconds and cpu_seconds of the training; of ours also passes, and when it reached
tuned-lens's mean KL."""


def mean(kl: dict[str, float]) -> float:
    return sum(kl.values()) / len(kl)


class ModelRuns:
    """The runs of one model on one text."""

    def __init__(self, adapter: ModelAdapter, data: str, seq_len: int, eval_tokens: int):
        self.adapter, self.data, self.seq_len = adapter, data, seq_len
        self.held_out = self.blocks("eval", eval_tokens=eval_tokens)

    def blocks(self, role: Literal["fit", "eval"], **tokens: Any) -> TokenBlocks:
        return load_blocks(DataConfig(data=self.data, seq_len=self.seq_len, **tokens), role, self.adapter.tokenizer)

    def kl(self, lens: Lens) -> dict[str, float]:
        """Of each fitted layer, on the held-out blocks."""
        figures = evaluate(self.adapter, {"it": lens}, self.held_out).lenses["it"]
        return {str(i): figures[i].kl for i in self.adapter.fitted_layers}

    def logit_lens(self) -> Run:
        return {"kl": self.kl(LogitLens.from_adapter(self.adapter))}

    def recipe(self, label: str, gradients: Backward, batch_tokens: int, tokens: int) -> Run:
        """tuned-lens's recipe, on its own gradients or on ours."""
        blocks = self.blocks("fit", tokens=tokens)
        with tqdm(total=blocks.tokens.size, unit="tok", unit_scale=True, desc=label) as bar:
            clock = Clock()
            lens = train(
                self.adapter, blocks, batch_tokens // blocks.seq_len, gradients=gradients, on_tokens=bar.update
            )
            time = clock.read()
        return {"kl": self.kl(lens), **time, "evaluations": int(blocks.tokens.size)}

    def ours(self, tokens: int, target: float, every: int) -> Run:
        """Our fit with its default settings. Where it would write checkpoints, every so many tokens, it is watched for
        the target."""
        blocks = self.blocks("fit", tokens=tokens)
        a_step = FitConfig().batch_size * blocks.seq_len
        plan = make_plan(self.adapter, blocks, FitConfig(checkpoint_every=max(1, every // a_step)))
        with tqdm(total=plan.steps * a_step, unit="tok", unit_scale=True, desc=f"ours, {tokens:,} tokens") as bar:
            watch = _Watch(self, target)
            lens = fit(self.adapter, blocks, plan, checkpoints=watch, on_step=lambda _: bar.update(a_step)).lens
            time = watch.clock.read()
        a_step_looks_at = plan.sampling.batch_size * plan.sampling.positions
        reached = watch.reached and {
            **watch.reached,
            "tokens": watch.reached["step"] * a_step,
            "evaluations": watch.reached["step"] * a_step_looks_at,
        }
        return {
            "kl": self.kl(lens),
            **time,
            "passes": plan.passes,
            "evaluations": plan.evaluations,
            "reached": reached,
        }

    def check(self) -> None:
        """Two steps of the recipe in float32 on our gradients and on its own are the same. Warms up what is compiled or
        loaded once."""
        blocks = self.blocks("fit", tokens=8 * self.seq_len)
        ours, theirs = (
            train(self.adapter, blocks, 4, gradients=by)
            for by in (fused_gradients(self.adapter, torch.float32), backward)
        )
        for i in self.adapter.fitted_layers:
            weight = theirs[i].weight.detach()
            difference = float((ours[i].weight.detach() - weight).norm() / weight.norm())
            assert difference < 1e-4, (
                f"the translators of layer {i} differ by {difference:.1e} of their norm after two steps"
            )
        fit(self.adapter, blocks, FitConfig(batch_size=4, passes=1))


class _Watch(Checkpoints):
    """Stands where a fit's checkpoints would: evaluates each, outside the clock, until one has tuned-lens's mean KL."""

    def __init__(self, runs: ModelRuns, target: float):
        self.runs, self.target, self.reached = runs, target, Run()
        self.lens = TunedLens.from_adapter(runs.adapter)
        self.clock = Clock()

    def save(self, step: int, state: dict[str, Any]) -> Path:
        now = self.clock.read()
        with self.clock.paused():
            self.lens.layer_translators.load_state_dict(state["translators"])
            if not self.reached and mean(self.runs.kl(self.lens)) <= self.target:
                self.reached = {"step": step, **now}
        return Path()
