"""Does a probe fitted in Alice's context recover the truth in Bob's? From hidden states, translators and recurrent
states.

    python eval/elk.py
    python eval/elk.py --model quirky/mamba-130m-hf-sciq --lens lenses/mamba-130m-hf

Writes for each model transfers.csv, transfers.json, curves.png and heatmap.png.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.elk.anomaly import detect
from lens_rnn.elk.answers import quirkiness
from lens_rnn.elk.features import FeatureConfig, extract, passes
from lens_rnn.elk.models import QuirkyModel, load_quirky, open_lens
from lens_rnn.elk.plots import plot_curves, plot_heat
from lens_rnn.elk.probes import SUPERVISED
from lens_rnn.elk.reading import read_all
from lens_rnn.elk.report import TransferReport, table
from lens_rnn.elk.source import QuirkyData, open_quirky
from lens_rnn.elk.subsets import check_rows
from lens_rnn.elk.templates import templates_of
from lens_rnn.elk.transfer import Result, score_transfers
from lens_rnn.files import write_text
from lens_rnn.processes import refuse_processes
from lens_rnn.ranges import whole
from lens_rnn.run import ModelConfig, begin_output, check_output, start_processes

from tqdm import tqdm

DEMO = "demo"
SHOWN = (("A", "A"), ("A", "B"), ("AE", "AH"), ("AE", "BH"), ("B", "B"), ("B", "BH"), ("all", "BH"), ("none", "BH"))
FILES = ("transfers.csv", "transfers.json", "curves.png", "heatmap.png")
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, FeatureConfig):
    """Does a probe fitted in Alice's context recover the truth in Bob's?"""

    model: str = DEMO
    """A quirky model: what train/finetune_quirky.py wrote, or any model. Default: both that are shipped, one after the
    other."""
    lens: str | None = None
    """Folder or tuned-lens resource of a lens of the model or of its base. Default: the folder named like the model, or
    else its base, plus -lens; where there is none, features are not translated and the log-odds are the logit
    lens's."""
    data: str | None = None
    """Quirky set, as for train/finetune_quirky.py. Default: what the model was fine-tuned on."""
    validation_questions: Annotated[int | None, whole(1)] = None
    """Questions to fit probes on. Default: as many as at fine-tuning."""
    test_questions: Annotated[int | None, whole(1)] = None
    """Questions to test on. Default: as many as at fine-tuning."""
    features: Path | None = None
    """Folder in which to keep the features. Default: they are deleted at the end."""
    output: Path = Path("results/elk")
    """Folder of the results; each model has one inside it."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    @property
    def models(self) -> list[str]:
        if self.model != DEMO:
            return [self.model]
        folder = Path(__file__).parents[1] / "checkpoints"
        return [str(folder / name) for name in ("tiny-quirky-mamba", "tiny-quirky-rwkv4")]

    def rows_config(self, model: QuirkyModel) -> QuirkyData:
        """The model's own data, with what was asked for instead."""
        asked = {name: getattr(self, name) for name in ("data", "validation_questions", "test_questions")}
        own = model.report.data if model.report else QuirkyData()
        return replace(own, **{name: value for name, value in asked.items() if value is not None})


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    refuse_processes("eval/elk.py")
    processes = start_processes(config)
    for name in config.models:
        check_output(config.output / Path(name).name, config.overwrite)
    for name in config.models:
        doing(f"loading {name}")
        settings = {"tokenizer": config.tokenizer, "trust_remote_code": config.trust_remote_code}
        loaded = load_quirky(name, revision=config.revision, dtype=config.dtype, device=processes.device, **settings)
        with tempfile.TemporaryDirectory(prefix="lens-rnn-elk-") as temporary:
            run(config, loaded, config.output / Path(name).name, config.features or Path(temporary))
    processes.finish()


def run(config: Config, model: QuirkyModel, output: Path, features: Path) -> None:
    """One model, from data to report."""
    adapter, name = model.adapter, Path(model.adapter.name).name

    # Data and lens.
    doing("making or reading the rows")
    settings = config.rows_config(model)
    data = open_quirky(settings)
    fit, test = data.rows("validation"), data.rows("test")
    check_rows(fit, test)
    lens, lens_name = open_lens(model, config.lens)
    templates = templates_of(data.name)

    # Features of both splits, then probes.
    doing(f"reading features of {name}")
    prompts = passes(config, len(templates)) * (len(fit) + len(test))
    with tqdm(total=prompts, desc=f"reading {name}", unit="prompts") as bar:
        read = {
            split: extract(adapter, rows, templates, lens, features / name / split, config, bar.update)
            for split, rows in (("validation", fit), ("test", test))
        }
    doing(f"fitting probes on {name}")
    scores = list(tqdm(read_all(fit, test, read["validation"], read["test"]), desc="probes", unit="subsets"))
    report = TransferReport(
        model=adapter.name,
        base=model.base,
        lens=lens_name,
        data=settings,
        quirkiness=quirkiness(test, read["test"]["model_log_odds"].values[0, :, 0]),
        transfers=score_transfers(scores, test),
        anomalies=[a for s in scores if (s.probe, s.train) == (SUPERVISED, "AE") for a in detect(s, test)],
    )

    # Report.
    doing("writing the results")
    begin_output(output, config, config.overwrite, FILES)
    report.write(output / "transfers.json")
    write_text(output / "transfers.csv", table(report.transfers))
    plot_curves(report.transfers, output / "curves.png", f"{name} on {data.name}")
    plot_heat(report.transfers, output / "heatmap.png", f"{name} on {data.name}")
    print(summary(report))
    print(f"saved to {output}", flush=True)


def summary(report: TransferReport) -> str:
    """The transfers that matter most, as lines; beside each probe what nine in ten random directions read."""
    head = f"{'feature':14} {'probe':15} transfer     layer  AUROC                random       gap recovered"
    lines = [head, *(_line(r) for r in report.transfers if (r.train, r.test) in SHOWN)]
    lines += [f"{a.feature:14} {a.detector:21} AH, BH apart  {a.auroc.rounded()}" for a in report.anomalies]
    return "\n".join(lines)


def _line(result: Result) -> str:
    transfer = f"{result.train} → {result.test}"
    control = f"{result.control.low:.2f} to {result.control.high:.2f}" if result.controls else ""
    gap = result.recovered.rounded(2) if math.isfinite(result.recovered.value) else ""
    start = f"{result.feature:14} {result.probe:15} {transfer:12} {result.layer:5}  {result.auroc.rounded()}"
    return f"{start} {control:12} {gap}".rstrip()


if __name__ == "__main__":
    cli.run(main, Config)
