"""Fit a model's translators on all the text there is, and keep what they reach as the reference that shorter fits are
measured against.

    python benchmarks/reference.py --model checkpoints/tiny-mamba

Writes lens_reference.json into the model's folder. The figures hold for these weights and these evaluation tokens only.
"""

import time
from dataclasses import dataclass

from lens_rnn import cli
from lens_rnn.data import DataConfig, load_blocks, open_source
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import FitConfig, StepReport, fit, make_plan
from lens_rnn.fitting.reference import load_reference, save_reference
from lens_rnn.fitting.report import describe_model
from lens_rnn.lens import Unembedding
from lens_rnn.run import ModelConfig, load_configured_model, start_processes

from tqdm import tqdm

from common import machine


@dataclass(frozen=True, kw_only=True)
class Config(FitConfig, DataConfig, ModelConfig):
    """Make the reference of a model in a local folder."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        FitConfig.__post_init__(self)
        if self.tokens is not None:
            raise ConfigError("a reference is fitted on all tokens that --data has; leave --tokens out")


def main(config: Config) -> None:
    cli.log_to_terminal(False)
    processes = start_processes(config, None)
    adapter = load_configured_model(config, processes, False)
    source = open_source(config)
    fit_blocks = load_blocks(config, "fit", adapter.tokenizer, source, everything=True)
    eval_blocks = load_blocks(config, "eval", adapter.tokenizer, source)
    unembedding = Unembedding(adapter)
    weights = describe_model(adapter, unembedding.sha256()).weights_sha256
    start = time.perf_counter()
    plan = make_plan(adapter, fit_blocks, config)
    with tqdm(total=plan.steps * plan.step_tokens, unit="tok", unit_scale=True, desc="fitting") as bar:

        def on_step(report: StepReport) -> None:
            bar.update(report.tokens - bar.n)
            bar.set_postfix({"mean": f"{sum(report.losses.values()) / len(report.losses):.3f}"})

        result = fit(adapter, fit_blocks, plan, unembedding=unembedding, on_step=on_step)
    seconds = time.perf_counter() - start
    figures = evaluate(adapter, {"tuned": result.lens}, eval_blocks).lenses["tuned"]
    kl = {i: figures[i].kl for i in adapter.fitted_layers}
    known = load_reference(adapter, weights, eval_blocks)
    mean = sum(kl.values()) / len(kl)
    if known and sum(known.values()) / len(known) <= mean:
        print(
            f"mean KL {mean:.4f} is not below the reference that is there, {sum(known.values()) / len(known):.4f}; "
            "kept that"
        )
        return
    made = {
        "command": f"python benchmarks/reference.py --model {config.model}",
        "optimizer": config.optimizer,
        "tokens": plan.tokens,
        "passes": plan.passes,
        "evaluation_tokens": int(eval_blocks.tokens.size),
        "seconds": round(seconds),
        "source": {**fit_blocks.origin, "name": fit_blocks.source},
        "machine": machine(),
    }
    print(f"mean KL {mean:.4f}; wrote {save_reference(adapter, weights, eval_blocks, kl, made)}")


if __name__ == "__main__":
    cli.run(main, Config)
