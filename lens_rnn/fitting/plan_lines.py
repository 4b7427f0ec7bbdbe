"""A plan in lines for people."""

from math import log

from lens_rnn.data import TokenBlocks
from lens_rnn.fitting.pace import Pace
from lens_rnn.fitting.plan import LEAST_BLOCKS, Plan
from lens_rnn.models import ModelAdapter

import torch


def describe_plan(plan: Plan, adapter: ModelAdapter, blocks: TokenBlocks, pace: Pace | None = None) -> list[str]:
    """The plan in lines for people: shapes, steps, memory of one process by part, and a warning if that is too much.

    pace: what a step was measured to take, for an estimate of the time.
    """
    config, sampling, memory = plan.config, plan.sampling, plan.memory
    rest = f" ({blocks.tokens.size - plan.tokens:,} are left over)" if blocks.tokens.size > plan.tokens else ""
    rate = f" at {plan.learning_rate:g}" if config.optimizer != "kfac" or config.learning_rate else ""
    apart = f"; {sampling.apart} blocks are kept apart to choose on" if plan.choice_positions else ""
    is_outline = adapter.device.type == "meta"
    lasting, start, step = (
        ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items() if size)
        for parts in (memory.lasting, memory.start, memory.step)
    )
    lines = [
        f"model      {adapter.name}: {adapter.model_type}, {adapter.n_layers} layers, d_model {adapter.d_model}, "
        f"vocabulary {adapter.vocab_size:,}, {plan.dtype}",
        f"data       {blocks.source}: {plan.tokens:,} tokens in blocks of {plan.seq_len}{rest}, {plan.passes} "
        f"pass{'es' if plan.passes > 1 else ''}",
        f"fit        {len(adapter.fitted_layers)} translators, {plan.steps} steps of {sampling.batch_size} × "
        f"{plan.seq_len} tokens, {config.loss}, {config.optimizer}{rate}, {config.start} start, "
        f"products in {plan.products}",
        f"positions  {sampling.positions} of {sampling.targets} in a block, {plan.evaluations:,} in all, each at every "
        f"layer{apart}",
        f"work       {_scaled(plan.operations, 1000, _POWERS)} floating-point operations in products"
        + (f", about {_duration(pace.seconds(plan))} at the pace of a step here" if pace else ""),
        f"held out   {blocks.held_out or 'not known'}",
        f"processes  {plan.world} on {plan.device.type}, {torch.get_num_threads()} threads each; "
        f"{plan.micro_batch_size * plan.seq_len:,} tokens a forward pass, logits of {plan.chunk_tokens:,} positions at "
        "a time",
        f"memory     {_bytes(memory.needed)} at most: {lasting};"
        + (f" during the start also {start};" if start else "")
        + f" in a step also {step}"
        + (" (of a forward pass its states alone, as the weights are not here)" if is_outline else ""),
    ]
    if plan.start_alone:
        lines.append(
            f"note       {len(blocks)} blocks are too few to keep one apart, which takes {LEAST_BLOCKS}: there are no "
            "steps, and the start is chosen by cross-validation"
        )
    layers = len(adapter.fitted_layers)
    if plan.start_rows and plan.moment_layers < layers:
        lines.append(
            f"note       the start holds the moments of {plan.moment_layers} of {layers} layers at a time, for want of "
            f"memory, and reads its text {-(-layers // plan.moment_layers)} times"
        )
    if sampling.batch_size < plan.batch_asked:
        lines.append(
            f"note       a batch is {sampling.batch_size} blocks, all there are, in place of {plan.batch_asked}"
        )
    if plan.memory_there and memory.needed > plan.memory_there:
        lines.append(
            f"warning    that is more than the {_bytes(plan.memory_there)} there are; a lower --micro-batch-size or "
            "--shard may help"
        )
        if plan.memory_with_adamw < memory.needed:
            lines[-1] += f", and --optimizer adamw needs {_bytes(plan.memory_with_adamw)}"
    return lines


_POWERS = ("", " k", " M", " G", " T", " P", " E")


def _duration(seconds: float) -> str:
    for limit, unit, name in ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes")):
        if seconds >= limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _bytes(size: float) -> str:
    return _scaled(size, 1024, (" B", " KiB", " MiB", " GiB"))


def _scaled(count: float, base: int, powers: tuple[str, ...]) -> str:
    power = 0 if count < 1 else min(len(powers) - 1, int(log(count, base)))
    return f"{count / base**power:.{0 if power < 2 else 1}f}{powers[power]}"
