"""Lenses on the Hub, against a stand-in that speaks its protocol: listing, fetching, pushing, and what is said when
that cannot be.

The steps are those of hub_client.py, which runs once, in a process of its own; the tests read what it printed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lens_rnn import artifacts
from lens_rnn.errors import ArtifactError, ConfigError, LensRNNError
from lens_rnn.fit_report import Baselines, DataFacts, FitData, FitReport, LayerReport, ModelFacts
from lens_rnn.fitting.card import model_card, write_card
from lens_rnn.lens import TunedLens, stock_attaches
from lens_rnn.models import LogitMap, ModelAdapter, wrap_model
from tests import refusals
from tests.conftest import make_model, save_model
from tests.hub_client import NAMES, OTHERS

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, PreTrainedConfig
from tuned_lens.nn.lenses import TunedLensConfig
from tuned_lens.nn.unembed import Unembed

PYTHIA = "EleutherAI/pythia-160m-deduped-v0"
SPACE = "AlignmentResearch/tuned-lens"
FILES = ["config.json", "params.pt", "fit.json", "README.md", "perplexity.png"]


def report(family: str, name: str, **model: Any) -> FitReport:
    """A fit.json with made-up figures. model: what else it says of the model."""
    ces = {"logit": [3.0, 2.5, 1.7], "tuned": [2.4, 2.1, 1.6]}
    text = DataFacts(source="made.jsonl", tokens=4096, origin={"sha256": "0"})
    figures = [
        {f"{unit}_{lens}": ce[i] - of_model for unit, of_model in (("ce", 0), ("kl", 1.5)) for lens, ce in ces.items()}
        for i in range(3)
    ]
    return FitReport(
        model=ModelFacts(
            name=name, model_type=family, dtype="torch.float32", n_layers=3, d_model=32, vocab_size=96, **model
        ),
        settings={"loss": "kl", "optimizer": "kfac"},
        data=FitData(fit=text, eval=replace(text, tokens=1024)),
        baselines=Baselines(model_ce=1.5, unigram_ce=3.1, uniform_ce=4.0),
        layers={i: LayerReport(depth=(i + 1) / 3, **figures[i]) for i in range(3)},
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What hub_client.py printed. It has the cache of this process, which is offline."""
    folder = tmp_path_factory.mktemp("hub")
    for family, model_type in (("neox", "gpt_neox"), ("mamba", "mamba")):
        adapter = wrap_model(make_model(family))
        save_model(adapter, folder / family)
        lens = TunedLens.from_adapter(adapter)
        for parameter in lens.layer_translators.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(5))
        lens.config.base_model_name_or_path = family
        lens.save(folder / f"{family}-lens")
        made = report(model_type, family, stock_attaches=stock_attaches(adapter))
        artifacts.save_fit_report(folder / f"{family}-lens", made)
        write_card(folder / f"{family}-lens", made, f"me/{family}-lens")
        (folder / f"{family}-lens" / "checkpoints").mkdir()
        (folder / f"{family}-lens" / "checkpoints" / "step-00000001.pt").write_bytes(b"large")
        (folder / f"{family}-lens" / "run.yaml").write_text("# lens-rnn: settings")
    variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "TUNED_LENS_REPO_ID", "TUNED_LENS_REPO_TYPE"):
        variables.pop(name, None)
    variables["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "tests.hub_client", str(folder)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def base(seed: int) -> str:
    return f"model/{seed}"


def parameters_of(seed: int) -> float:
    """The sum of the parameters that the lens of this seed was published with."""
    generator = torch.Generator().manual_seed(seed)
    return float(
        sum(torch.randn(shape, generator=generator).double().sum() for _ in range(2) for shape in ((4, 4), (4,)))
    )


# --- listing ----------------------------------------------------------------------------------------------------------


def test_the_lenses_of_the_space_are_listed(told: dict[str, Any]) -> None:
    """Nested names too; neither what is in other folders nor what lacks a file."""
    assert told["available"] == sorted(NAMES)
    assert told["available at v1"] == [PYTHIA]
    assert told["available elsewhere"] == told["available by variable"] == ["mine"]


def test_what_cannot_be_listed_is_refused(told: dict[str, Any]) -> None:
    assert told["available nowhere"].startswith("ArtifactError: ")
    assert "no/thing" in told["available nowhere"]


# --- fetching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "seed"),
    [
        ("first", NAMES[PYTHIA]),
        ("again", NAMES[PYTHIA]),
        ("v1", OTHERS[f"{PYTHIA} at v1"]),
        ("commit", OTHERS[f"{PYTHIA} at v1"]),
        ("by variable", OTHERS["mine/lenses"]),
        ("over variable", NAMES["gpt2"]),
        ("subfolder", OTHERS["elsewhere"]),
        ("pushed", OTHERS["me/pushed"]),
        ("mended", NAMES["org/cut"]),
        ("server gone", NAMES[PYTHIA]),
        ("server gone, pushed", OTHERS["me/pushed"]),
    ],
)
def test_the_lens_that_was_asked_for_is_loaded(step: str, seed: int, told: dict[str, Any]) -> None:
    assert not isinstance(told[step], str), told[step]
    assert told[step]["base"] == base(seed)
    assert told[step]["sum"] == parameters_of(seed)


def test_fit_json_comes_along_where_there_is_one(told: dict[str, Any]) -> None:
    assert told["first"]["vocab_size"] is None
    assert told["pushed"]["vocab_size"] == told["server gone, pushed"]["vocab_size"] == 96


def test_what_was_fetched_is_not_fetched_again(told: dict[str, Any]) -> None:
    assert [line for line in told["first"]["asked"] if line.startswith("GET")] != []
    for step in ("again", "pushed, again"):
        assert [line for line in told[step]["asked"] if line.startswith("GET")] == [], step
        assert len(told[step]["asked"]) == 1, "whether that is still the newest, and not of the Space first"
    assert told["server gone"]["asked"] == told["server gone, pushed"]["asked"] == []


def test_a_lens_that_was_fetched_loads_offline(told: dict[str, Any]) -> None:
    assert told["first"]["base"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert artifacts.load(PYTHIA).config["base_model_name_or_path"] == base(NAMES[PYTHIA])
    assert artifacts.load(PYTHIA, revision="v1").config["base_model_name_or_path"] == base(OTHERS[f"{PYTHIA} at v1"])
    assert artifacts.load("me/pushed").config["base_model_name_or_path"] == base(OTHERS["me/pushed"])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("misspelt", (SPACE, "nor a model repository", "no such lens", f"{PYTHIA}, EleutherAI/pythia-70m-deduped")),
        ("nothing like it", ("'zzzz'", SPACE, "no such lens")),
        ("pushed, over variable", ("mine/lenses", "no such lens")),
        ("no revision", (SPACE, "no revision v9")),
        ("no repository", ("no/thing", "no such repository")),
        ("no type", ("spaceship",)),
        ("cut", ("nor a model repository", "Consistency check failed")),
    ],
)
def test_what_cannot_be_had_is_one_line(step: str, words: Sequence[str], told: dict[str, Any]) -> None:
    assert told[step].startswith("ArtifactError: ")
    assert all(word in told[step] for word in words), told[step]
    assert "\n" not in told[step]


# --- lenses that leave layers out -------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3], ids=["config.json counts what is stored", "config.json counts all"])
def short_lens(request: pytest.FixtureRequest, tiny_mamba: ModelAdapter, tmp_path: Path) -> Path:
    """A lens for the tiny Mamba, of 3 layers, with translators for the first two, in either way to write that down."""
    config = TunedLensConfig(tiny_mamba.name, tiny_mamba.d_model, request.param).to_dict()
    d = tiny_mamba.d_model
    made = torch.randn(2, d, d + 1, generator=torch.Generator().manual_seed(3)) * d**-0.5
    translators = {
        f"{i}.{kind}": t for i in (0, 1) for kind, t in (("weight", made[i, :, 1:]), ("bias", made[i, :, 0]))
    }
    artifacts.save(tmp_path / "short", config, translators)
    return tmp_path / "short"


def refusal(
    adapter: ModelAdapter, lens: Path, layers: Sequence[int] | None, kind: type[LensRNNError] = ArtifactError
) -> str:
    return refusals.refusal(lambda: TunedLens.load(adapter, lens, layers=layers), kind)


@torch.no_grad()
def test_a_lens_without_the_trivial_layer_is_read_where_its_layers_are_stated(
    short_lens: Path, tiny_mamba: ModelAdapter
) -> None:
    assert "layers=range(2)" in refusal(tiny_mamba, short_lens, None), "how to state them is said"
    lens = TunedLens.load(tiny_mamba, short_lens, layers=range(2))
    stored = torch.load(short_lens / "params.pt", weights_only=True)
    h = torch.randn(5, tiny_mamba.d_model, generator=torch.Generator().manual_seed(4))
    for i in (0, 1):
        z = h + h @ stored[f"{i}.weight"].T + stored[f"{i}.bias"]
        torch.testing.assert_close(lens(h, i), tiny_mamba.unembed(z))
        assert not torch.equal(lens(h, i), tiny_mamba.unembed(h))
    assert torch.equal(lens(h, 2), tiny_mamba.unembed(h))
    assert lens.config.num_hidden_layers == 3, "saved again, it is whole"


@pytest.mark.parametrize(
    ("layers", "kind", "word"),
    [
        ((0, 2), ArtifactError, "layer 1"),
        ((1, 0), ConfigError, "1, 0"),
        ((0, 0), ConfigError, "0, 0"),
        ((1, 3), ConfigError, "layer 3"),
        ((-1, 0), ConfigError, "layer -1"),
        ((0, 1, 2), ArtifactError, "'2.bias' is missing"),
        ((0,), ArtifactError, "'1.bias' has no place"),
    ],
)
def test_layers_that_cannot_be_are_refused(
    layers: Sequence[int], kind: type[LensRNNError], word: str, short_lens: Path, tiny_mamba: ModelAdapter
) -> None:
    assert word in refusal(tiny_mamba, short_lens, layers, kind)


def test_no_layers_at_all_are_refused(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    TunedLens.from_adapter(tiny_mamba).save(tmp_path)
    assert "no layer" in refusal(tiny_mamba, tmp_path, [], ConfigError)


def test_a_transformer_has_no_layer_to_leave_out(short_lens: Path, tiny_neox: ModelAdapter) -> None:
    assert "only trivial layers can be left out (it has none)" in refusal(tiny_neox, short_lens, (0, 1))


def test_stated_layers_do_not_hide_that_a_lens_is_of_a_deeper_model(short_lens: Path, tiny_mamba: ModelAdapter) -> None:
    config = json.loads((short_lens / "config.json").read_text()) | {"num_hidden_layers": 24}
    (short_lens / "config.json").write_text(json.dumps(config))
    assert "its number of translators is 24" in refusal(tiny_mamba, short_lens, (0, 1))


def test_a_whole_lens_can_have_its_layers_stated_too(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    TunedLens.from_adapter(tiny_mamba).save(tmp_path)
    assert len(TunedLens.load(tiny_mamba, tmp_path, layers=[0, 1, 2])) == 3


# --- pushing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["dry", "new", "branch", "private"])
def test_a_push_says_what_it_uploads(step: str, told: dict[str, Any]) -> None:
    assert told[step] == FILES


def test_a_dry_run_asks_nothing_of_the_hub(told: dict[str, Any]) -> None:
    assert told["asked when dry"] == []


def test_the_hub_has_what_is_on_disk_and_no_checkpoint(told: dict[str, Any]) -> None:
    for name in ("me/new", "me/new@v2", "me/private", "me/full@v2"):
        assert sorted(told["received"][name]) == sorted(FILES), name
        assert told[f"{name} as on disk"], name
    assert told["received"]["me/full"] == {}, "only the branch was asked for"


def test_a_public_repository_does_not_take_a_private_lens(told: dict[str, Any]) -> None:
    assert told["public"].startswith(
        "ArtifactError: nothing was uploaded: the repository me/new is there already and public;"
    )


def test_a_failed_push_gives_the_command_that_works_later(told: dict[str, Any]) -> None:
    assert "neox-lens could not be uploaded to me/full (" in told["full"]
    assert "\n" not in told["full"]
    assert told["command"] == ["python", "-c"]


@pytest.mark.parametrize(
    ("step", "word"), [("no token", "hf auth login"), ("hf_unknown", "Invalid user token"), ("hf_reads", "only read")]
)
def test_a_push_that_cannot_work_is_refused_before_the_fit(step: str, word: str, told: dict[str, Any]) -> None:
    assert told[step].startswith("ConfigError: ")
    assert word in told[step]


def test_the_owner_of_a_repository_is_checked_and_filled_in(told: dict[str, Any]) -> None:
    mine, group, others, bad = told["names"]
    assert (mine, group) == ("me/new", "us/new")
    assert others == "ConfigError: the token of me cannot push to them/new; its repositories are those of me, us"
    assert bad.startswith("ConfigError: cannot push to me/a b (Repo id must")


def test_what_is_no_lens_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such lens folder: me/lens"):
        artifacts.push("me/lens", "me/lens", dry_run=True)
    with pytest.raises(ArtifactError, match="holds no lens"):
        artifacts.push(tmp_path, "me/lens", dry_run=True)


# --- the card ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "types"),
    [
        ("neox", ["lens_rnn.lens.tuned.TunedLens", "tuned_lens.nn.lenses.TunedLens"]),
        ("mamba", ["lens_rnn.lens.tuned.TunedLens", "tuned_lens.nn.lenses.TunedLens"]),
    ],
)
def test_the_code_of_a_card_runs_as_it_stands(family: str, types: list[str], told: dict[str, Any]) -> None:
    assert told[family]["types"] == types
    assert told[family]["equal"] == [True] * 6


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoXConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16),
        LlamaConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16),
        GPT2Config(n_embd=8, n_layer=2, n_head=2),
        OPTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_where_tuned_lens_finds_norm_and_head_the_card_does_without_ours(config: PreTrainedConfig) -> None:
    config.update({"vocab_size": 12, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None})
    adapter = wrap_model(AutoModelForCausalLM.from_config(config))
    assert stock_attaches(adapter)
    assert torch.equal(Unembed(adapter.model).unembedding.weight, adapter.head.weight)
    assert "TunedLens.from_model_and_pretrained(model" in model_card(
        report(config.model_type, "m", stock_attaches=True)
    )


def test_elsewhere_the_card_gives_it_ours() -> None:
    assert not stock_attaches(wrap_model(make_model("mamba")))
    capped = wrap_model(make_model("neox"))
    capped.logit_map = LogitMap(cap=30.0)
    assert not stock_attaches(capped), "tuned-lens would leave the cap out"
    for made in (
        report("mamba", "m", stock_attaches=False),
        report("gpt_neox", "m"),
    ):  # the second is of an older release
        assert "TunedLens.from_model_and_pretrained(model" not in model_card(made)
        assert "TunedLens.from_unembed_and_pretrained(Unembedding(adapter)" in model_card(made)


def test_a_card_names_what_the_hub_has_and_no_file_of_this_machine() -> None:
    local = yaml.safe_load(model_card(report("mamba", "/home/me/mamba")).split("---\n")[1])
    assert local == {"library_name": "lens-rnn", "tags": ["tuned-lens", "interpretability", "mamba"]}
    made = report("mamba", "state-spaces/mamba-130m-hf")
    sha, texts = "0" * 40, DataFacts(source="org/texts", origin={"commit": "1" * 40, "split": "train"})
    card = model_card(replace(made, model=replace(made.model, revision=sha), data=replace(made.data, fit=texts)))
    assert yaml.safe_load(card.split("---\n")[1]) == local | {
        "base_model": "state-spaces/mamba-130m-hf",
        "datasets": ["org/texts"],
    }
    assert f'load_model("state-spaces/mamba-130m-hf", revision="{sha}")' in card
    assert f"`org/texts` (commit {'1' * 40})" in card


def test_a_card_has_the_figures_of_every_layer_and_a_picture(tmp_path: Path) -> None:
    made = report("mamba", "m")
    write_card(tmp_path, replace(made, baselines=replace(made.baselines, unigram_ce=None)))
    card = (tmp_path / "README.md").read_text()
    assert "| 1 | 0.67 | 1.000 | 0.600 | 2.500 | 2.100 |" in card
    assert "model 1.500, uniform 4.000." in card
    assert "(perplexity.png)" in card
    with Image.open(tmp_path / "perplexity.png") as picture:
        assert picture.size[0] >= 1000
