"""Results by their files: ours and published ones, as curves over depth.

A file of the plain tuned-lens schema does not say what a layer is, and families differ. There the family decides; it is
given (`mamba:FILE`) or named by a folder (`mamba/130m/FILE`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lens_rnn.errors import DataError
from lens_rnn.evaluation.curves import Curves, LayerTransfer
from lens_rnn.evaluation.result_file import FILE_NAME, SCRIPT, TransferValues, read_result
from lens_rnn.looks import title_of

import numpy as np

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
    specs_of: dict[Path, str] = {}
    for spec in specs:
        family, path = _split(spec)
        inside = path.is_dir() and not (path / FILE_NAME).exists()
        files = sorted(path.rglob(FILE_NAME)) if inside else [path / FILE_NAME if path.is_dir() else path]
        if not files:
            raise DataError(f"no result in {path}; name folders that hold an {FILE_NAME}, or write one with {SCRIPT}")
        for file in files:
            specs_of.setdefault(file.resolve(), f"{family}:{file}" if family else str(file))
    return list(specs_of.values())


def read_curves(spec: str | Path) -> Curves:
    """The curves in a result file or in a folder that holds one; `FAMILY:PATH` names the family where the file does
    not.

    Raises DataError where the file is missing, is not a result, or does not let the depth of its layers be known.
    """
    family, path = _split(str(spec))
    path = path / FILE_NAME if path.is_dir() else path
    result = read_result(path)
    about = result.about
    if about is None:
        family = family or _family_of_folders(path)
        depth = _published_depth(FAMILIES[family], len(result.logit.ce))
        name = _published_name(family, path)
    else:
        depth = about.depth
        name = Path(str(about.model or path.resolve().parent)).name
        family = str(about.family) if about.family else family
    tuned = result.tuned
    return Curves(
        name=name,
        depth=depth,
        logit_ce=result.logit.ce,
        tuned_ce=tuned.ce if tuned else None,
        model_ce=result.model_ce,
        uniform_ce=about.uniform_ce if about else PUBLISHED_UNIFORM,
        unigram_ce=about.unigram_ce if about else None,
        transfer=_transfer(tuned.transfer, depth) if tuned and tuned.transfer else None,
        bits_per_byte_per_nat=about.bits_per_byte_per_nat if about else None,
        logit_kl=result.logit.kl,
        tuned_kl=tuned.kl if tuned else None,
        family=FAMILIES.get(family or "", family),
        others={
            other: np.array([kinds.get("ce", {}).get(f"layer_{i}", np.nan) for i in range(len(depth))])
            for other, kinds in ((about.others if about else None) or {}).items()
        },
    )


def _transfer(values: TransferValues, depth: np.ndarray) -> LayerTransfer:
    """With the depths of its layers. The translator one past the last layer belongs to depth 1."""
    depths = np.append(depth, 1.0)
    return LayerTransfer(
        translator_depth=depths[list(values.translators)],
        source_depth=depths[list(values.sources)],
        ce=values.ce,
        kl=values.kl,
        own=np.array([values.translators.index(layer) for layer in values.sources]),
    )


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
