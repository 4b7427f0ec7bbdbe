"""The page's second tab, without a browser: hidden attention and relevance as the library gives them, or what is in the
way."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.lens import TunedLens
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.viewer import Choice, Settings, ViewerCache
from lens_rnn.viewer import cache as cache_module
from lens_rnn.viewer.answers import FIELDS, Answers
from lens_rnn.viewer.view_pictures import matrix, relevance_html, tokens_to_pick
from lens_rnn.views.attention import hidden_attention, rollout
from lens_rnn.views.relevance import Explained, relevance
from tests.conftest import make_model
from tests.models.tiny_hybrids import make_hybrid
from tests.viewer.conftest import TUNED, VOCAB_SIZE

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

TEXT = "A <b> & $x$."


def settings(**changes: Any) -> Settings:
    return Settings(**{"model": "mamba", "lens": TUNED, "text": TEXT, "tab": "views", **changes})


def fields(**changes: Any) -> list[Any]:
    return [getattr(settings(**changes), name) for name in FIELDS]


@pytest.fixture(scope="module")
def ids(byte_tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return byte_tokenizer(TEXT)["input_ids"]


@pytest.fixture
def answers(cache: ViewerCache) -> Answers:
    return Answers(pytest.importorskip("gradio"), cache, settings(tab="lens"))


# --- hidden attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mamba", "rwkv4"])
@pytest.mark.parametrize("attention", ["mean", "rollout", "0", "1"])
def test_the_matrix_is_the_librarys(
    cache: ViewerCache, adapters: dict[str, ModelAdapter], ids: list[int], model: str, attention: str
) -> None:
    matrices = hidden_attention(adapters[model], ids).matrices
    of_rows = (matrices / matrices.sum(-1, keepdim=True)).numpy()
    wanted = {"mean": of_rows.mean(0), "rollout": rollout(matrices).numpy()} | {
        str(i): of_rows[i] for i in range(len(of_rows))
    }
    text = matrix(cache, settings(model=model, lens=cache.choice(model).lens_names[0], attention=attention))
    assert "<" not in text, "safe within HTML"
    picture = json.loads(text)
    (cells,) = picture["figure"]["data"]
    shown = np.array(cells["customdata"], float)
    assert np.isnan(shown[np.triu_indices(len(ids), 1)]).all()
    np.testing.assert_allclose(np.nan_to_num(shown), np.tril(wanted[attention]), atol=1e-5)
    assert picture["names"] == [character.replace(" ", "␣") for character in TEXT]
    assert "sliders" not in picture["figure"]["layout"]


def test_matrices_that_are_not_there(cache: ViewerCache) -> None:
    with pytest.raises(
        ConfigError, match="mamba has no layer 9; choose from 0 to 2 for hidden attention, or mean or rollout"
    ):
        matrix(cache, settings(attention="9"))
    assert len(json.loads(matrix(cache, settings(text="x" * 128)))["names"]) == 128
    with pytest.raises(DataError, match=r"the text “x+…” has 129 tokens; at most 128 fit into the matrix, shorten it$"):
        matrix(cache, settings(text="x" * 129))


# --- relevance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "token"), [("", ""), ("", "17"), ("1", ""), ("0", "17")])
def test_relevance_is_the_librarys(
    cache: ViewerCache, adapters: dict[str, ModelAdapter], ids: list[int], at: str, token: str, lens_folder: Any
) -> None:
    lens = TunedLens.load(adapters["mamba"], lens_folder)
    layer, picked = (int(value) if value else None for value in (at, token))
    wanted = relevance(adapters["mamba"], ids, Explained(token=picked, layer=layer), lens=lens)
    html = relevance_html(cache, settings(at=at, token=token))
    titles = re.findall(r'title="token (\d+), .*?: ([-+.\d]+)"', html)
    assert [int(place) for place, _ in titles] == [*range(len(ids))]
    np.testing.assert_allclose([float(value) for _, value in titles], wanted.tokens, atol=6e-5)
    rows = re.findall(r"<tr><td>(\d+)</td><td><code>(.*?)</code></td><td>([-+.\d]+)</td></tr>", html)
    order = sorted(range(len(ids)), key=lambda i: -abs(float(wanted.tokens[i])))[:10]
    assert [(int(place), unescape(said).replace("␣", " ")) for place, said, _ in rows] == [(i, TEXT[i]) for i in order]
    np.testing.assert_allclose([float(value) for *_, value in rows], wanted.tokens[order], atol=6e-4)
    assert f"It is {wanted.value:.3f}; the tokens make {float(wanted.tokens.sum()):.3f} of it" in html
    assert (f"at layer {at}, as {TUNED} reads it," in html) == bool(at)


@pytest.mark.parametrize("at", ["", "1"])
def test_the_tokens_to_pick_are_the_likeliest(cache: ViewerCache, at: str) -> None:
    likeliest = relevance(cache._model("mamba").adapter, cache._ids("mamba", TEXT, 99), Explained()).explained.token
    trajectory = cache.trajectory("mamba", TUNED, TEXT, 1)
    ids = trajectory.top_ids[1 if at else -1, -1, :10].tolist()
    choices = tokens_to_pick(cache, settings(at=at, token=str(ids[3])), explained=True)
    assert [token for _, token in choices] == ["", *map(str, ids[1:])]
    assert at or ids[0] == likeliest
    assert choices[0][0].endswith(" (the likeliest)")
    rare = trajectory.top_ids[-1, -1, 15]
    assert tokens_to_pick(cache, settings(token=str(rare)), explained=True)[-1][1] == str(rare), (
        "one that a link brings"
    )
    assert [token for _, token in tokens_to_pick(cache, settings(token="17"), explained=False)] == ["", "17"]


def test_a_layer_that_no_lens_reads(cache: ViewerCache) -> None:
    for layer in ("2", "9"):  # the last of three is the model's own
        with pytest.raises(ConfigError, match=f"no lens reads layer {layer} of mamba; choose one of the heat map's"):
            relevance_html(cache, settings(at=layer))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_model_may_have_one_view_or_none(
    adapters: dict[str, ModelAdapter], byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    models = adapters | {
        name: wrap_model(make_model(name, VOCAB_SIZE), byte_tokenizer) for name in ("neox", "recurrent_gemma")
    }
    cache = ViewerCache({name: Choice(model=name) for name in models}, models.__getitem__)
    answers = Answers(pytest.importorskip("gradio"), cache, settings(lens="logit lens"))
    shown = {name: answers.show(*fields(model=name, lens="logit lens"), "") for name in models}
    assert [bool(picture) for *_, picture, _, _, _ in shown.values()] == [True, True, True, False]
    said = [
        re.findall(r"<p>Model type &#x27;\w+&#x27; has no (hidden attention|relevance)", parts[3])
        for parts in shown.values()
    ]
    assert said == [[], ["relevance"], ["relevance"], ["relevance", "hidden attention"]]
    for *_, query, message in shown.values():
        assert "tab=views" in query
        assert message == ""


@pytest.mark.parametrize(
    ("asked", "said"), [("rollout", "mean over layers"), ("mean", "mean over layers"), ("1", "layer 1, attention")]
)
def test_a_hybrid_has_matrices_of_some_layers_by_kind(
    asked: str, said: str, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Nemotron-H's third kind of block mixes no tokens, so there is no rollout."""
    hybrid = wrap_model(make_hybrid("nemotron_h", VOCAB_SIZE), byte_tokenizer)
    cache = ViewerCache({"hybrid": Choice(model="hybrid")}, {"hybrid": hybrid}.__getitem__)
    assert said in matrix(cache, settings(model="hybrid", lens="logit lens", attention=asked))


def test_a_text_too_long_for_the_matrix_still_has_relevance(answers: Answers) -> None:
    *_, said, picture, _, query, message = answers.show(*fields(text="x" * 130), "")
    assert said.count("<span") == 130
    assert (
        "<p>The text “xxxxxxxxxxxxxxxxxxxx…” has 130 tokens; at most 128 fit into the matrix, shorten it.</p>" in said
    )
    assert (picture, message) == ("", "")
    assert query


def test_a_picked_token_stays_with_its_text_and_layer(answers: Answers) -> None:
    before = settings(token="17").query()
    for changes, token in (
        ({}, "17"),
        ({"attention": "0"}, "17"),
        ({"text": "B"}, ""),
        ({"at": "1"}, ""),
        ({"lens": "logit lens"}, ""),
    ):
        *_, picks, query, _ = answers.show(*fields(**changes, token="17"), before)
        assert query == settings(**changes, token=token).query()
        assert picks.value == token
    *_, picks, query, _ = answers.restore(before)
    assert (picks.value, query) == ("17", before)
    assert answers.restore(before)[0].selected == "views"


def test_a_tab_that_is_open_already_asks_for_nothing(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = settings().query()
    assert answers.open(*fields(tab="lens"), shown)[-2] == settings(tab="lens").query()
    assert answers.open(*fields(), "")[-2] == shown, "after something that could not be done"
    monkeypatch.setattr(answers, "show", None)
    unread = fields()
    unread[FIELDS.index("tab")] = ""
    for values in ([*fields(), shown], [*unread, ""]):
        assert len({json.dumps(part) for part in answers.open(*values)}) == 1


def test_views_and_trajectories_share_one_thread_and_are_kept(
    cache: ViewerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def watch(name: str) -> None:
        does = getattr(cache_module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            threads.append(threading.get_ident())
            return does(*arguments, **options)

        monkeypatch.setattr(cache_module, name, watched)

    for name in ("predict", "hidden_attention", "relevance"):
        watch(name)

    def use(text: str) -> tuple[object, ...]:
        asked = cache.trajectory("mamba", TUNED, text, 1), cache.attention("mamba", text)
        return *asked, cache.relevance("mamba", TUNED, text, 1, None)

    texts = [f"user {i}" for i in range(5)]
    with ThreadPoolExecutor(5) as users:
        first, again = list(users.map(use, texts)), list(users.map(use, texts))
    assert len(threads) == 15
    assert len(set(threads)) == 1
    assert all(
        one is other for ones, others in zip(first, again, strict=True) for one, other in zip(ones, others, strict=True)
    )
