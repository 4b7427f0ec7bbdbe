"""Blocks, final norm and the meaning of hidden states of any causal language model, found by watching one pass."""

from typing import Any, NamedTuple

from lens_rnn import versions
from lens_rnn.errors import ModelError

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Parts(NamedTuple):
    """What a lens has to know of a model, besides its head."""

    blocks: nn.ModuleList
    final_norm: nn.Module
    states_after_blocks: bool
    """Whether hidden state i is the output of block i, or its input."""


@torch.no_grad()
def find_parts(model: PreTrainedModel) -> Parts:
    """The parts of a causal language model, as one pass over a few tokens shows them.

    Raises ModelError, naming the model type, what was found and what was missing.
    """
    seen: list[str] = []

    def refuse(reason: str) -> ModelError:
        so_far = f" (found: {', '.join(seen)})" if seen else ""
        return ModelError(
            f"model type {model.config.model_type!r} cannot be taken apart: {reason}{so_far}; subclass "
            "lens_rnn.models.ModelAdapter for it, "
            f"or try another version: {versions.describe('transformers')}"
        )

    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise refuse("it has no linear head")
    seen.append(f"a head from {head.in_features:,} to {head.out_features:,}")
    calls: list[tuple[nn.Module, Tensor | None, Tensor | None]] = []  # in the order in which modules end

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        calls.append((module, _copy(given), _copy(first)))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        ids = torch.arange(6, device=head.weight.device)[None] % head.out_features
        states = getattr(model(ids, output_hidden_states=True, use_cache=False), "hidden_states", None)
    except Exception as error:  # foreign code fails in its own ways
        raise refuse(
            f"its own code does not run here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not states:
        raise refuse("it returns no hidden states")
    seen.append(f"{len(states)} hidden states")
    if model.base_model is model:
        raise refuse("it has no base model that runs without the head")
    order = [id(module) for module, _, _ in calls]
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == len(states) - 1]
    stacks = [stack for stack in stacks if [i for i in order if i in set(map(id, stack))] == list(map(id, stack))]
    if len(stacks) != 1:
        raise refuse(f"{len(stacks)} stacks of {len(states) - 1} blocks, each of which runs once, were found, not one")
    seen.append(f"{len(stacks[0])} blocks of {type(stacks[0][0]).__name__}")
    inside = {id(module) for block in stacks[0] for module in block.modules()}
    into_head = next((given for module, given, _ in calls if module is head), None)
    if into_head is None:
        raise refuse("its head is not called as a module")
    norms = [
        module
        for module, given, output in calls
        if id(module) not in inside
        and module is not head
        and _proportional(output, into_head)
        and given is not None
        and not _proportional(output, given)
        and given.is_floating_point()
    ]
    if not norms:
        raise refuse("no module was found that makes the head's input out of a hidden state")
    before_first = next(given for module, given, _ in calls if module is stacks[0][0])
    return Parts(stacks[0], norms[0], not _same(states[0], before_first))


def _copy(value: Any) -> Tensor | None:
    return value.clone() if isinstance(value, Tensor) else None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def _proportional(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether one is a multiple of the other: some models scale the normed state before the head."""
    if a is None or b is None or a.shape != b.shape or not a.is_floating_point() or not b.is_floating_point():
        return False
    if torch.equal(a, b):
        return True
    a, b = a.double().flatten(), b.double().flatten()
    return bool((a @ b).square() > (1 - 1e-6) * (a @ a) * (b @ b)) and bool(a @ b > 0)
