"""Which lens a command reads where none is named: the one that was fitted last for the model, or the one beside it."""

from pathlib import Path

from lens_rnn.errors import LensRNNError
from lens_rnn.files import read_json

LENSES = Path("lenses")
"""Where train/fit_lens.py writes, in the folder that it is run in."""


def default_lens(model: str, revision: str | None = None, lenses: Path = LENSES) -> str | None:
    """The folder in `lenses` whose fit for this model ended last, else the folder named like the model with -lens at
    its end, else None.

    A fit that has not ended has no fit.json, which also names the model; one that cannot be read is passed by.
    """
    fits = [path for path in lenses.glob("*/fit.json") if _is_of(path, model, revision)]
    if fits:
        return str(max(fits, key=lambda path: (path.stat().st_mtime_ns, path.parent.name)).parent)
    beside = Path(f"{model.rstrip('/')}-lens")
    return str(beside) if beside.is_dir() else None


def _is_of(fit: Path, model: str, revision: str | None) -> bool:
    try:
        report = read_json(fit)
        name, settings = str(report["model"]["name"]), report.get("settings", {})
        if settings.get("revision") != revision:
            return False
    except (LensRNNError, OSError, KeyError, TypeError, AttributeError):
        return False
    return name == model or (Path(model).exists() and Path(name).resolve() == Path(model).resolve())
