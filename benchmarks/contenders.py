"""What throughput.py and memory.py compare: from random hidden states to the gradients of all translators, ours and
tuned-lens's.

Ours uses the parts that `fit` is made of, without a model's forward pass and without data.
"""

from typing import Any

from lens_rnn.fitting import FusedObjective
from lens_rnn.fitting.closed_form import Moments
from lens_rnn.fitting.optimizers import OPTIMIZERS, OptimizerName, make_optimizer
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import Forward, ModelAdapter, wrap_model
from lens_rnn.processes import Processes

import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

import tuned_lens_loop

STEPS = 1000  # of the schedules


class Ours:
    """Our objective and optimizer on one problem."""

    def __init__(
        self, adapter: ModelAdapter, forward: Forward, ids: Tensor, products: torch.dtype, name: OptimizerName
    ):
        self.layers, self.forward, self.ids = adapter.fitted_layers, forward, ids
        size, device = (len(self.layers), adapter.d_model), adapter.device
        self.weights, self.biases = torch.zeros(*size, adapter.d_model, device=device), torch.zeros(size, device=device)
        rate, fisher = OPTIMIZERS[name].default_rate, OPTIMIZERS[name].fisher
        self.optimizer = make_optimizer(name, self.weights, self.biases, rate, STEPS, clip=1.0)
        self.sums = StepSums(*size, device, fisher)
        self.objective = FusedObjective(Unembedding(adapter), products=products)
        if fisher:
            moments = Moments(self.layers, adapter.d_model, device)
            moments.add(forward.hidden_states, forward.norm_input, held_out=False)
            for k in range(len(self.layers)):
                self.optimizer.begin(k, moments.inputs(k))

    @torch.no_grad()
    def gradients(self) -> None:
        """Losses, gradients and statistics of all layers, from nothing."""
        self.sums.flat.zero_()
        draws = torch.rand(self.ids.numel(), device=self.ids.device) if self.sums.has_fisher else None
        for chunk in self.objective.chunks(self.forward, self.ids, draws):
            for k, layer in enumerate(self.layers):
                hidden = chunk.hidden[layer]
                z = hidden + torch.nn.functional.linear(hidden, self.weights[k], self.biases[k])
                self.sums.add(k, hidden, self.objective.derivatives(z, chunk.target, chunk.score))
            self.sums.tokens += len(chunk.hidden[0])
        self.sums.average(Processes())

    def step(self) -> None:
        """A step of the optimizer with the gradients that there are."""
        self.optimizer.step(self.sums)


class Theirs:
    """tuned-lens's loop and optimizer on the same problem, under its autocast where the head is in bfloat16."""

    def __init__(self, adapter: ModelAdapter, forward: Forward, ids: Tensor):
        self.adapter, self.forward, self.ids = adapter, forward, ids
        self.backward = tuned_lens_loop.with_autocast if adapter.dtype == torch.bfloat16 else tuned_lens_loop.backward
        self.lens = TunedLens.from_adapter(adapter)
        self.optimizer, self.schedule = tuned_lens_loop.make_optimizer(self.lens, STEPS)

    def gradients(self) -> None:
        """Gradients of all layers, added to those that there are."""
        self.backward(self.lens, self.adapter, self.forward, self.ids, 1)

    def step(self) -> None:
        tuned_lens_loop.step(self.lens, self.optimizer, self.schedule)


def random_mamba(d_model: int, vocab_size: int, layers: int, dtype: torch.dtype, device: torch.device) -> ModelAdapter:
    """A Mamba of this shape with random weights, whose predictions are uneven. Its last layer is trivial, so one more
    than asked for."""
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = MambaConfig(hidden_size=d_model, num_hidden_layers=layers + 1, vocab_size=vocab_size, dtype=dtype, **ends)
    with torch.device(device):
        model = MambaForCausalLM(config)
    model.get_output_embeddings().weight.data.normal_(
        std=3 * d_model**-0.5
    )  # logits of about 3, as trained models have
    model.config.name_or_path = f"random-mamba-{d_model}"
    return wrap_model(model.to(dtype))  # type: ignore[arg-type] # transformers' decorator hides Module.to


def random_forward(adapter: ModelAdapter, tokens: int) -> tuple[Forward, torch.Tensor]:
    """What a pass over one sequence of so many tokens might give, in float32 as Mamba gives it, without running the
    model; and ids."""
    generator = torch.Generator(adapter.device).manual_seed(1)

    def states() -> torch.Tensor:
        return torch.randn(1, tokens, adapter.d_model, generator=generator, device=adapter.device)

    hidden = tuple(states() for _ in range(adapter.n_layers))
    with torch.no_grad():
        final = adapter.final_norm(hidden[-1].to(adapter.dtype))
    return Forward(hidden, hidden[-1], final), torch.zeros(1, tokens, dtype=torch.long, device=adapter.device)
