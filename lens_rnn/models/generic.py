"""Models whose code comes with their weights (`--trust-remote-code`): their parts are found by watching one pass, then checked like any."""

from typing import Any

from lens_rnn.errors import ModelError
from lens_rnn.models.adapter import ModelAdapter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class GenericAdapter(ModelAdapter):
    """For a model that returns hidden states as transformers' models do: one before or after each block, then the normed last.

    The recurrent state of such a model cannot be reached.
    """

    def __init__(self, model: PreTrainedModel, *args: Any):
        super().__init__(model, *args)
        self._blocks, self._final_norm, after = _watch(self.model)
        self.states_after_blocks = after  # type: ignore[misc] # of this model, where other adapters know it of the class

    @property
    def blocks(self) -> nn.ModuleList:
        return self._blocks

    @property
    def final_norm(self) -> nn.Module:
        return self._final_norm


@torch.no_grad()
def _watch(model: PreTrainedModel) -> tuple[nn.ModuleList, nn.Module, bool]:
    """Blocks, final norm, and whether hidden states are the blocks' outputs, as one pass over a few tokens shows them.

    Raises ModelError, naming the model type and what was not found.
    """

    def refuse(what: str) -> ModelError:
        return ModelError(f"model type {model.config.model_type!r}: {what}; subclass lens_rnn.models.ModelAdapter for it")

    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise refuse("it has no linear head")
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
        raise refuse(f"its own code does not run here ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not states:
        raise refuse("it returns no hidden states")
    if model.base_model is model:
        raise refuse("it has no base model that runs without the head")
    order = [id(module) for module, _, _ in calls]
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == len(states) - 1]
    stacks = [stack for stack in stacks if [i for i in order if i in set(map(id, stack))] == list(map(id, stack))]
    if len(stacks) != 1:
        raise refuse(f"{len(stacks)} stacks of {len(states) - 1} blocks, each of which runs once, were found, not one")
    inside = {id(module) for block in stacks[0] for module in block.modules()}
    into_head = next((given for module, given, _ in calls if module is head), None)
    if into_head is None:
        raise refuse("its head is not called as a module")
    norms = [
        module
        for module, given, output in calls
        if id(module) not in inside
        and module is not head
        and _same(output, into_head)
        and given is not None
        and not _same(given, output)
        and given.is_floating_point()
    ]
    if not norms:
        raise refuse("no module was found that makes the head's input out of a hidden state")
    before_first = next(given for module, given, _ in calls if module is stacks[0][0])
    return stacks[0], norms[0], not _same(states[0], before_first)


def _copy(value: Any) -> Tensor | None:
    return value.clone() if isinstance(value, Tensor) else None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)
