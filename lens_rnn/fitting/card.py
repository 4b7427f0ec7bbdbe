"""The README.md beside a fitted lens, made from its fit.json."""

from typing import Any

_CARD = """---
library_name: lens-rnn
base_model: {name}
tags: [tuned-lens, interpretability]
---
# Tuned lens for {name}

One affine translator for each of {n_layers} layers (d_model {d_model}), fitted with
lens-rnn by minimising {loss} on {tokens:,} tokens of `{source}` with {optimizer}.

| layer | depth | KL, logit lens | KL, tuned lens | bits per byte, logit | bits per byte, tuned |
|---|---|---|---|---|---|
{rows}

KL in nats per token from the model's own predictions, on {eval_tokens:,} held-out tokens of `{eval_source}`. Baselines in bits per byte:
model {model_ce:.3f}, unigram {unigram_ce:.3f}, uniform {uniform_ce:.3f}.

```python
from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model

adapter = load_model("{name}")
lens = TunedLens.load(adapter, "path/to/this/folder")
```

`config.json` and `params.pt` are in the format of tuned-lens 0.2.0; `fit.json` holds every setting, hash and figure.
"""


def model_card(report: dict[str, Any]) -> str:
    """Markdown from the content of fit.json."""
    rows = "\n".join(
        f"| {i} | {row['depth']:.2f} | {row['kl_logit']:.3f} | {row['kl_tuned']:.3f} | {row['ce_logit']:.3f} | {row['ce_tuned']:.3f} |"
        for i, row in report["layers"].items()
    )
    fit, held_out = report["data"]["fit"], report["data"]["eval"]
    return _CARD.format(
        **{key: report["model"][key] for key in ("name", "n_layers", "d_model")},
        **report["baselines"],
        loss={"kl": "KL from the model's predictions", "ce": "cross-entropy"}[report["settings"]["loss"]],
        optimizer=report["settings"]["optimizer"],
        tokens=fit["tokens"],
        source=fit["source"],
        eval_tokens=held_out["tokens"],
        eval_source=held_out["source"],
        rows=rows,
    )
