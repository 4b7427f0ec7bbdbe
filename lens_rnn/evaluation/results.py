"""Result files: `aggregate_metrics.json` in the tuned-lens schema, ours and published ones, as curves over depth.

The schema is `{"logit"|"tuned": {"ce"|"entropy"|"kl": {"layer_0": x}}, "baseline": {"ce"|"entropy": {"final": x}}}`, in bits per byte.
It does not say what a layer is, and families differ, so `eval/perplexity.py` adds a key "lens_rnn" with the depth of each layer and the
baselines. For a file without that key the family decides; it is given (`mamba:FILE`) or named by a folder (`mamba/130m/FILE`).
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_rnn.errors import DataError

import numpy as np

FILE_NAME = "aggregate_metrics.json"
UNITS = "bits per byte"
PUBLISHED_UNIFORM = 3.63
"""Bits per byte of the uniform distribution over the vocabulary that the published Mamba, RWKV-4 and Pythia results share."""
FAMILIES = {"mamba": "mamba", "rwkv": "rwkv", "pythia": "gpt_neox", "gpt_neox": "gpt_neox"}
"""What a folder or a `FAMILY:` prefix may say, and the family it means."""
TITLES = {"mamba": "Mamba", "rwkv": "RWKV", "pythia": "Pythia", "gpt_neox": "GPT-NeoX"}
HOW_TO_NAME = f"say it as FAMILY:PATH with one of {', '.join(FAMILIES)}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Cross-entropy over the depth of one model. Arrays have shape (layers,); every entropy is in bits per byte."""

    name: str
    """What a legend calls it."""
    depth: np.ndarray
    """Fraction of blocks applied at each layer, increasing, 0 to 1."""
    logit_ce: np.ndarray
    """Cross-entropy of the logit lens against the next token."""
    tuned_ce: np.ndarray | None = None
    """The same for the tuned lens."""
    model_ce: float
    """Cross-entropy of the model itself."""
    uniform_ce: float | None = None
    """Cross-entropy of the uniform distribution over the vocabulary."""
    unigram_ce: float | None = None
    """Cross-entropy of token frequencies."""
    logit_kl: np.ndarray | None = None
    """KL from the model's prediction to the logit lens's."""
    tuned_kl: np.ndarray | None = None
    """The same for the tuned lens."""
    family: str | None = None
    """Architecture, for colours: "mamba", "rwkv", "gpt_neox" or another."""

    def __post_init__(self) -> None:
        for field in ("logit_ce", "tuned_ce", "logit_kl", "tuned_kl"):
            values = getattr(self, field)
            if values is not None and np.shape(values) != np.shape(self.depth):
                raise DataError(f"{self.name}: {field} has {np.size(values)} layers and depth {np.size(self.depth)}; they must agree")

    @property
    def broken(self) -> str | None:
        """Why the result cannot be trusted, or None: the model itself predicts worse than a uniform distribution."""
        if self.uniform_ce is None or self.model_ce <= self.uniform_ce:
            return None
        return f"model {self.model_ce:.2f} > uniform {self.uniform_ce:.2f}"

    @property
    def parameters(self) -> float | None:
        """Number of parameters, where a name like "mamba-130m-hf", "RWKV 1b5" or "Pythia 2.8b" tells it."""
        found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(\d*)(?![a-z0-9])", self.name.lower())
        if not found:
            return None
        return float(f"{found[1]}.{found[3]}" if found[3] else found[1]) * {"m": 1e6, "b": 1e9}[found[2]]

    def joined_to_model(self, ce: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth and cross-entropy of a lens, ended by the model itself at depth 1 where the layers end before it."""
        if self.depth[-1] >= 1:
            return self.depth, ce
        return np.append(self.depth, 1.0), np.append(ce, self.model_ce)


def read_curves(spec: str | Path) -> Curves:
    """The curves in a result file or in a folder that holds one; `FAMILY:PATH` names the family where the file does not.

    Raises DataError where the file is missing, is not a result, or does not let the depth of its layers be known.
    """
    family, path = _split(str(spec))
    path = path / FILE_NAME if path.is_dir() else path
    result = _Result(path)
    about = result.table("lens_rnn") if "lens_rnn" in result.content else None
    logit = result.layers("logit.ce")
    if about is None:
        family = family or _family_of_folders(path)
        depth = _published_depth(FAMILIES[family], len(logit))
        name = _published_name(family, path)
    else:
        if about.get("units", UNITS) != UNITS:
            raise DataError(f"{path} is in {about['units']}, but curves are drawn in {UNITS}; write it again with eval/perplexity.py")
        depth = result.depth()
        name = Path(str(about.get("model") or path.resolve().parent)).name
        family = str(about["family"]) if about.get("family") else family
    return Curves(
        name=name,
        depth=depth,
        logit_ce=logit,
        tuned_ce=result.layers("tuned.ce", len(logit)) if "tuned" in result.content else None,
        model_ce=result.number("baseline.ce.final"),
        uniform_ce=PUBLISHED_UNIFORM if about is None else result.optional("lens_rnn.uniform_ce"),
        unigram_ce=result.optional("lens_rnn.unigram_ce"),
        logit_kl=result.layers("logit.kl", len(logit)) if result.has("logit.kl") else None,
        tuned_kl=result.layers("tuned.kl", len(logit)) if result.has("tuned.kl") else None,
        family=FAMILIES.get(family or "", family),
    )


class _Result:
    """A result file whose parts are asked for by dotted key; whatever is wrong is a DataError that names file and key."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"no result at {path}; name an {FILE_NAME} or a folder that holds one") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path} is not JSON ({error}); name the {FILE_NAME} that eval/perplexity.py wrote") from None
        if not isinstance(content, dict):
            raise DataError(f"{path} holds no result; name the {FILE_NAME} that eval/perplexity.py wrote")
        self.path = path
        self.content: dict[str, Any] = content

    def get(self, key: str) -> Any:
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise DataError(f"{self.path} has no {key}; name the {FILE_NAME} that eval/perplexity.py wrote")
            value = value[part]
        return value

    def has(self, key: str) -> bool:
        """Whether a key of the form "outer.inner" is there and not null."""
        outer, inner = key.split(".")
        return isinstance(self.content.get(outer), dict) and self.content[outer].get(inner) is not None

    def table(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if not isinstance(value, dict):
            raise DataError(f"{self.path}: {key} must hold keys and values, not {value!r:.40}")
        return value

    def number(self, key: str) -> float:
        return self._finite(key, self.get(key))

    def optional(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def layers(self, key: str, expected: int | None = None) -> np.ndarray:
        """The values of layer_0 … layer_n-1 in order, (n,); every layer must be there."""
        table = self.table(key)
        names = [f"layer_{i}" for i in range(len(table))]
        if missing := next((name for name in names if name not in table), None):
            raise DataError(f"{self.path}: {key} has {len(table)} entries but no {missing}; layers must run from layer_0 without a gap")
        if not names:
            raise DataError(f"{self.path}: {key} has no layers; run eval/perplexity.py again")
        if expected is not None and len(names) != expected:
            raise DataError(f"{self.path}: {key} has {len(names)} layers and logit.ce {expected}; they must agree")
        return np.array([self._finite(f"{key}.{name}", table[name]) for name in names])

    def depth(self) -> np.ndarray:
        depth = self.layers("lens_rnn.depth", len(self.table("logit.ce")))
        if depth[0] < 0 or depth[-1] > 1 or np.any(np.diff(depth) <= 0):
            raise DataError(f"{self.path}: lens_rnn.depth must increase from layer to layer and stay between 0 and 1")
        return depth

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{self.path}: {key} must be a finite number, not {value!r:.40}")
        return float(value)


def _split(spec: str) -> tuple[str | None, Path]:
    """`FAMILY:PATH` as its two parts; anything that exists is a path, colon or not."""
    family, colon, path = spec.partition(":")
    if not colon or Path(spec).exists():
        return None, Path(spec)
    if family.lower() in FAMILIES:
        return family.lower(), Path(path)
    if Path(path).exists():
        raise DataError(f"unknown family {family!r} in {spec}; {HOW_TO_NAME}")
    return None, Path(spec)


def _family_of_folders(path: Path) -> str:
    """From the published layout FAMILY/SIZE/FILE or FAMILY/FILE. Folders further up say nothing about what the file holds."""
    for folder in path.resolve().parents[:2]:
        if folder.name.lower() in FAMILIES:
            return folder.name.lower()
    raise DataError(f"{path} does not say what its layers are, and no folder names the model's family; {HOW_TO_NAME}")


def _published_depth(family: str, rows: int) -> np.ndarray:
    """(rows,) Mamba's rows are the outputs of all blocks but the last, RWKV's of all blocks, Pythia's are the inputs of all blocks."""
    index = np.arange(rows)
    return {"mamba": (index + 1) / (rows + 1), "rwkv": (index + 1) / rows, "gpt_neox": index / rows}[family]


def _published_name(family: str, path: Path) -> str:
    """Of mamba/130m/aggregate_metrics.json: "Mamba 130m"."""
    label = path.resolve().parent.name if path.name == FILE_NAME else path.stem
    return TITLES[family] if label.lower() == family else f"{TITLES[family]} {label}"
