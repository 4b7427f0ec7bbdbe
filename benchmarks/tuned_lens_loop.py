"""The training loop of tuned-lens 0.2.0: the baseline of the benchmarks, through plain autograd.

Its own trainer (tuned_lens/scripts/train_loop.py, with ingredients.py) cannot be imported: it needs
`torchdata.dataloader2`, which no current torchdata has. This is its loop for one process, in its order, with its
defaults:

    SGD, Nesterov momentum 0.9, learning rate 1 × (1 − 0.9), weight decay 1e-3, from zero translators
    linear decay from the first step to the last (SGD has no warm-up there)
    for each pass: log-softmax of the model's logits once; per layer logits, KL and `backward`, the loss read as a
    number one gradient norm over all translators together, clipped at 1

What differs, each time in its favour or neutral:

    its passes are sequences of 2,048 tokens one at a time; here they are as many shorter sequences as make 2,048
    it computes under bfloat16 autocast always: `with_autocast`; `backward` is the same in float32
    its translators have the checkpoint's dtype, float16 for the demo models; here they are float32
    it skips no layer; here a trivial one (KL 0 from the start) costs it nothing
    its data loader shuffles in a buffer of 10,000 records; here in all
"""

from collections.abc import Callable

from lens_rnn.data import TokenBlocks
from lens_rnn.fitting import FusedObjective
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import Forward, ModelAdapter

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

Backward = Callable[[TunedLens, ModelAdapter, Forward, Tensor, int], None]
"""(lens, adapter, one pass, its token ids, passes in a step): add the gradients of the pass to the translators'
.grad."""

PASS_TOKENS = 2048


def backward(
    lens: TunedLens, adapter: ModelAdapter, forward: Forward, ids: Tensor, passes: int, *, autocast: bool = False
) -> None:
    """Its gradients of one pass."""
    del ids
    with torch.no_grad():
        final_logits = adapter.logits(forward.final)
    labels = final_logits.float().log_softmax(dim=-1)
    for i in adapter.fitted_layers:
        with torch.autocast(adapter.device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = lens(forward.hidden_states[i], idx=i)
            loss = torch.sum(labels.exp() * (labels - logits.log_softmax(-1)), dim=-1).mean()
            loss.detach().item()  # for its log
            scaled_loss = loss / passes
        scaled_loss.backward()


def with_autocast(lens: TunedLens, adapter: ModelAdapter, forward: Forward, ids: Tensor, passes: int) -> None:
    """The same under its bfloat16 autocast."""
    backward(lens, adapter, forward, ids, passes, autocast=True)


def make_optimizer(lens: TunedLens, steps: int) -> tuple[SGD, LambdaLR]:
    """Its optimizer and schedule. Every translator is to be trained and has a gradient to add to from the start."""
    parameters = list(lens.layer_translators.requires_grad_(True).parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    momentum = 0.9
    optimizer = SGD(parameters, lr=1.0 * (1 - momentum), momentum=momentum, nesterov=True, weight_decay=1e-3)
    return optimizer, get_linear_schedule_with_warmup(optimizer, 0, steps)


def step(lens: TunedLens, optimizer: SGD, schedule: LambdaLR) -> None:
    """What it does with the gradients of a step."""
    torch.nn.utils.clip_grad_norm_(lens.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    schedule.step()


def train(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    batch_size: int,
    *,
    gradients: Backward = backward,
    seed: int = 0,
    on_tokens: Callable[[int], object] | None = None,
) -> TunedLens:
    """Its lens after every whole batch of `batch_size` blocks, each seen once. on_tokens is told the tokens of each
    step."""
    lens = TunedLens.from_adapter(adapter)
    steps = len(blocks) // batch_size
    optimizer, schedule = make_optimizer(lens, steps)
    order = np.random.default_rng(seed).permutation(len(blocks))[: steps * batch_size].reshape(steps, batch_size)
    passes = max(1, batch_size * blocks.seq_len // PASS_TOKENS)
    for rows in order:
        for part in np.array_split(rows, passes):
            ids = blocks.batch(part, adapter.device)
            gradients(lens, adapter, adapter.forward(ids), ids, passes)
        step(lens, optimizer, schedule)
        if on_tokens:
            on_tokens(batch_size * blocks.seq_len)
    return lens


def fused_gradients(adapter: ModelAdapter, products: torch.dtype) -> Backward:
    """The same gradients by our objective, sooner; `products` is the dtype of its matrix products."""
    objective = FusedObjective(Unembedding(adapter), products=products)

    @torch.no_grad()
    def add(lens: TunedLens, adapter: ModelAdapter, forward: Forward, ids: Tensor, passes: int) -> None:
        for chunk in objective.chunks(forward, ids):
            for i in adapter.fitted_layers:
                gradient = objective.derivatives(lens.transform_hidden(chunk.hidden[i], i), chunk.target).gradient
                weight, bias = lens[i].weight.grad, lens[i].bias.grad
                weight.addmm_(gradient.T, chunk.hidden[i].to(gradient.dtype), alpha=1 / (passes * ids.numel()))
                bias.add_(gradient.sum(0), alpha=1 / (passes * ids.numel()))

    return add
