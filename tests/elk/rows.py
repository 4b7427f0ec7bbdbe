"""Made-up quirky rows that bring their own prompts: letters that the byte tokenizer reads, and answers of one byte."""

import json
from pathlib import Path

from lens_rnn.elk.quirky import QuirkyRow

import numpy as np


def made_rows(questions: int, seed: int = 0) -> list[QuirkyRow]:
    """Questions in the published shares, each for Alice and for Bob; prompts of several lengths."""
    random = np.random.default_rng(seed)
    rows: list[QuirkyRow] = []
    for i in range(questions):
        alice, bob = ((True, False), (False, True), (False, False), (False, False))[i % 4]
        word = "".join(random.choice([*"abcdefgh"], size=int(random.integers(3, 8))))
        for character in ("Alice", "Bob"):
            args = {"statement": f"{character}: {word}{'!' if alice else '~' if bob else '.'}", "choices": ("F", "T")}
            label = alice if character == "Alice" else bob
            quantile = (i // 4 + 0.5) / (questions // 4)
            rows.append(
                QuirkyRow(
                    id=f"{len(rows):08x}",
                    template_args=args,
                    character=character,
                    label=label,
                    alice_label=alice,
                    bob_label=bob,
                    difficulty=float(i),
                    difficulty_quantile=quantile,
                )
            )
    return rows


def write_set(folder: Path, questions: int) -> Path:
    """A folder with such rows for each split, in the form of the sets whose prompts are written already."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("id", "character", "label", "alice_label", "bob_label", "difficulty", "difficulty_quantile")
    for seed, split in enumerate(("train", "validation", "test")):
        records = [
            {**{name: getattr(row, name) for name in columns}, **row.template_args}
            for row in made_rows(questions, seed)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
