"""Quirky models as folders: written after fine-tuning, and loaded, adapters merged into their base."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from lens_rnn import artifacts
from lens_rnn.elk.report import QuirkyReport
from lens_rnn.errors import ArtifactError, ModelError
from lens_rnn.files import read_json, write_atomically
from lens_rnn.fitted import default_lens
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.lens import open_lens as open_any_lens
from lens_rnn.models import ModelAdapter, load_model

from safetensors.torch import save
from tuned_lens.nn.lenses import Lens

ABOUT = "quirky.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class QuirkyModel(NamedTuple):
    """A model that has been made quirky, ready to be read."""

    adapter: ModelAdapter
    base: str | None
    """The model that its adapters were trained on; None for a model of its own."""
    report: QuirkyReport | None
    """What is in quirky.json, where there is one: data, settings, figures."""


def save_adapters(model: Any, folder: Path, base: str) -> None:
    """Write peft's model as its adapters in half precision. A base that is a folder is named relative to this one."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().half().contiguous() for name, tensor in get_peft_model_state_dict(model).items()
    }
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = os.path.relpath(base, folder) if Path(base).exists() else base
    settings.inference_mode, settings.target_modules = True, sorted(settings.target_modules)
    settings.save_pretrained(folder)
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(tensors)))


def save_model(adapter: ModelAdapter, folder: Path) -> None:
    """Write a fully fine-tuned model in half precision; it is in half precision afterwards. Adapters of an earlier run
    are removed."""
    for name in (ADAPTER, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    adapter.model.half().save_pretrained(folder)


def load_quirky(name: str | Path, **settings: Any) -> QuirkyModel:
    """Load a quirky model: a folder of peft adapters, merged into the base that it names, or whatever `load_model`
    takes.

    settings: for `load_model`. Raises ModelError if the base cannot be found, or peft is absent or refuses.
    """
    folder = Path(name)
    report = QuirkyReport.read(folder / ABOUT) if (folder / ABOUT).is_file() else None
    if not (folder / ADAPTER).is_file():
        return QuirkyModel(load_model(name, **settings), None, report)
    named = str(read_json(folder / ADAPTER).get("base_model_name_or_path"))
    base = os.path.normpath(folder / named) if (folder / named).exists() else named
    adapter = load_model(base, **settings)
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(
            f"{folder} holds adapters, which need peft; install it with pip install 'lens-rnn[elk]'"
        ) from None
    try:
        adapter.set_training(True)  # low-rank adapters are added to the weights that they were trained with
        PeftModel.from_pretrained(adapter.model, folder).merge_and_unload()
        adapter.set_training(False)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise ModelError(f"the adapters in {folder} do not fit {base}: {' '.join(str(error).split())[:300]}") from error
    adapter.model.requires_grad_(False)
    adapter.model.config.name_or_path = str(name)
    return QuirkyModel(adapter, base, report)


def open_lens(model: QuirkyModel, resource: str | None = None) -> tuple[Lens, str]:
    """The lens to read a quirky model with, and its name: the one asked for, or that of `default_lens` for the model,
    or else for its base, or else the logit lens.

    Raises ArtifactError if it was fitted on a model that is neither this one nor its base.
    """
    adapter = model.adapter
    names = [name for name in (adapter.name, model.base) if name]
    source = resource or next(filter(None, map(default_lens, names)), None)
    if source is None:
        return LogitLens.from_adapter(adapter), "logit"
    unembedding = Unembedding(adapter)
    lens = open_any_lens(adapter, source, unembedding)
    if not isinstance(lens, TunedLens):  # no other kind's files say what they were fitted on
        return lens, str(source)
    artifact = artifacts.load(source)
    known = artifact.report.model.unembedding_sha256
    fitted_on = str(artifact.config.get("base_model_name_or_path"))
    named = [Path(name).name for name in [*names, model.report.base if model.report else ""]]
    if known != unembedding.sha256() and Path(fitted_on).name not in named:
        raise ArtifactError(
            f"the lens in {source} was fitted on {fitted_on}, which is neither {' nor '.join(names)}; name another "
            "--lens"
        )
    return lens, str(source)
