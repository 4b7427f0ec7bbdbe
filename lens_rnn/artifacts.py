"""A lens as files: config.json and params.pt, which stock tuned-lens reads, and fit.json, which says how the lens was
made.

    config.json   exactly the fields of tuned_lens.nn.lenses.TunedLensConfig
    params.pt     float32 state dict of a ModuleList of Linear: "0.weight" (d_model, d_model), "0.bias" (d_model),
                  "1.weight", …
    fit.json      a `FitReport`: settings, data, hashes, and each layer's figures before and after
    README.md, perplexity.png   the model card and its figure, beside a lens that was fitted here

This module knows files and state dicts only, no models.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lens_rnn import hub
from lens_rnn.errors import ArtifactError
from lens_rnn.files import read_json, write_atomically, write_json
from lens_rnn.fit_report import FORMAT, FitReport
from lens_rnn.reports import read_report, to_json, write_report

import torch
from torch import Tensor
from tuned_lens.nn.lenses import TunedLensConfig

CONFIG, PARAMS, FIT, CARD, FIGURE = "config.json", "params.pt", "fit.json", "README.md", "perplexity.png"
LENS_TYPE = "linear_tuned_lens"
_CONFIG_FIELDS = set(TunedLensConfig.__dataclass_fields__)

log = logging.getLogger(__name__)


class Artifact(NamedTuple):
    """A lens read from files, not yet attached to a model."""

    config: dict[str, Any]
    translators: dict[str, Tensor]
    """State dict of the translators, float32, on the CPU."""
    report: FitReport
    """fit.json; an empty report where the lens has none."""
    where: str


def save(folder: Path, config: dict[str, Any], translators: dict[str, Tensor]) -> None:
    """Write config.json and params.pt into `folder`."""
    state = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in translators.items()}
    write_atomically(folder / PARAMS, lambda file: torch.save(state, file))
    write_json(folder / CONFIG, config)


def save_fit_report(folder: Path, report: FitReport) -> None:
    """Write fit.json into `folder`."""
    write_report(folder / FIT, to_json(report), FORMAT)


def load_fit_report(folder: Path) -> FitReport:
    """Read fit.json of `folder`; an empty report where there is none. Raises ArtifactError if it is not one, or is of a
    later format than this version reads."""
    path = folder / FIT
    return read_report(path, FitReport, FORMAT) if path.exists() else FitReport()


def load(
    resource: str | Path,
    *,
    translators: int | None = None,
    repo_id: str | None = None,
    repo_type: str | None = None,
    revision: str | None = None,
    subfolder: str = hub.SUBFOLDER,
) -> Artifact:
    """Read a lens from a folder or, if there is none of that name, from the Hub.

    On the Hub it is `subfolder`/`resource` of a repository, as tuned-lens names its resources: of the Space
    AlignmentResearch/tuned-lens where neither `repo_id` and `repo_type` ("model", "dataset" or "space") nor
    TUNED_LENS_REPO_ID and TUNED_LENS_REPO_TYPE say another. Where they do not, `resource` can also be the name of a
    model repository that was pushed to. translators: how many it must hold, where that is not what its config.json
    says.

    Raises ArtifactError, in one line, if it is missing, damaged, unsafe to load, or not a linear tuned lens.
    """
    folder = _local(resource)
    if folder is None:
        folder = hub.fetch(
            str(resource),
            (PARAMS, CONFIG),
            (FIT,),
            repo_id=repo_id,
            repo_type=repo_type,
            revision=revision,
            subfolder=subfolder,
        )
    return _read(folder, translators)


def available(
    repo_id: str | None = None,
    repo_type: str | None = None,
    revision: str | None = None,
    subfolder: str = hub.SUBFOLDER,
) -> list[str]:
    """Names of the lenses that `load` finds in a repository on the Hub, chosen as there. Raises ArtifactError if it
    cannot be listed."""
    return hub.available((PARAMS, CONFIG), repo_id, repo_type, revision, subfolder)


def push(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, dry_run: bool = False
) -> list[str]:
    """Upload a lens to a model repository on the Hub, which is made if there is none. Returns the files, none of which
    are checkpoints.

    private: make the repository so. revision: the branch, by default main. dry_run: only check that the folder holds a
    lens.

    Raises ArtifactError if it does not or if the Hub refuses; then the message has a command that tries again.
    """
    path = _local(folder)
    if path is None:
        raise ArtifactError(f"no such lens folder: {folder}")
    _read(path)
    files = [name for name in (CONFIG, PARAMS, FIT, CARD, FIGURE) if (path / name).is_file()]
    if not dry_run:
        hub.upload(path, files, repo_id, private, revision)
    return files


def sha256_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors: names, shapes, dtypes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        for part, data in _parts(name, tensor.detach()):
            digest.update(f"{part}{tuple(data.shape)}{data.dtype}".encode())
            digest.update(data.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a tensor is made of: itself, or of a quantised one its values, scales and what else it
    holds."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _parts(f"{name}.{inner}", getattr(tensor, inner))


def _local(resource: str | Path) -> Path | None:
    """The folder of that name, with a lens in it; None if there is none and it can be a name on the Hub."""
    folder = Path(resource).expanduser()
    if folder.is_dir():
        missing = [name for name in (CONFIG, PARAMS) if not (folder / name).is_file()]
        if missing:
            raise ArtifactError(f"the folder {folder} holds no lens: {' and '.join(missing)} missing")
        return folder
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; name the folder that holds the lens")
    if folder.is_absolute() or str(resource).startswith((".", "~")):
        raise ArtifactError(f"no such lens folder: {folder}")
    return None


def _read(folder: Path, count: int | None = None) -> Artifact:
    config_path = folder / CONFIG
    config = read_json(config_path)
    if config.get("lens_type", LENS_TYPE) != LENS_TYPE:
        raise ArtifactError(f"{folder} holds a lens of type {config['lens_type']!r}; only {LENS_TYPE!r} can be read")
    for field in ("d_model", "num_hidden_layers"):
        value = config.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArtifactError(f"{config_path} does not say {field} as a whole number above 0; it is not a tuned lens")
    if unknown := sorted(config.keys() - _CONFIG_FIELDS):
        log.warning("%s has settings that mean nothing here: %s", config_path, ", ".join(unknown))
    translators = _read_params(folder / PARAMS)
    _check_shapes(translators, config, count, folder)
    return Artifact(config, translators, load_fit_report(folder), str(folder))


def _read_params(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # damaged bytes make the unpickler fail in every way: IndexError, AssertionError, more
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{path} cannot be read safely: it is damaged or holds more than tensors ({reason})"
        ) from None
    if not isinstance(state, dict) or not all(map(_is_plain, state.values())):
        raise ArtifactError(f"{path} is not a state dict of translators")
    return {str(name): tensor.float() for name, tensor in state.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _check_shapes(translators: dict[str, Tensor], config: dict[str, Any], count: int | None, folder: Path) -> None:
    """Refuse what is not one matrix and one bias for each of `count` translators or, by default, of as many as
    config.json says."""
    d_model, layers = config["d_model"], count or config["num_hidden_layers"]
    indices = range(min(layers, len(translators) + 1))  # as many as it takes to see that there are not enough
    expected: dict[str, tuple[int, ...]] = {f"{i}.weight": (d_model, d_model) for i in indices}
    if config.get("bias", True):
        expected |= {f"{i}.bias": (d_model,) for i in indices}
    if low_rank := sorted(name for name in translators if re.fullmatch(r"\d+\.(down|up)\.\w+", name)):
        raise ArtifactError(
            f"{folder} holds a low-rank lens ({low_rank[0]!r} in params.pt); only full translators can be read"
        )
    if odd := sorted(set(expected) ^ set(translators)):
        trouble = "is missing" if odd[0] in expected else "has no place there"
        of = "of config.json" if count is None else "that the stated layers need"
        held = len(translators) // (2 if config.get("bias", True) else 1)
        left_out = count is None and held and odd[0].startswith(f"{held}.")  # nothing but the last ones is missing
        hint = f"; if layers were left out, state those it has, for example layers=range({held})" if left_out else ""
        raise ArtifactError(
            f"{folder}: params.pt does not hold the {layers} linear translators {of}: {odd[0]!r} {trouble}{hint}"
        )
    for name, shape in expected.items():
        if tuple(translators[name].shape) != shape:
            raise ArtifactError(
                f"{folder}: {name} has shape {tuple(translators[name].shape)}, config.json says {shape}"
            )
        if not translators[name].isfinite().all():
            raise ArtifactError(f"{folder}: {name} holds NaN or infinity")
