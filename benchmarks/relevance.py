"""Whether MambaLRP ranks tokens better than gradient × input, recency or chance: how far a logit falls as the highest
are taken out.

python benchmarks/relevance.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.data import DataConfig, Role, open_source
from lens_rnn.intervals import mean_estimate
from lens_rnn.lens import TunedLens
from lens_rnn.models import ModelAdapter, load_model
from lens_rnn.ranges import SEED, whole
from lens_rnn.run import ModelConfig
from lens_rnn.views.relevance import METHODS, Explained, relevance
from lens_rnn.views.removal import without_tokens

import numpy as np
from tqdm import tqdm

from common import report

RANDOM_ORDERS = 8
ROLES: tuple[Role, ...] = ("fit", "eval")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fall of the explained logit by the order in which tokens are left out."""

    model: str = ModelConfig.model
    """Folder of a Mamba-1 with its lens beside it."""
    texts: Annotated[int, whole(1)] = 100
    """Texts of the standard library, each of another file: texts of one file are alike, and intervals count texts."""
    tokens: Annotated[int, whole(2)] = 48
    """Tokens of a text; the last is where the logit is read and stays."""
    counts: Annotated[tuple[int, ...], whole(1)] = (1, 2, 4, 8, 16, 24, 32, 40)
    """How many tokens are left out."""
    layer: Annotated[int, whole()] = 3
    """The layer whose tuned lens is explained, besides the model."""
    seed: Annotated[int, SEED] = 0
    """Of the texts and the random orders."""
    output: Path | None = None
    """JSON file for the figures."""


def texts_of_files(adapter: ModelAdapter, config: Config, rng: np.random.Generator) -> list[list[int]]:
    """One text (tokens), from a random place, of each of so many files, of those fitted on and those held out."""
    source = open_source(DataConfig())
    documents = [document for role in ROLES for document in source.documents(role)]
    texts: list[list[int]] = []
    for i in rng.permutation(len(documents)).tolist():
        ids = list(adapter.tokenizer(documents[i].text)["input_ids"])
        if len(texts) < config.texts and len(ids) >= config.tokens:
            start = int(rng.integers(len(ids) - config.tokens + 1))
            texts.append(ids[start : start + config.tokens])
    return texts


def falls(adapter: ModelAdapter, lens: TunedLens, config: Config, layer: int | None) -> dict[str, np.ndarray]:
    """By order: the mean fall over the counts of each text, (texts), in logits. The quantity is the likeliest next
    token's logit."""
    rng = np.random.default_rng(config.seed)
    by_order: dict[str, list[float]] = {name: [] for name in (*METHODS, "last first", "random")}
    for ids in tqdm(texts_of_files(adapter, config, rng), desc=f"layer {layer}" if layer is not None else "model"):
        by_method = [relevance(adapter, ids, Explained(layer=layer), method=method, lens=lens) for method in METHODS]
        last = config.tokens - 1
        orders = [np.argsort(-r.tokens[:last].numpy(), kind="stable") for r in by_method] + [np.arange(last)[::-1]]
        orders += [rng.permutation(last) for _ in range(RANDOM_ORDERS)]
        values = without_tokens(adapter, ids, np.stack(orders), (0, *config.counts), by_method[0].explained, lens)
        fall = (values[:, :1] - values[:, 1:]).mean(1)  # (orders)
        for name, value in zip(by_order, [*fall[: len(METHODS) + 1], fall[len(METHODS) + 1 :].mean()], strict=True):
            by_order[name].append(float(value))
    return {name: np.array(values) for name, values in by_order.items()}


def row(name: str, by_quantity: list[dict[str, np.ndarray]]) -> list[str]:
    """One order: its fall, and by how much the first method's is more, with a 95 % interval over texts."""
    cells = [name]
    for fall in by_quantity:
        margin = mean_estimate(fall[METHODS[0]] - fall[name])
        cells += [f"{fall[name].mean():.2f}", "" if name == METHODS[0] else margin.rounded(2)]
    return cells


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    adapter = load_model(config.model, device="cpu")
    lens = TunedLens.load(adapter, f"{config.model.rstrip('/')}-lens")
    by_quantity = [falls(adapter, lens, config, layer) for layer in (None, config.layer)]
    header = [
        "order of removal",
        "model: fall",
        f"{METHODS[0]} more by",
        f"lens, layer {config.layer}: fall",
        f"{METHODS[0]} more by",
    ]
    rows = [row(name, by_quantity) for name in by_quantity[0]]
    counts = ", ".join(map(str, config.counts))
    notes = [
        f"{config.texts} texts of {config.tokens} tokens, each of another file; mean fall in logits over {counts} "
        "tokens left out."
    ]
    report(
        f"{Path(config.model).name}: what the likeliest next token's logit loses", header, rows, notes, config.output
    )


if __name__ == "__main__":
    cli.run(main, Config)
