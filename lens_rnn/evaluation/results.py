"""Result files: `aggregate_metrics.json` in the tuned-lens schema, ours and published ones, as curves over depth.

The schema is `{"logit"|"tuned": {"ce"|"entropy"|"kl": {"layer_0": x}}, "baseline": {"ce"|"entropy": {"final": x}}}`, in
bits per byte. It does not say what a layer is, and families differ, so `eval/perplexity.py` adds a key "lens_rnn" with
the depth of each layer and the baselines. For a file without that key the family decides; it is given (`mamba:FILE`) or
named by a folder (`mamba/130m/FILE`).
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lens_rnn.errors import DataError
from lens_rnn.evaluation.curves import UNITS, Curves, LayerTransfer
from lens_rnn.looks import title_of

import numpy as np

FILE_NAME = "aggregate_metrics.json"
SCRIPT = "eval/perplexity.py"
PUBLISHED_UNIFORM = 3.63
"""Bits per byte of the uniform distribution over the vocabulary that the published Mamba, RWKV-4 and Pythia results
share."""
FAMILIES = {"mamba": "mamba", "rwkv": "rwkv", "pythia": "gpt_neox", "gpt_neox": "gpt_neox"}
"""What a folder or a `FAMILY:` prefix may say, and the family it means."""
HOW_TO_NAME = f"say it as FAMILY:PATH with one of {', '.join(FAMILIES)}"


def read_results(specs: Sequence[str]) -> list[Curves]:
    """The curves of every result named. Those of one name get so much of their folders as tells them apart.

    Raises DataError as `read_curves` does.
    """
    results = [read_curves(spec) for spec in specs]
    paths = [_split(spec)[1].resolve() for spec in specs]
    folders = [path.parent if path.name == FILE_NAME else path for path in paths]
    count = Counter(curves.name for curves in results)
    return [
        replace(curves, name=f"{curves.name} ({_telling(folder, folders)})") if count[curves.name] > 1 else curves
        for curves, folder in zip(results, folders, strict=True)
    ]


def find_results(specs: Sequence[str]) -> list[str]:
    """Every result that the specs stand for, each once: a folder that holds none itself stands for all in the folders
    below it, by path.

    Raises DataError where such a folder has none.
    """
    found: dict[Path, str] = {}
    for spec in specs:
        family, path = _split(spec)
        inside = path.is_dir() and not (path / FILE_NAME).exists()
        files = sorted(path.rglob(FILE_NAME)) if inside else [path / FILE_NAME if path.is_dir() else path]
        if not files:
            raise DataError(f"no result in {path}; name folders that hold an {FILE_NAME}, or write one with {SCRIPT}")
        for file in files:
            found.setdefault(file.resolve(), f"{family}:{file}" if family else str(file))
    return list(found.values())


def read_curves(spec: str | Path) -> Curves:
    """The curves in a result file or in a folder that holds one; `FAMILY:PATH` names the family where the file does
    not.

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
            raise DataError(
                f"{path} is in {about['units']}, but curves are drawn in {UNITS}; write it again with {SCRIPT}"
            )
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
        transfer=result.transfer(depth) if result.has("tuned.layer_transfer") else None,
        bits_per_byte_per_nat=result.optional("lens_rnn.bits_per_byte_per_nat"),
        logit_kl=result.layers("logit.kl", len(logit)) if result.has("logit.kl") else None,
        tuned_kl=result.layers("tuned.kl", len(logit)) if result.has("tuned.kl") else None,
        family=FAMILIES.get(family or "", family),
    )


class _Result:
    """A result file whose parts are asked for by dotted key; whatever is wrong is a DataError that names file and
    key."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"no result at {path}; name an {FILE_NAME} or a folder that holds one") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path} is not JSON ({error}); name the {FILE_NAME} that {SCRIPT} wrote") from None
        if not isinstance(content, dict):
            raise DataError(f"{path} holds no result; name the {FILE_NAME} that {SCRIPT} wrote")
        self.path = path
        self.content: dict[str, Any] = content

    def get(self, key: str) -> Any:
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise DataError(f"{self.path} has no {key}; name the {FILE_NAME} that {SCRIPT} wrote")
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
            raise DataError(
                f"{self.path}: {key} has {len(table)} entries but no {missing}; layers must run from layer_0 without "
                "a gap"
            )
        if not names:
            raise DataError(f"{self.path}: {key} has no layers; run {SCRIPT} again")
        if expected is not None and len(names) != expected:
            raise DataError(f"{self.path}: {key} has {len(names)} layers and logit.ce {expected}; they must agree")
        return np.array([self._finite(f"{key}.{name}", table[name]) for name in names])

    def depth(self) -> np.ndarray:
        depth = self.layers("lens_rnn.depth", len(self.table("logit.ce")))
        if depth[0] < 0 or depth[-1] > 1 or np.any(np.diff(depth) <= 0):
            raise DataError(f"{self.path}: lens_rnn.depth must increase from layer to layer and stay between 0 and 1")
        return depth

    def transfer(self, depth: np.ndarray) -> LayerTransfer:
        """tuned.layer_transfer, as {"ce"|"kl": {translator: {source: x}}}. The translator one past the last layer
        belongs to depth 1."""
        key = "tuned.layer_transfer"
        depths = {f"layer_{i}": value for i, value in enumerate(np.append(depth, 1.0))}
        table = self.table(f"{key}.ce")
        first = next(iter(table.values()), None)
        if not isinstance(first, dict) or not first or not first.keys() <= table.keys() <= depths.keys():
            raise DataError(
                f"{self.path}: {key}.ce must hold translator: {{source: number}}, with layers of the result as both"
            )
        rows, sources = ([name for name in depths if name in names] for names in (table, first))
        ce, kl = (
            np.array([[self.number(f"{key}.{kind}.{row}.{source}") for source in sources] for row in rows])
            for kind in ("ce", "kl")
        )
        return LayerTransfer(
            translator_depth=np.array([depths[name] for name in rows]),
            source_depth=np.array([depths[name] for name in sources]),
            ce=ce,
            kl=kl,
            own=np.array([rows.index(name) for name in sources]),
        )

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{self.path}: {key} must be a finite number, not {value!r:.40}")
        return float(value)


def _telling(folder: Path, folders: list[Path]) -> str:
    """As much of a folder's path, from its end, as no other folder shares."""
    ends = ["/".join(folder.parts[-n:]) for n in range(1, len(folder.parts))]
    return next((end for end in ends if sum(str(other).endswith(f"/{end}") for other in folders) == 1), folder.name)


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
    """From the published layout FAMILY/SIZE/FILE or FAMILY/FILE. Folders further up say nothing about what the file
    holds."""
    for folder in path.resolve().parents[:2]:
        if folder.name.lower() in FAMILIES:
            return folder.name.lower()
    raise DataError(f"{path} does not say what its layers are, and no folder names the model's family; {HOW_TO_NAME}")


def _published_depth(family: str, rows: int) -> np.ndarray:
    """(rows,) Mamba's rows are the outputs of all blocks but the last, RWKV's of all blocks, Pythia's are the inputs of
    all blocks."""
    index = np.arange(rows)
    return {"mamba": (index + 1) / (rows + 1), "rwkv": (index + 1) / rows, "gpt_neox": index / rows}[family]


def _published_name(family: str, path: Path) -> str:
    """Of mamba/130m/aggregate_metrics.json: "Mamba 130m"."""
    label = path.resolve().parent.name if path.name == FILE_NAME else path.stem
    title = title_of(family)
    return title if label.lower() == family else f"{title} {label}"
