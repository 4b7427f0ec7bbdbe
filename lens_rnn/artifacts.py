"""A lens as files: config.json and params.pt, which stock tuned-lens reads, and fit.json, which says how the lens was made.

    config.json   exactly the fields of tuned_lens.nn.lenses.TunedLensConfig
    params.pt     float32 state dict of a ModuleList of Linear: "0.weight" (d_model, d_model), "0.bias" (d_model), "1.weight", …
    fit.json      settings, data, hashes, and each layer's figures before and after

This module knows files and state dicts only, no models.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lens_rnn.errors import ArtifactError

import torch
from torch import Tensor
from tuned_lens.nn.lenses import TunedLensConfig

CONFIG, PARAMS, FIT = "config.json", "params.pt", "fit.json"
LENS_TYPE = "linear_tuned_lens"
_CONFIG_FIELDS = set(TunedLensConfig.__dataclass_fields__)


class Artifact(NamedTuple):
    """A lens read from files, not yet attached to a model."""

    config: dict[str, Any]
    translators: dict[str, Tensor]
    """State dict of the translators, float32, on the CPU."""
    fit: dict[str, Any]
    """fit.json, or {} where the lens has none."""
    where: str


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file beside `path`, then rename it there, so that `path` is always whole or absent.

    An error, a full disk for instance, leaves no partial file behind. An OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        # torch.save turns the OSError of a full disk into a RuntimeError about positions in its file
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and cause.filename in (None, name):
            raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused: JSON has none."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def save(folder: Path, config: dict[str, Any], translators: dict[str, Tensor]) -> None:
    """Write config.json and params.pt into `folder`."""
    state = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in translators.items()}
    write_atomically(folder / PARAMS, lambda file: torch.save(state, file))
    write_json(folder / CONFIG, config)


def load(resource: str | Path) -> Artifact:
    """Read a lens from a folder or, if there is none of that name, from the Hub as tuned-lens names its resources.

    Raises ArtifactError, in one line, if it is missing, damaged, unsafe to load, or not a linear tuned lens.
    """
    config_path, params_path = _locate(resource)
    where = str(config_path.parent)
    config = read_json(config_path)
    if config.get("lens_type", LENS_TYPE) != LENS_TYPE:
        raise ArtifactError(f"{where} holds a lens of type {config['lens_type']!r}; only {LENS_TYPE!r} can be read")
    for field in ("d_model", "num_hidden_layers"):
        value = config.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArtifactError(f"{config_path} does not say {field} as a whole number above 0; it is not a tuned lens")
    translators = _read_params(params_path)
    _check_shapes(translators, config["d_model"], config["num_hidden_layers"], config.get("bias", True), where)
    fit_path = config_path.parent / FIT
    fit = read_json(fit_path) if fit_path.exists() else {}
    if not isinstance(fit.get("model", {}), dict):
        raise ArtifactError(f"{fit_path} does not describe a model under 'model'; remove it or write the lens again")
    return Artifact(config, translators, fit, where)


def sha256_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors: names, shapes, dtypes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(data.shape)}{data.dtype}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _locate(resource: str | Path) -> tuple[Path, Path]:
    """Paths of config.json and params.pt."""
    folder = Path(resource).expanduser()
    if folder.is_dir():
        missing = [name for name in (CONFIG, PARAMS) if not (folder / name).is_file()]
        if missing:
            raise ArtifactError(f"the folder {folder} holds no lens: {' and '.join(missing)} missing")
        return folder / CONFIG, folder / PARAMS
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; name the folder that holds the lens")
    if folder.is_absolute() or str(resource).startswith((".", "~")):
        raise ArtifactError(f"no such lens folder: {folder}")
    return _download(str(resource))


def _download(resource: str) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download

    place: dict[str, Any] = {
        "repo_id": os.environ.get("TUNED_LENS_REPO_ID") or "AlignmentResearch/tuned-lens",
        "repo_type": os.environ.get("TUNED_LENS_REPO_TYPE") or "space",
        "subfolder": f"lens/{resource}",
    }
    try:
        return Path(hf_hub_download(filename=CONFIG, **place)), Path(hf_hub_download(filename=PARAMS, **place))
    except Exception as error:  # offline, missing, private: huggingface_hub has a type for each
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"no lens folder {resource!r} here, and {place['repo_id']} does not give it ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ArtifactError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits, endless brackets
        raise ArtifactError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} does not hold a JSON object")
    return value


def _read_params(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is, as IndexError or AssertionError too
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ArtifactError(f"{path} cannot be read safely: it is damaged or holds more than tensors ({reason})") from None
    if not isinstance(state, dict) or not all(map(_is_plain, state.values())):
        raise ArtifactError(f"{path} is not a state dict of translators")
    return {str(name): tensor.float() for name, tensor in state.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _check_shapes(translators: dict[str, Tensor], d_model: int, layers: int, bias: bool, where: str) -> None:
    indices = range(min(layers, len(translators) + 1))  # as many as it takes to see that there are not enough
    expected: dict[str, tuple[int, ...]] = {f"{i}.weight": (d_model, d_model) for i in indices}
    if bias:
        expected |= {f"{i}.bias": (d_model,) for i in indices}
    if odd := sorted(set(expected) ^ set(translators)):
        what = "is missing" if odd[0] in expected else "has no place there"
        raise ArtifactError(f"{where}: params.pt does not hold the {layers} linear translators of config.json: {odd[0]!r} {what}")
    for name, shape in expected.items():
        if tuple(translators[name].shape) != shape:
            raise ArtifactError(f"{where}: {name} has shape {tuple(translators[name].shape)}, config.json says {shape}")
        if not translators[name].isfinite().all():
            raise ArtifactError(f"{where}: {name} holds NaN or infinity")
