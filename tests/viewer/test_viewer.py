"""What the page shows and answers, without a browser."""

import gc
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any

import lens_rnn.viewer
from lens_rnn.errors import ConfigError, DataError, LensRNNError
from lens_rnn.evaluation.tokens import visible
from lens_rnn.evaluation.trajectory import Trajectory
from lens_rnn.lens import JacobianLens
from lens_rnn.models import ModelAdapter, load_model
from lens_rnn.viewer import LOGIT, Cell, Choice, Settings, ViewerCache, build_page, shipped
from lens_rnn.viewer import cache as cache_module
from lens_rnn.viewer.answers import FIELDS, Answers
from lens_rnn.viewer.pictures import cell_tables, heat_map
from tests.scripts.launch import ROOT, run_in_process
from tests.viewer.conftest import TUNED, Library

import numpy as np
import pytest
import torch

TEXT = "A state reads <b> & $x$."
OPENING = Settings(model="mamba", lens=TUNED, text=TEXT)
DEFAULTS = {"model": "mamba", "lens": TUNED, "text": TEXT}


def settings(**changes: Any) -> Settings:
    return Settings(**{**DEFAULTS, **changes})


def tables(html: str) -> dict[str, list[tuple[str, float]]]:
    """The columns of cell_tables: token and percentage of each line, by heading."""
    sections = re.findall(r"<section><h4>(.*?)</h4>(.*?)</section>", html, re.DOTALL)
    rows = r"<td><code>(.*?)</code></td><td>([\d.]+)</td>"
    return {title: [(unescape(token), float(p)) for token, p in re.findall(rows, body)] for title, body in sections}


def expected(trajectory: Trajectory, row: int, token: int) -> list[tuple[str, float]]:
    """The same from a trajectory of byte tokens, ASCII here."""
    ids, probabilities = trajectory.top_ids[row, token], trajectory.top_probabilities[row, token]
    return list(zip(ids.tolist(), [100 * p for p in probabilities.tolist()], strict=True))


# --- settings and links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": "a&b=c?d#e%20f+g \n\t日本 é 😀 \"<b>'"},
        {"second": "other", "statistic": "rank", "stride": 3, "tokens": "2-7", "cell": "1.2.3", "lens": LOGIT},
        {"tab": "views", "attention": "rollout", "at": "1", "token": "17"},
    ],
)
def test_a_link_carries_all_settings(changes: dict[str, Any]) -> None:
    there = settings(**changes)
    query = there.query()
    assert re.fullmatch(r"[\w.~%+=&-]*", query, re.ASCII), "safe within an attribute and a URL"
    assert Settings.from_query(f"?{query}", {}) == Settings.from_query(query, DEFAULTS) == there


def test_a_link_may_leave_things_out_and_add_others() -> None:
    assert Settings.from_query("?stride=2&__theme=dark", DEFAULTS) == settings(stride=2)
    assert Settings.from_query("", DEFAULTS) == settings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": ""}, "the text is empty"),
        ({"text": " \n "}, "the text is empty"),
        ({"text": "a" * 4097}, "the text has 4,097 characters; at most 4,096 are read here"),
        ({"second": "a" * 4097}, "the second text has 4,097 characters"),
        ({"statistic": "loss"}, "no statistic 'loss'; choose from entropy"),
        ({"stride": 0}, "stride is 0; give a whole number of at least 1"),
        ({"tab": "elk"}, "no tab 'elk'; choose from lens, views"),
        ({"attention": "-1"}, "hidden attention of layer '-1'; write its number, mean or rollout"),
        ({"at": "x"}, "the layer whose logit is explained, 'x', is no whole number"),
        ({"token": "1.5"}, "the token whose logit is explained, '1.5', is no whole number"),
        ({"cell": "1.2"}, "cell '1.2' is unknown"),
        ({"cell": "0.1.2.3"}, "cell '0.1.2.3' is unknown"),
        ({"cell": "0.-1.2"}, "is unknown"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LensRNNError, match=re.escape(words)):
        settings(**changes)


@pytest.mark.parametrize("stride", ["x", "-1", "", "9" * 5000])
def test_a_stride_in_a_link_that_is_no_number(stride: str) -> None:
    with pytest.raises(ConfigError, match="give a whole number of at least 1"):
        Settings.from_query(f"stride={stride}", DEFAULTS)


@pytest.mark.parametrize(
    ("tokens", "span"),
    [("", range(9)), ("  ", range(9)), ("0-8", range(9)), (" 2 - 4 ", range(2, 5)), ("8", range(8, 9))],
)
def test_token_ranges(tokens: str, span: range) -> None:
    assert settings(tokens=tokens).span(9) == span


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("a-b", "range 'a-b' is unknown; write the first and the last"),
        ("3-", "range '3-' is unknown"),
        ("-3", "range '-3' is unknown"),
        ("1-2-3", "range '1-2-3' is unknown"),
        ("5-2", "range 5-2 is empty"),
        ("3-9", "range 3-9 is not in the second text, which has the tokens 0-8"),
        ("9" * 5000, "is unknown"),
    ],
)
def test_token_ranges_that_cannot_be_used(tokens: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        settings(tokens=tokens).span(9, "second text")


# --- the cache --------------------------------------------------------------------------------------------------------


def test_names_that_are_not_there(cache: ViewerCache) -> None:
    with pytest.raises(ConfigError, match="no model 'gone' here; choose from mamba, rwkv4"):
        cache.trajectory("gone", LOGIT, TEXT, 1)
    with pytest.raises(ConfigError, match="no lens 'random-lens' for rwkv4; choose from logit lens"):
        cache.trajectory("rwkv4", TUNED, TEXT, 1)
    with pytest.raises(ConfigError, match="no model to choose"):
        ViewerCache({}, lambda _: None)


def test_a_text_of_too_many_tokens(cache: ViewerCache) -> None:
    assert cache.trajectory("mamba", LOGIT, "x" * 512, 1).shape[1] == 512
    with pytest.raises(DataError, match="the text “x y z x y z x y z x …” has 514 tokens; at most 512 are read here"):
        cache.trajectory("mamba", LOGIT, "x y z " * 85 + "x y ", 1)


def test_one_thread_works_at_a_time_and_each_gets_its_own(
    choices: dict[str, Choice], adapters: dict[str, ModelAdapter], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, most = 0, 0

    def watched(*arguments: Any, **options: Any) -> Trajectory:
        nonlocal working, most
        working += 1
        most = max(most, working)
        try:
            return predict(*arguments, **options)
        finally:
            working -= 1

    predict = cache_module.predict
    monkeypatch.setattr(cache_module, "predict", watched)
    loads: list[str] = []

    def load(model: str) -> ModelAdapter:
        loads.append(model)
        return adapters[model]

    cache = ViewerCache(choices, load)
    texts = [f"user {i} writes {'abc'[i % 3] * i}" for i in range(10)]
    with ThreadPoolExecutor(5) as users:
        read = list(users.map(lambda text: cache.trajectory("mamba", TUNED, text, 1), texts * 2))
    assert most == 1
    assert loads == ["mamba"]
    for text, trajectory in zip(texts * 2, read, strict=True):
        np.testing.assert_array_equal(trajectory.input_ids, library(text).input_ids)
        np.testing.assert_allclose(trajectory.entropy, library(text).entropy, rtol=1e-4)
    assert all(one is other for one, other in zip(read[:10], read[10:], strict=True)), "read once, kept"


def test_a_hundred_requests_leave_no_more_than_is_kept(cache: ViewerCache) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Trajectory for thing in gc.get_objects())

    before = alive()
    for i in range(100):
        cell_tables(cache, settings(text=f"text {i}", cell="0.0.0"))
    assert alive() - before == cache_module.TRAJECTORIES_KEPT


def test_shipped_models_have_the_lens_beside_them(tmp_path: Path) -> None:
    for name in ("a", "a-lens", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "empty").mkdir()
    assert shipped(tmp_path) == {
        "a": Choice(model=str(tmp_path / "a"), lenses={"a-lens": str(tmp_path / "a-lens")}),
        "b": Choice(model=str(tmp_path / "b")),
    }
    assert shipped(tmp_path / "nowhere") == {}


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["entropy", "kl"])
def test_a_heat_map_is_the_librarys(cache: ViewerCache, library: Library, statistic: str) -> None:
    picture = json.loads(heat_map(cache, settings(statistic=statistic, stride=2), 0))
    data = picture["figure"]["data"][0]
    np.testing.assert_allclose(data["z"], library(TEXT, stride=2).values(statistic), rtol=1e-4, atol=1e-5)
    assert picture["first"] == picture["side"] == 0
    assert picture["cell"] is None
    assert picture["query"] == settings(statistic=statistic, stride=2).query()


def test_a_token_range_is_a_part_of_the_same_reading(cache: ViewerCache, library: Library) -> None:
    picture = json.loads(heat_map(cache, settings(tokens="5-8", statistic="ce", cell="0.1.6"), 0))
    data = picture["figure"]["data"][0]
    np.testing.assert_allclose(data["z"], library(TEXT).ce[:, 5:9], rtol=1e-4)
    assert picture["first"] == 5
    assert picture["cell"] == [1, 6]
    assert [re.search(r"after token (\d+), (.)", said).groups() for said in data["customdata"][0]] == [
        (str(i), visible(TEXT[i])) for i in range(5, 9)
    ]


def test_a_heat_map_is_safe_within_html(cache: ViewerCache) -> None:
    assert "<" not in heat_map(cache, settings(text="<script>alert(1)</script>"), 0)


@pytest.mark.parametrize("cell", [Cell(0, 0, 0), Cell(0, 1, 7), Cell(1, 1, 2)])
def test_the_tables_of_a_cell_are_the_librarys(cache: ViewerCache, library: Library, cell: Cell) -> None:
    second = "<i>other"
    html = cell_tables(cache, settings(second=second, cell=".".join(map(str, cell))))
    text = (TEXT, second)[cell.side]
    reading = cache.text("mamba")
    shown = tables(html)
    assert list(shown) == ["Logit lens", "Tuned lens", "Model"]
    for (title, lines), lens, row in zip(shown.items(), (LOGIT, TUNED, LOGIT), (cell.row, cell.row, -1), strict=True):
        wanted = expected(library(text, lens), row, cell.token)
        assert len(lines) == 20
        assert [token for token, _ in lines] == [visible(reading(i), 24) for i, _ in wanted], title
        np.testing.assert_allclose([p for _, p in lines], [p for _, p in wanted], atol=0.0051)
    assert f"after token {cell.token} of the {('text', 'second text')[cell.side]}" in html
    assert f"next comes <code>{visible(text[cell.token + 1])}</code>" in html


def test_the_model_itself_and_a_model_without_a_tuned_lens(cache: ViewerCache) -> None:
    assert list(tables(cell_tables(cache, settings(cell=f"0.2.{len(TEXT) - 1}")))) == ["Model"]
    html = cell_tables(cache, settings(model="rwkv4", lens=LOGIT, cell=f"0.2.{len(TEXT) - 1}"))
    assert "This model has no tuned lens here." in html
    assert "where the text ends" in html
    assert [len(lines) for lines in tables(html).values()] == [20, 0, 20]


def test_the_token_that_comes_next_is_marked(cache: ViewerCache, library: Library) -> None:
    trajectory = library(TEXT, LOGIT)
    row, token = next((r, t) for r in range(2) for t in range(len(TEXT)) if 0 <= trajectory.rank[r, t] < 20)
    html = cell_tables(cache, settings(cell=f"0.{row}.{token}"))
    marked = re.search(r"<h4>Logit lens</h4>.*?<tr class='next'><td><code>(.*?)</code>", html)
    assert unescape(marked[1]) == visible(TEXT[token + 1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "no cell is chosen"),
        ({"cell": "1.0.0"}, "there is none"),
        ({"cell": "0.3.0"}, "row 3 and token 0, is not in the picture"),
        ({"cell": f"0.0.{len(TEXT)}"}, "is not in the picture"),
        ({"cell": "0.0.1", "tokens": "2-4"}, "is not in the picture"),
    ],
)
def test_cells_that_are_not_there(cache: ViewerCache, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cell_tables(cache, settings(**changes))


# --- answers, with Gradio ---------------------------------------------------------------------------------------------


@pytest.fixture
def answers(cache: ViewerCache) -> Answers:
    return Answers(pytest.importorskip("gradio"), cache, OPENING)


def test_a_chosen_cell_stays_where_only_the_colours_change(answers: Answers) -> None:
    before = settings(cell="0.1.3").query()
    for changes, cell in (({"statistic": "kl"}, "0.1.3"), ({"tab": "views"}, "0.1.3"), ({"stride": 2}, "")):
        fields = [getattr(settings(**changes), name) for name in FIELDS]
        assert answers.show(*fields, before)[-2] == settings(**changes, cell=cell).query()


def test_what_is_wrong_is_said_and_nothing_else_is_shown(answers: Answers) -> None:
    unset = ("lens", "mean", "", "", "")
    first, second, cell, *_, query, message = answers.show("mamba", TUNED, "<b>" * 200, "", "kl", 1, "", *unset)
    assert (first, second.value, second.visible, cell, query) == ("", "", "hidden", "", "")
    begins = "&lt;b&gt;" * 6 + "&lt;b"
    assert message == f"<p>The text “{begins}…” has 600 tokens; at most 512 are read here, shorten it.</p>"
    assert "stride is empty" in answers.show("mamba", TUNED, TEXT, "", "kl", None, "", *unset)[-1]
    assert "no lens" in answers.restore(settings(model="rwkv4").query())[-1]
    assert "row 9" in answers.explain(settings().query(), "0.9.0")[-1]


def test_gradio_is_asked_for_in_one_line(cache: ViewerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(
        ConfigError, match=r"^the web page needs gradio, which is not installed; pip install 'lens-rnn\[viewer\]'$"
    ):
        build_page(cache, TEXT)


# --- the script -------------------------------------------------------------------------------------------------------


def launched(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[ViewerCache, dict[str, Any], int]:
    """What eval/viewer.py would serve, and how."""
    served: dict[str, Any] = {}
    monkeypatch.setattr(lens_rnn.viewer, "build_page", lambda cache, _: served.update(cache=cache))
    monkeypatch.setattr(lens_rnn.viewer, "launch_page", lambda _, **options: served.update(options))
    code = run_in_process("eval/viewer.py", monkeypatch, *arguments)
    return served.pop("cache", None), served, code


def test_the_script_opens_on_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cache, options, code = launched(monkeypatch)
    assert code == 0
    assert [(name, choice.lens_names) for name, choice in cache.choices.items()] == [
        ("tiny-mamba", ("tiny-mamba-lens", LOGIT)),
        ("tiny-rwkv4", ("tiny-rwkv4-lens", LOGIT)),
    ]
    assert options == {"server_name": "127.0.0.1", "server_port": None, "share": False}
    assert cache.trajectory("tiny-mamba", "tiny-mamba-lens", "def f(", 1).shape == (8, 3)


def test_the_script_offers_lenses_of_any_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    adapter = load_model(ROOT / "checkpoints" / "tiny-mamba", device="cpu")
    eye = torch.eye(adapter.d_model)
    JacobianLens(adapter, dict.fromkeys(adapter.fitted_layers, eye), 1).save(tmp_path / "jacobian.v1.pt")
    cache, _, code = launched(monkeypatch, "--also", tmp_path / "jacobian.v1.pt")
    assert code == 0
    assert cache.choices["tiny-mamba"].lens_names == ("tiny-mamba-lens", "jacobian.v1", LOGIT)
    of_jacobian, of_logit = (cache.trajectory("tiny-mamba", lens, "def f(", 1) for lens in ("jacobian.v1", LOGIT))
    np.testing.assert_allclose(of_jacobian.kl, of_logit.kl, atol=1e-3)


def test_the_script_puts_its_own_model_first(lens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, options, code = launched(monkeypatch, "--model", "org/own.pth", "--lens", lens_folder, "--port", 8123)
    assert code == 0
    assert list(cache.choices) == ["own", "tiny-mamba", "tiny-rwkv4"]
    assert cache.choices["own"] == Choice(model="org/own.pth", lenses={TUNED: str(lens_folder)})
    assert options["server_port"] == 8123


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--port", 99999), "port is 99999; it must be at least 1 and at most 65535"), (("--text", "x" * 4097), "4,097")],
)
def test_bad_input_to_the_script_is_one_line(
    flags: tuple[Any, ...], words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    pytest.importorskip("gradio")
    assert run_in_process("eval/viewer.py", monkeypatch, *flags) == 2
    assert words in capfd.readouterr().err
