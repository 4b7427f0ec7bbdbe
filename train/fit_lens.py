"""Fit a tuned lens for a recurrent language model.

    accelerate launch train/fit_lens.py
    accelerate launch train/fit_lens.py --model state-spaces/mamba-130m-hf --data monology/pile-uncopyrighted --tokens
    10_000_000

Without arguments: the shipped tiny Mamba, on the sources of the Python standard library that every machine has.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lens_rnn import artifacts, cli, hub
from lens_rnn.activity import doing
from lens_rnn.data import DataConfig, load_blocks, open_source, unigram_cross_entropy
from lens_rnn.evaluation.metrics import doubts, evaluate
from lens_rnn.fitting import Checkpoints, FitConfig, StepReport, fit
from lens_rnn.fitting.card import save_fit
from lens_rnn.fitting.pace import measure_pace
from lens_rnn.fitting.plan import make_plan
from lens_rnn.fitting.plan_lines import describe_plan
from lens_rnn.fitting.reference import load_reference
from lens_rnn.fitting.report import describe_data, describe_model, fit_report, identity, table
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.models import DTYPES, ModelAdapter, has_weights_here, outline_model
from lens_rnn.processes import Processes
from lens_rnn.run import ModelConfig, begin_output, check_length, check_output, load_configured_model, start_processes

import torch
from tqdm import tqdm

# Settings that say where and how to run, not what to compute: a resumed run may change them.
_FREE = (
    *("output", "resume", "overwrite", "tracker", "verbose", "dry_run", "checkpoint_every", "push_to_hub"),
    *("data", "model", "device", "eval_tokens"),
)
# What machines of one run may have each their own of: it moves a result by rounding only.
_OF_A_MACHINE = ("threads", "setting threads")

FILES = (
    "config.json",
    "params.pt",
    "fit.json",
    "README.md",
    "perplexity.png",
    "checkpoints/step-*.pt",
    "checkpoints/.*.partial",
)
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(FitConfig, DataConfig, ModelConfig):
    """Fit a tuned lens: one affine translator a layer, so that every hidden state can be read as a prediction."""

    output: Path | None = None
    """Folder of the lens. Default: lenses/ and the model's name."""
    init_lens: str | None = None
    """Folder or tuned-lens resource of a lens to start from."""
    shard: bool = False
    """Spread the model's weights over the processes, for a model that is too large for one GPU."""
    resume: bool = False
    """Continue a run that was stopped, from its last checkpoint."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    dry_run: bool = False
    """Print the plan and stop. Where the model's weights are not on this machine, from its configuration alone."""
    tracker: Literal["wandb"] | None = None
    """Log the loss of each layer there. WANDB_MODE=offline keeps it on this machine."""
    push_to_hub: str | None = None
    """Model repository on the Hub to upload the lens to after the fit, such as user/name. A new one is public. Needs a
    token."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        FitConfig.__post_init__(self)

    @property
    def folder(self) -> Path:
        return self.output or Path("lenses") / self.model_name


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config, config.tracker)
    push_to = config.push_to_hub
    with processes.together():  # what is wrong on one machine ends the run on all
        if not config.dry_run:
            check_output(config.folder, config.overwrite, config.resume)
        if push_to and processes.is_main and not config.dry_run:
            push_to = hub.check_push(push_to)

    # Model and data.
    with processes.together():
        adapter = _load(config, processes)
        device = processes.device or (adapter.device if adapter.device.type != "meta" else torch.device("cpu"))
        check_length(adapter, config.seq_len)
        doing("reading the text")
        source = open_source(config)
        fit_blocks = load_blocks(config, "fit", adapter.tokenizer, source)
        eval_blocks = load_blocks(config, "eval", adapter.tokenizer, source)
        plan = make_plan(adapter, fit_blocks, config, processes, device, config.shard)
    unembedding = Unembedding(adapter) if adapter.device.type != "meta" else None
    pace = None
    if unembedding and not config.shard:
        doing("measuring a step")
        pace = measure_pace(adapter, fit_blocks, plan, unembedding.to(device))
    if processes.is_main:
        print("\n".join(describe_plan(plan, adapter, fit_blocks, pace)), flush=True)
        if push_to:
            print(f"push       to the model repository {push_to} on the Hub, after the fit", flush=True)
    if config.dry_run or unembedding is None:
        return

    # What is copied or hashed must be, before the weights are spread.
    doing("preparing the fit")
    with processes.together():
        unembedding = unembedding.to(device)
        init_lens = TunedLens.load(adapter, config.init_lens, unembedding) if config.init_lens else None
        model = describe_model(adapter, unembedding.sha256())
        reference = load_reference(adapter, model.weights_sha256, eval_blocks)
    settings = {k: v for k, v in cli.plain(config).items() if k not in _FREE}
    settings["products"] = plan.resolved()["products"]
    decides = identity(settings, model, describe_data(fit_blocks), device.type, processes)
    on_all = {name: value for name, value in decides.items() if name not in _OF_A_MACHINE}
    processes.refuse_differences(on_all | {"evaluation data sha256": eval_blocks.sha256, "resume": config.resume})
    if config.shard:
        adapter.shard(device, processes.world)

    # Take the output folder only now that nothing can be wrong with the input.
    checkpoints = Checkpoints(config.folder / "checkpoints", decides, kept=2)
    resume_from = checkpoints.last_of_all(processes) if config.resume else None
    with processes.together():
        if processes.is_main:
            begin_output(config.folder, config, config.overwrite, FILES)
    if config.tracker:
        processes.start_tracking("lens-rnn", cli.plain(config))

    # Fit.
    tokens = plan.steps * plan.step_tokens
    quiet: dict[str, Any] = {} if processes.is_main else {"disable": True}  # else tqdm goes by its own TQDM_DISABLE
    with tqdm(total=tokens, unit="tok", unit_scale=True, desc="fitting", **quiet) as bar:

        def on_step(report: StepReport) -> None:
            bar.update(report.tokens - bar.n)
            bar.set_postfix({f"mean {config.loss}": f"{sum(report.losses.values()) / len(report.losses):.3f}"})
            if config.tracker:
                losses = {f"loss/layer_{i}": loss for i, loss in report.losses.items()}
                processes.track(losses | {"learning_rate": report.learning_rate, "tokens": report.tokens}, report.step)

        result = fit(
            adapter,
            fit_blocks,
            plan,
            unembedding=unembedding,
            init_lens=init_lens,
            processes=processes,
            checkpoints=checkpoints,
            resume_from=resume_from,
            on_step=on_step,
        )

    # Evaluate and report.
    doing("evaluating")
    unigram = unigram_cross_entropy(fit_blocks, eval_blocks, adapter.vocab_size)
    lenses = {"logit": LogitLens(unembedding), "start": result.start_lens, "tuned": result.lens}
    with tqdm(total=eval_blocks.tokens.size, unit="tok", unit_scale=True, desc="evaluating", **quiet) as bar:
        evaluation = evaluate(
            adapter,
            lenses,
            eval_blocks,
            processes=processes,
            micro_batch_size=config.micro_batch_size,
            unigram_ce=unigram,
            on_batch=bar.update,
        )
    if processes.is_main:
        doing("writing the lens")
        settings |= plan.resolved()
        report = fit_report(settings, adapter, model, fit_blocks, eval_blocks, result, evaluation, processes, reference)
        save_fit(config.folder, result.lens, report, push_to)
        print(table(report))
        for line in doubts(evaluation, adapter.fitted_layers):
            print(f"warning: {line}")
        print(f"saved to {config.folder}", flush=True)
        if push_to:
            artifacts.push(config.folder, push_to)
            print(f"pushed to {push_to}")
    processes.finish()


def _load(config: Config, processes: Processes) -> ModelAdapter:
    """The model; for a dry run on a machine without its weights, what its configuration says of it."""
    if not config.dry_run or has_weights_here(config.model, config.revision):
        return load_configured_model(config, processes, config.shard)
    dtype = DTYPES.get(config.dtype or "")  # None, for the configuration's own
    return outline_model(
        config.model,
        dtype,
        config.revision,
        tokenizer=config.tokenizer,
        trust_remote_code=config.trust_remote_code,
    )


if __name__ == "__main__":
    cli.run(main, Config)
