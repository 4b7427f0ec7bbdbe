"""The files of a fitted lens: the artifact, fit.json, and the model card with its figure, made from the `FitReport`."""

from pathlib import Path

from lens_rnn import artifacts
from lens_rnn.drawing import save_picture
from lens_rnn.evaluation.curves import Curves
from lens_rnn.evaluation.plots import layers_picture
from lens_rnn.files import write_text
from lens_rnn.fit_report import FitReport
from lens_rnn.lens import TunedLens

import numpy as np
import yaml

_HERE = "path/to/this/folder"

_CARD = """---
{front_matter}---
# Tuned lens for {name}

One affine translator for each of {n_layers} layers (d_model {d_model}) of `{name}`{at_revision}, fitted with
lens-rnn by minimising {loss} on {tokens:,} tokens of `{source}`{origin} with {optimizer}.

| layer | depth | KL, logit lens | KL, tuned lens | bits per byte, logit | bits per byte, tuned |
|---|---|---|---|---|---|
{rows}

KL in nats per token from the model's own predictions, on {eval_tokens:,} held-out tokens of
`{eval_source}`. Baselines in bits per byte: model {model_ce:.3f}, {unigram}uniform {uniform_ce:.3f}.

![Cross-entropy of both lenses over the depth of the model]({figure})

## Use

```python
from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model

adapter = load_model({model})
lens = TunedLens.load(adapter, "{where}")
```

{stock}

`config.json` and `params.pt` are in the format of tuned-lens 0.2.0; `fit.json` holds every setting, hash and figure.
"""

_STOCK = """With [tuned-lens](https://github.com/AlignmentResearch/tuned-lens) alone:

```python
{fetch}from transformers import AutoModelForCausalLM
from tuned_lens.nn.lenses import TunedLens

model = AutoModelForCausalLM.from_pretrained({model})
lens = TunedLens.from_model_and_pretrained(model, lens_resource_id={folder})
```"""

_STOCK_WITH_OURS = """[tuned-lens](https://github.com/AlignmentResearch/tuned-lens)'s own class takes the
translators once it is given the norm and head, which it does not find by itself in every architecture:

```python
{fetch}from lens_rnn.lens import Unembedding
from lens_rnn.models import load_model
from tuned_lens.nn.lenses import TunedLens

adapter = load_model({model})
lens = TunedLens.from_unembed_and_pretrained(Unembedding(adapter), lens_resource_id={folder})
```"""


def save_fit(folder: Path, lens: TunedLens, report: FitReport, repo_id: str | None = None) -> None:
    """Write config.json, params.pt, fit.json and the card. repo_id: where the lens will be pushed to."""
    lens.save(folder)
    artifacts.save_fit_report(folder, report)
    write_card(folder, report, repo_id)


def write_card(folder: Path, report: FitReport, repo_id: str | None = None) -> None:
    """Write README.md and its figure beside a lens. repo_id: where the lens will be pushed to."""
    save_picture(layers_picture(_curves(report)), folder / artifacts.FIGURE)
    write_text(folder / artifacts.CARD, model_card(report, repo_id))


def model_card(report: FitReport, repo_id: str | None = None) -> str:
    """A lens's card in Markdown. repo_id: the model repository on the Hub that holds the lens, if one does."""
    rows = "\n".join(
        f"| {i} | {row.depth:.2f} | {row.kl_logit:.3f} | {row.kl_tuned:.3f} | {row.ce_logit:.3f} | {row.ce_tuned:.3f} |"
        for i, row in report.layers.items()
    )
    model, fit, held_out, baselines = report.model, report.data.fit, report.data.eval, report.baselines
    commit = fit.origin.get("commit")
    load_model = f'"{model.name}"' + (f', revision="{model.revision}"' if model.revision else "")
    stock = _STOCK if model.stock_attaches else _STOCK_WITH_OURS  # where it is not known, the latter is right of any
    fetch = "from huggingface_hub import snapshot_download\n" if repo_id else ""
    return _CARD.format(
        front_matter=_front_matter(report),
        name=model.name,
        n_layers=model.n_layers,
        d_model=model.d_model,
        at_revision=f" at revision `{model.revision}`" if model.revision else "",
        loss={"kl": "KL from the model's predictions", "ce": "cross-entropy"}[report.settings["loss"]],
        optimizer=report.settings["optimizer"],
        tokens=fit.tokens,
        source=fit.source,
        origin=f" (commit {commit})" if commit else "",
        eval_tokens=held_out.tokens,
        eval_source=held_out.source,
        rows=rows,
        model_ce=baselines.model_ce,
        uniform_ce=baselines.uniform_ce,
        unigram="" if baselines.unigram_ce is None else f"unigram {baselines.unigram_ce:.3f}, ",
        figure=artifacts.FIGURE,
        model=load_model,
        where=repo_id or _HERE,
        stock=stock.format(
            fetch=fetch, model=load_model, folder=f'snapshot_download("{repo_id}")' if repo_id else f'"{_HERE}"'
        ),
    )


def _front_matter(report: FitReport) -> str:
    """What the Hub reads of a card. It refuses a base model or data set that it does not have, so files of this machine
    are not named."""
    model, fit = report.model, report.data.fit
    values = {"library_name": "lens-rnn", "tags": ["tuned-lens", "interpretability", model.model_type]}
    values |= {"base_model": model.name} if model.revision else {}
    values |= {"datasets": [fit.source]} if "commit" in fit.origin else {}
    return yaml.safe_dump(values, sort_keys=False)


def _curves(report: FitReport) -> Curves:
    """The figures of a fit, to be drawn."""
    layers, baselines = report.layers.values(), report.baselines
    return Curves(
        name=f"Tuned lens for {Path(report.model.name).name}",
        depth=np.array([layer.depth for layer in layers]),
        logit_ce=np.array([layer.ce_logit for layer in layers]),
        tuned_ce=np.array([layer.ce_tuned for layer in layers]),
        family=report.model.model_type,
        uniform_ce=baselines.uniform_ce,
        unigram_ce=baselines.unigram_ce,
        model_ce=baselines.model_ce,
    )
