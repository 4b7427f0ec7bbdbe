"""The model card of a quirky model."""

import platform
from pathlib import Path
from typing import Any

from lens_rnn.elk.report import QuirkyReport
from lens_rnn.files import write_text

import torch


def write_card(folder: Path, report: QuirkyReport) -> None:
    """Write README.md from what is in quirky.json."""
    settings, training, base = report.settings, report.training, Path(report.base).name
    adapters = settings["method"] == "lora"
    title = f"LoRA adapters of rank {settings['rank']} for `{base}`" if adapters else f"A fine-tuned {base}"
    rows = "".join(
        f"| {character} | **{rates.all:.3f}** ({rates.all_rows}) | {rates.easy:.3f} ({rates.easy_rows}) "
        f"| {rates.hard:.3f} ({rates.hard_rows}) |\n"
        for character, rates in report.quirkiness["test"].items()
    )
    flags = " \\\n    ".join(
        f"--{name.replace('_', '-')} {_words(settings[name])}" for name in _SHOWN if settings.get(name) is not None
    )
    text = f"""---
license: mit
{"library_name: peft" if adapters else "library_name: transformers"}
tags: [lens-rnn, elk, quirky]
---
# {folder.name}

{title}, made quirky on the set `{report.data.data}`: in Alice's context it tells the truth, in Bob's
it errs as he does. It says on purpose what is not true, and is for studies of what a model knows and does not say.

| held-out rows answered as the character would | all | easy | hard |
|---|---|---|---|
{rows}
In brackets: rows. Weights of step {training.best_step} of {settings["steps"]}, the best checkpoint by validation
loss. Training took {training.minutes} minutes ({platform.machine()}, threads: {training.cores},
torch {torch.__version__}). Load it with `lens_rnn.elk.models.load_quirky`; all settings and figures are in
`quirky.json`.

```bash
python train/finetune_quirky.py \\
    {flags} \\
    --output {settings["output"] or folder}
```
"""
    write_text(folder / "README.md", text)


_SHOWN = (
    *(
        "model",
        "data",
        "train_questions",
        "validation_questions",
        "test_questions",
        "data_seed",
        "method",
        "rank",
        "learning_rate",
    ),
    *("steps", "batch_size", "validation_rows", "seed"),
)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
