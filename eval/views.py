"""See which earlier tokens each block of a recurrent model reads, and which tokens a prediction comes from.

    python eval/views.py
    python eval/views.py --text "for i in range(10):" --token " in" --against " of" --layer 3
    python eval/views.py --model checkpoints/tiny-rwkv4

Writes attention.png and .html (hidden attention by layer, and the rollout), for Mamba-1 and Falcon-Mamba relevance.png
and .html, and views.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.drawing import save_page, save_png
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.tokens import token_reader, visible
from lens_rnn.lens import open_lens
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import MOST, whole
from lens_rnn.reports import write_report
from lens_rnn.run import (
    ModelConfig,
    begin_output,
    check_output,
    check_text,
    inputs_read,
    load_configured_model,
    start_processes,
)
from lens_rnn.views.attention import hidden_attention
from lens_rnn.views.attention_pictures import attention_html, attention_png
from lens_rnn.views.relevance import METHODS, Explained, Method, Relevance, relevance, relevance_models
from lens_rnn.views.relevance_pictures import relevance_html, relevance_png, relevance_strip

from tuned_lens.nn.lenses import Lens

TEXT = (
    'def read_lines(path):\n    """Return the lines of a file."""\n    with open(path) as file:\n        return file.'
)
FILES = ("attention.html", "attention.png", "relevance.html", "relevance.png", "views.json")
"""What is written, and replaced with --overwrite."""
FORMAT = 1
"""Of views.json; files from before there were formats have none."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """See which earlier tokens each block reads, and which tokens a prediction comes from."""

    text: str = TEXT
    """What the model reads."""
    token: str | None = None
    """Text of the token whose logit is explained, its leading space included. Default: the likeliest one."""
    against: str | None = None
    """Text of a token whose logit is subtracted."""
    position: Annotated[int, whole(-MOST)] = -1
    """Which token of the text the logit is read at: from 0, or from the end if negative."""
    layer: Annotated[int | None, whole()] = None
    """Explain what a lens reads at this layer in place of the model's own logit."""
    lens: str | None = None
    """Folder or tuned-lens resource of that lens, or "logit" for the logit lens. Default: the one in lenses/ that was
    fitted last for the model, or the folder named like the model plus -lens, or else the logit lens."""
    method: Method = "lrp"
    """lrp for MambaLRP, gradient for plain gradient × input."""
    layers: Annotated[tuple[int, ...] | None, whole()] = None
    """Layers of the hidden attention. Default: all."""
    units: Annotated[tuple[int, ...] | None, whole()] = None
    """Channels (Mamba-1, RWKV-4) or heads (Mamba-2, RWKV-5 to 7) to average over. Default: all."""
    output: Path = Path("results/views")
    """Folder of the results."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        check_text(self.text)
        for flag, word in (("--token", self.token), ("--against", self.against)):
            if word is not None:
                check_text(word, flag)
        if self.method not in METHODS:
            raise ConfigError(f"method {self.method!r} is unknown; choose {' or '.join(METHODS)}")

    @property
    def lens_name(self) -> str:
        return self.lens or self.default_lens or "logit"


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.output, config.overwrite)

    # Model and text.
    lens = "none: the model's own logit is explained" if config.layer is None else config.lens_name
    print(inputs_read(config.model, lens, text=f"{config.text[:60]!r}"), flush=True)
    adapter = load_configured_model(config, processes)
    explainable = adapter.model_type in relevance_models()
    if not explainable and (config.token, config.against, config.layer) != (None, None, None):
        raise ConfigError(
            f"model type {adapter.model_type!r} has no relevance, so --token, --against and --layer mean nothing; "
            "leave them out, or take "
            f"a model of {' or '.join(relevance_models())}"
        )
    doing("reading the text")
    ids = adapter.tokenizer(config.text)["input_ids"]
    text = token_reader(adapter.tokenizer)
    names = [text(i) for i in ids]

    # Work.
    doing("looking at hidden attention and relevance")
    attention = hidden_attention(adapter, ids, config.layers, config.units)
    origin = explain(config, adapter, ids) if explainable else None

    # Report.
    doing("writing the results")
    begin_output(config.output, config, config.overwrite, FILES)
    title = f"Hidden attention of {config.model_name}, mean over {attention.unit}s"
    save_png(attention_png(attention, names, title), config.output / "attention.png")
    save_page(attention_html(attention, names, title), config.output / "attention.html")
    tokens = [{"id": i, "text": name} for i, name in zip(ids, names, strict=True)]
    report = {"model": adapter.name, "tokens": tokens, "attention": attention.report()}
    if origin is not None:
        logits = (origin.explained.token, origin.explained.against)
        title = heading(config, origin, [visible(text(i)) for i in logits if i is not None])
        save_png(relevance_png(origin, names, title), config.output / "relevance.png")
        strip = relevance_strip(origin, names).html(title, origin.explained.position)
        save_page(relevance_html(origin, names, "Layer by layer"), config.output / "relevance.html", strip)
        report["relevance"] = origin.report()
        print(f"{title}: {origin.value:.3f}; the tokens make {float(origin.tokens.sum()):.3f} of it")
    write_report(config.output / "views.json", report, FORMAT)
    print(f"saved to {config.output}")
    processes.finish()


def explain(config: Config, adapter: ModelAdapter, ids: list[int]) -> Relevance:
    """The relevance that the configuration asks for."""
    lens: Lens | None = None
    if config.layer is not None:
        name = config.lens_name
        lens = open_lens(adapter, name)
    token, against = (None if word is None else one_token(adapter, word) for word in (config.token, config.against))
    explained = Explained(token=token, against=against, position=config.position, layer=config.layer)
    return relevance(adapter, ids, explained, lens=lens, method=config.method)


def one_token(adapter: ModelAdapter, word: str) -> int:
    """The id of a text that is one token."""
    ids = adapter.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        parts = ", ".join(repr(visible(token_reader(adapter.tokenizer)(i))) for i in ids)
        raise ConfigError(
            f"{word!r} is {len(ids)} tokens ({parts or 'none'}); give the text of one, its leading space included"
        )
    return int(ids[0])


def heading(config: Config, origin: Relevance, words: list[str]) -> str:
    """What the pictures of relevance are called."""
    where = "" if config.layer is None else f" at layer {config.layer}"
    return (
        f"Where the logit of {' − '.join(f'“{word}”' for word in words)}{where} comes from ({config.model_name}, "
        f"{origin.method})"
    )


if __name__ == "__main__":
    cli.run(main, Config)
