"""The page in headless Chromium: as it is opened, typed into, clicked, linked to and used by keyboard, on wide and
narrow screens."""

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lens_rnn.evaluation.tokens import token_reader, visible
from lens_rnn.models import ModelAdapter
from lens_rnn.viewer import LOGIT, Choice, Settings, ViewerCache, build_page, launch_page
from lens_rnn.views.attention import hidden_attention, shares
from lens_rnn.views.relevance import Explained, relevance
from tests.viewer.conftest import TUNED, Library

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")  # it uses what its own dependencies are about to drop

OPENING = "A state\nreads <b> & $x$."
WAIT = 60_000  # ms; slow machines
CLOSED_OFF = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DRAWN = "id => document.querySelector(`#${id} .plot`)?.data?.[0].z"
SETTLED = """() => {
    if (document.querySelector('#message p')) return true;
    const given = new URLSearchParams(location.search), query = location.search.slice(1).replace(/&cell=[^&]*$/, '');
    const wanted = given.get('tab') == 'views' ? ['matrix'] : given.get('second') ? ['first', 'second'] : ['first'];
    const drawn = id => document.querySelector(`#${id} .plot`)?.dataset.query;
    return document.querySelector('#link a')?.getAttribute('href') == location.search &&
        ['first', 'second', 'matrix'].every(id => drawn(id) == (wanted.includes(id) ? query : undefined));
}"""
"""Whether the link, the address bar and all pictures agree: an answer changes them one after the other."""
STATE = """() => [location.search, document.querySelector('#link a')?.getAttribute('href'),
    ...['first', 'second', 'matrix'].map(id => document.querySelector(`#${id} .plot`)?.dataset.query ?? null),
    document.body.innerText.slice(0, 2000)]"""
MIDDLE = """([id, row, column]) => {
    const { xaxis, yaxis } = document.querySelector(`#${id} .plot`)._fullLayout;
    return { x: xaxis._offset + xaxis.d2p(column), y: yaxis._offset + yaxis.d2p(row) };
}"""
STOP = """(e => e.tagName == 'A' ? 'link' : e.role == 'tab' ? 'tab' : e.closest('#run, #first, #second')?.id || e.type)(
    document.activeElement)"""
OUTLINED = """id => document.querySelector(`#${id} .plot`).layout.shapes.filter(shape => shape.type == "rect").map(
    shape => [(shape.y0 + shape.y1) / 2, (shape.x0 + shape.x1) / 2])"""


@pytest.fixture(scope="module")
def address(choices: dict[str, Choice], adapters: dict[str, ModelAdapter]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # Gradio would look from 7860 on, and so would another run beside this one
    page = build_page(ViewerCache(choices, adapters.__getitem__), OPENING)
    _, url, _ = launch_page(page, prevent_thread_lock=True, quiet=True, inbrowser=False, server_port=port)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=installed, args=CLOSED_OFF)
        except playwright.Error:
            if os.environ.get("LENS_RNN_BROWSER") == "required":
                raise
            pytest.skip("no Chromium is installed")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def wide(browser: Any) -> Any:
    """Shared by all pages but the narrow ones, for what the browser has fetched; every page is a user of its own."""
    return browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture(scope="module")
def narrow(browser: Any) -> Any:
    return browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)


@pytest.fixture
def new_page(wide: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens a page at a query. In the end nothing was complained of on the console, and nothing was fetched from
    elsewhere."""
    troubles: list[str] = []
    pages = []

    def open_page(query: str = "", context: Any = wide) -> Any:
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: troubles.append(message.text) if is_trouble(message) else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else troubles.append(asked.url),
        )
        page.goto(f"{address}?{query}")
        settle(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert troubles == []


def is_trouble(message: Any) -> bool:
    """Not that a file was preloaded long before it was used: that says how slow the machine is."""
    return message.type in ("error", "warning") and "was preloaded using link preload" not in message.text


def settle(page: Any) -> None:
    """Wait until nothing is under way. Where it never ends, say how far it came."""
    try:
        page.wait_for_function(SETTLED)
    except playwright.TimeoutError:
        pytest.fail(f"the page never settled: {page.evaluate(STATE)}")


def query_of(page: Any) -> str:
    """The query in the address bar. playwright's own page.url follows it late."""
    return page.evaluate("location.search.slice(1)")


def says(page: Any, place: str, words: str) -> None:
    """Wait until a part of the page says something."""
    page.wait_for_function(
        "([place, words]) => document.querySelector(place)?.innerText.includes(words)", arg=[place, words]
    )


def click(page: Any, id: str, row: int, column: int) -> None:
    """Click the middle of a cell, once nothing lies over it."""
    page.locator(f"#{id} .plot").click(position=page.evaluate(MIDDLE, [id, row, column]))


def box(page: Any, label: str) -> Any:
    return page.get_by_role("textbox", name=re.compile(f"^{label}"))


def run(page: Any, by: Callable[[], Any]) -> None:
    """Do something that makes the page run, and wait until all that it changes has followed."""
    settle(page)
    before = query_of(page)
    by()
    page.wait_for_function("before => location.search.slice(1) != before", arg=before)
    settle(page)


def drawn(page: Any, id: str = "first") -> np.ndarray:
    return np.array(page.evaluate(DRAWN, id), float)


def columns(page: Any) -> dict[str, list[tuple[str, float]]]:
    """The tables of the chosen cell: token and percentage of each line, by heading."""
    sections = page.locator("#cell section").all()
    rows = {part.locator("h4").inner_text(): part.locator("tbody tr").all_inner_texts() for part in sections}
    return {title: [(row.split("\t")[0], float(row.split("\t")[1])) for row in lines] for title, lines in rows.items()}


def test_open_type_run_click_read_and_follow_the_link(
    new_page: Callable[..., Any], library: Library, adapters: dict[str, ModelAdapter]
) -> None:
    page = new_page()
    np.testing.assert_allclose(drawn(page), library(OPENING).entropy, rtol=1e-3)

    text = "What is <i>not</i> said & done?"
    box(page, "Text").fill(text)
    run(page, lambda: box(page, "Text").press("Enter"))
    run(page, lambda: page.get_by_role("radio", name="KL divergence").check())
    np.testing.assert_allclose(drawn(page), library(text).kl, rtol=1e-3, atol=1e-5)

    run(page, lambda: click(page, "first", 1, 6))
    page.wait_for_selector("#cell table")
    shown = columns(page)
    reading = token_reader(adapters["mamba"].tokenizer)
    assert list(shown) == ["Logit lens", "Tuned lens", "Model"]
    for lines, lens, row in zip(shown.values(), (LOGIT, TUNED, LOGIT), (1, 1, -1), strict=True):
        trajectory = library(text, lens)
        assert [token for token, _ in lines] == [visible(reading(i), 24) for i in trajectory.top_ids[row, 6].tolist()]
        np.testing.assert_allclose([p for _, p in lines], 100 * trajectory.top_probabilities[row, 6], atol=0.0051)
    assert page.evaluate(OUTLINED, "first") == [[1, 6]]

    assert page.get_by_role("link", name="Permanent link").evaluate("link => link.search.slice(1)") == query_of(page)
    other = new_page(query_of(page))
    other.wait_for_selector("#cell table")
    assert columns(other) == shown
    assert box(other, "Text").input_value() == text
    assert other.get_by_role("radio", name="KL divergence").is_checked()
    assert other.evaluate(OUTLINED, "first") == [[1, 6]]
    np.testing.assert_array_equal(drawn(other), drawn(page))


def test_all_settings_and_the_comparison(new_page: Callable[..., Any], library: Library) -> None:
    page = new_page()
    run(page, lambda: page.get_by_role("radio", name=LOGIT).check())
    page.get_by_label("Layer stride").fill("2")
    box(page, "Tokens shown").fill("2-5")
    box(page, "Second text").fill("Another one")
    run(page, lambda: page.get_by_role("button", name="Run").click())
    for id, text in (("first", OPENING), ("second", "Another one")):
        np.testing.assert_allclose(drawn(page, id), library(text, LOGIT, 2).entropy[:, 2:6], rtol=1e-3)

    other = new_page(query_of(page))
    np.testing.assert_array_equal(drawn(other, "second"), drawn(page, "second"))
    fields = [other.get_by_label("Layer stride"), box(other, "Tokens shown"), box(other, "Second text")]
    assert [field.input_value() for field in fields] == ["2", "2-5", "Another one"]
    assert other.get_by_role("radio", name=LOGIT).is_checked()

    run(page, lambda: page.get_by_role("radio", name="rwkv4").check())
    assert page.get_by_role("radio", name=TUNED).count() == 0
    assert "model=rwkv4&lens=logit+lens" in query_of(page)
    assert drawn(page).shape == (5, 4)  # every second of 7 layers, and the model


def test_by_keyboard_alone(new_page: Callable[..., Any]) -> None:
    page = new_page("second=Another+one")
    box(page, "Text").focus()
    stops = []
    while "link" not in stops and len(stops) < 30:
        page.keyboard.press("Tab")
        stops.append(page.evaluate(STOP))
    assert stops[0] == "textarea"
    assert stops[-4:] == ["run", "first", "second", "link"]
    assert list(dict.fromkeys(stops[1:-4])) == ["radio", "tab", "number", "text"]

    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    for key in (
        "ArrowRight",
        "ArrowUp",
        "ArrowRight",
        "ArrowRight",
        "ArrowLeft",
    ):  # the first key enters at the first cell
        page.keyboard.press(key)
    page.wait_for_url(re.compile(r"cell=0\.1\.1$"))
    assert page.evaluate(OUTLINED, "first") == [[1, 1]]
    says(page, "#cell h3", "At layer 1")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowUp"):  # and there is no way out
        page.keyboard.press(key)
    page.wait_for_url(re.compile(r"cell=0\.2\.0$"))
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.wait_for_url(re.compile(r"cell=1\.0\.0$"))
    assert (page.evaluate(OUTLINED, "first"), page.evaluate(OUTLINED, "second")) == ([], [[0, 0]])

    box(page, "Second text").focus()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    run(page, lambda: page.keyboard.press("Enter"))
    assert "second=Another+one%0Aline" in query_of(page)


def test_a_narrow_screen_scrolls_the_heat_map_only(new_page: Callable[..., Any], narrow: Any) -> None:
    page = new_page(f"text={'x' * 100}&second=y&cell=0.0.0", narrow)
    page.wait_for_selector("#cell table")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    frames = [page.locator(f"#{id} .heat-map") for id in ("first", "second")]
    first, second = (frame.bounding_box() for frame in frames)
    assert 300 < first["width"] <= 390
    assert second["y"] > first["y"] + first["height"], "one below the other"
    scroll = "frame => [frame.scrollWidth > 1000, frame.scrollLeft > 0]"
    assert frames[0].evaluate(scroll) == [True, False]
    frames[0].focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile(r"cell=0\.0\.40$"))
    assert frames[0].evaluate(scroll) == [True, True], "it follows the chosen cell"
    page.locator("#first .plot").tap(position=page.evaluate(MIDDLE, ["first", 1, 42]))
    says(page, "#cell h3", "after token 42")
    tables = [table.bounding_box() for table in page.locator("#cell table").all()]
    assert len({table["y"] for table in tables}) == 1, "side by side"
    assert max(table["x"] + table["width"] for table in tables) <= 390


def test_views_in_a_tab_of_their_own(
    new_page: Callable[..., Any], narrow: Any, adapters: dict[str, ModelAdapter]
) -> None:
    page = new_page()
    run(page, lambda: page.get_by_role("tab", name="Views").press("Enter"))
    assert not page.locator("#first .heat-map").is_visible()
    assert not box(page, "Second text").is_visible()
    ids = adapters["mamba"].tokenizer(OPENING)["input_ids"]
    layers = [shares(matrix).numpy() for matrix in hidden_attention(adapters["mamba"], ids).matrices]
    np.testing.assert_allclose(np.tril(np.nan_to_num(drawn(page, "matrix"))) ** 2, np.mean(layers, axis=0), atol=2e-5)

    page.get_by_role("radio", name="the likeliest").focus()
    page.keyboard.press("Tab")
    run(page, lambda: page.keyboard.press("Space"))
    picked = int(re.search(r"token=(\d+)$", query_of(page))[1])
    explained = relevance(adapters["mamba"], ids, Explained(token=picked))
    says(page, "#relevance", f"It is {explained.value:.3f};")
    box(page, "Hidden attention").fill("1")
    run(page, lambda: box(page, "Hidden attention").press("Enter"))

    other = new_page(query_of(page), narrow)
    assert other.get_by_role("tab", name="Views").get_attribute("aria-selected") == "true"
    assert query_of(other) == query_of(page)
    assert other.locator("#relevance section").inner_text() == page.locator("#relevance section").inner_text()
    assert other.locator(f"input[type=radio][value='{picked}']").is_checked()
    assert other.evaluate("document.documentElement.scrollWidth") == 390
    other.locator("#matrix .heat-map").focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft"):  # the first key enters at the last cell
        other.keyboard.press(key)
    row, column = len(ids) - 1, len(ids) - 3
    says(other, "#matrix .said", f"Token {row}, ., reads token {column}, x: share {layers[1][row, column]:.4f}")
    other.wait_for_function("document.querySelector('#matrix .heat-map').scrollLeft > 0")  # it follows the chosen cell
    colours = other.locator("#matrix .cbfill").evaluate("bar => bar.style.fill.slice(5, -2)")
    assert other.evaluate("id => document.querySelector(id).tagName", colours) == "linearGradient", (
        "wherever the page's address is"
    )

    run(page, lambda: page.get_by_role("tab", name="Lens").click())
    assert drawn(page).shape == (3, len(ids))
    assert not page.locator("#relevance").is_visible()


def test_what_cannot_be_done_is_said(new_page: Callable[..., Any]) -> None:
    page = new_page("model=gone")
    assert page.get_by_role("alert").inner_text() == "There is no model 'gone' here; choose from mamba, rwkv4."
    run(page, lambda: page.get_by_role("button", name="Run").click())
    assert drawn(page).shape == (3, len(OPENING))
    for label, typed, words in (
        ("Text", "  ", "The text is empty; type something for the model to read."),
        (
            "Second text",
            "<b>" * 200,
            "The text “<b><b><b><b><b><b><b…” has 600 tokens; at most 512 are read here, shorten it.",
        ),
        (
            "Tokens shown",
            "5-99",
            "The token range 5-99 is not in the text, which has the tokens 0-23; change the range.",
        ),
    ):
        right = box(page, label).input_value()
        box(page, label).fill(typed)
        page.get_by_role("button", name="Run").click()
        page.wait_for_selector("#message p")
        assert page.get_by_role("alert").inner_text() == words
        page.wait_for_selector("#first .heat-map", state="hidden")
        box(page, label).fill(right)
        page.get_by_role("button", name="Run").click()
        page.wait_for_selector("#message p", state="detached")
        page.wait_for_selector("#first .heat-map", state="visible")


def test_five_users_at_once(address: str, library: Library) -> None:
    client = pytest.importorskip("gradio_client")

    def use(user: int) -> None:
        session = client.Client(address, verbose=False, analytics_enabled=False)
        for request in range(4):
            text, tokens = f"User {user} {'says ' * request}.", f"{user}-{user + 2}"
            picture, *_, query, message = session.predict(
                "mamba", TUNED, text, "", "entropy", 1, tokens, "lens", "mean", "", "", "", api_name="/show"
            )
            shown = np.array(json.loads(picture)["figure"]["data"][0]["z"])
            np.testing.assert_allclose(shown, expected[text].entropy[:, user : user + 3], rtol=1e-3)
            assert query == Settings(model="mamba", lens=TUNED, text=text, tokens=tokens).query()
            assert message == ""

    expected = {
        text: library(text)
        for text in (f"User {user} {'says ' * request}." for user in range(5) for request in range(4))
    }
    with ThreadPoolExecutor(5) as users:
        list(users.map(use, range(5)))
