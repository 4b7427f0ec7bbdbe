"""Files of weights: reading them without running code, and giving them to a model, with every tensor that does not fit
named."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lens_rnn.errors import ModelError

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

Weights = dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """The tensors of a .pth (read without running code) or .safetensors file, on the CPU. Raises ModelError if it is
    neither."""
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # damaged bytes make both readers fail in many ways
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read safely: it is damaged or holds more than tensors ({reason})") from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise ModelError(f"{path} is not a dictionary of tensors")
    return weights


def fill(
    model: PreTrainedModel,
    weights: Weights,
    where: str,
    dtype: torch.dtype | None,
    kind: str | None = None,
    official: Callable[[str], str] = str,
) -> None:
    """Give a model without storage copies of the weights, and set it to evaluation mode.

    where: what an error calls the file. dtype: None is that of the stored embedding; what the model's class wants in
    float32 stays so. kind: what the file is taken for, by default the model's class. official: from the model's name of
    a tensor to that in the file.

    Raises ModelError, naming the tensor, where one is missing, has no place, or has another shape than its place, sizes
    of 1 aside, which files of different age have or lack.
    """
    kind = kind or type(model).__name__
    places = model.state_dict()
    names = {official(name): name for name in places}
    if absent := names.keys() - weights.keys():
        raise ModelError(
            f"{where} is taken for {kind} and lacks {listed(sorted(absent))}; the checkpoint is incomplete"
        )
    if unread := weights.keys() - names.keys():
        raise ModelError(f"{where} is taken for {kind}, which has no place for {listed(sorted(unread))}")
    exact = set(model._keep_in_fp32_modules or ())
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    dtype = dtype or weights[official(f"{embedding}.weight")].dtype
    fitted = {}
    for name, ours in names.items():
        stored, place = weights[name], places[ours]
        if [size for size in stored.shape if size != 1] != [size for size in place.shape if size != 1]:
            raise ModelError(f"{where}: {name} has shape {tuple(stored.shape)} where {tuple(place.shape)} is expected")
        wide = torch.float32 if ours.rpartition(".")[2] in exact else dtype
        fitted[ours] = stored.reshape(place.shape).to(wide, copy=True)  # transformers changes RWKV-4's weights in place
    model.load_state_dict(fitted, assign=True)
    model.eval()


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
