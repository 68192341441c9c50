"""The page in headless Chromium: every task answered, nothing run that a text or a label says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from real_server import served

CHROMIUM = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", "page_out"))
HOSTILE = '<img src=x onerror="window.hacked=1"> the value of <b>this</b> object \N{SNOWMAN}'
WAIT_MS = 15_000


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        # Without its sandbox, which a container's root cannot have: it sees this page alone.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """Opened, with what went wrong in it noted, and each request that left the server."""
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    faults, elsewhere = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda one: None if one.url.startswith(url) else elsewhere.append(one.url))
    page.goto(url)
    expect(page.locator("#run")).to_be_enabled()
    yield page
    assert page.evaluate("window.hacked") is None
    assert elsewhere == []
    allowed = getattr(page, "allowed", "nothing")
    assert [fault for fault in faults if allowed not in fault] == []
    context.close()


def ask(page, model, button="#run", **fields):
    page.select_option("#model", model)
    for name, text in fields.items():
        page.fill(f"#field-{name}", text)
    page.click(button)
    expect(page.locator("#status")).to_contain_text("Answered in")


def shot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def native(url, model, verb="predict", **record):
    body = {"record": record}
    told = httpx.post(f"{url}/v1/models/{model}:{verb}", json=body, timeout=60).json()
    return told["answers"][0] if verb == "predict" else told


def test_labels_as_bars(page, url):
    ask(page, "reviews", text=HOSTILE)
    answer = native(url, "reviews", text=HOSTILE)
    expect(page.locator("#answer .big")).to_have_text(answer["label"])
    rows = page.locator(".bars li")
    expect(rows).to_have_count(3)
    best = max(answer["scores"].values())
    expect(rows.first).to_contain_text(f"{100 * best:.1f} %")
    width = rows.first.locator(".track > div").evaluate("bar => parseFloat(bar.style.width)")
    assert width == pytest.approx(100 * best, abs=0.1)
    assert page.locator("#answer img").count() == 0
    expect(page.locator("#answer")).to_contain_text("<img src=x onerror=alert(1)>")
    shot(page, "labels")


def test_entities_in_the_text(page, url):
    text = "\N{SNOWMAN}\U0001f600 <b>the value</b> of an object with a class"
    ask(page, "entities", text=text)
    found = native(url, "entities", text=text)
    marks = page.locator("#answer mark")
    entities = sorted(found["entities"], key=lambda one: one["begin"])
    assert marks.count() == len(entities) > 0
    for i, one in enumerate(entities):
        expected = text[one["begin"] : one["end"]]
        shown = marks.nth(i).evaluate("mark => mark.firstChild.textContent")
        assert shown == expected
    assert page.locator("#answer b").count() == 0
    shot(page, "entities")


def test_an_answer_in_its_context(page, url):
    context = "\U0001f600 The value of an object is a class with the function. <i>This</i> is it."
    record = {"question": "what is it", "context": context}
    ask(page, "questions", **record)
    answer = native(url, "questions", **record)
    expect(page.locator("#answer .big")).to_have_text(answer["answer"])
    expect(page.locator("#answer mark")).to_have_text(context[answer["begin"] : answer["end"]])
    shot(page, "answer")


def test_choices(page, url):
    record = {"passage": "the value", "choices": ["an object", "a <b>class</b>", "this"]}
    ask(page, "choices", passage="the value", choices="\n".join(record["choices"]))
    answer = native(url, "choices", **record)
    expect(page.locator("#answer .big")).to_have_text(answer["text"])
    expect(page.locator(".bars li.best")).to_contain_text(answer["text"])
    shot(page, "choices")


def test_vectors(page, url):
    ask(page, "vectors", text="the value")
    vector = native(url, "vectors", text="the value")["embedding"]
    norm = sum(x * x for x in vector) ** 0.5
    shown = page.locator("#answer .big").inner_text()
    assert float(shown.removeprefix("norm ")) == pytest.approx(norm, rel=1e-3)
    expect(page.locator("#answer")).to_contain_text(f"First of {len(vector)} values")
    shot(page, "vectors")


def test_a_text_is_written(page, url):
    page.select_option("#model", "writer")
    page.click("#more summary")
    page.fill("#parameter-max_new_tokens", "30")
    ask(page, "writer", text="the value of <b>")
    body = {"record": "the value of <b>", "parameters": {"max_new_tokens": 30}}
    told = httpx.post(f"{url}/v1/models/writer:predict", json=body).json()["answers"][0]
    whole = page.locator("#json").evaluate("pre => JSON.parse(pre.textContent).text")
    assert whole == told["text"]
    shot(page, "writing")


def test_writing_can_be_stopped(page):
    page.select_option("#model", "writer")
    page.click("#more summary")
    page.fill("#parameter-max_new_tokens", "9000")
    page.fill("#field-text", "the value of")
    page.click("#run")
    expect(page.locator(".written")).to_contain_text("the value of")
    page.click("#stop")
    expect(page.locator("#status")).to_have_text("Stopped.")


def test_attributions_are_coloured(page, url):
    text = "the <b>value</b> of an object"
    ask(page, "reviews", "#explain", text=text)
    tokens = native(url, "reviews", "explain", text=text)["tokens"]
    spans = page.locator(".token")
    assert "".join(spans.all_inner_texts()).replace(" ", "") == text.replace(" ", "")
    scores = {one["token"]: one["score"] for one in tokens}
    assert spans.count() <= len(scores) + 5
    colours = spans.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert len(set(colours)) > 2
    shot(page, "attributions")


def test_what_is_wrong_is_shown(page):
    page.allowed = "status of 400"
    page.select_option("#model", "reviews")
    page.fill("#field-text", " ")
    page.click("#run")
    expect(page.locator("#error")).to_contain_text("400: ")
    expect(page.locator("#error")).to_contain_text("text is empty")
    shot(page, "error")


def test_by_keyboard_and_read_aloud(page):
    page.select_option("#model", "reviews")
    page.focus("#field-text")
    page.keyboard.type("the value")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Answered in")
    assert page.locator("#error").get_attribute("role") == "alert"
    for control in page.locator("input, select, textarea").all():
        named = "one => one.labels?.length || one.getAttribute('aria-label')"
        assert control.evaluate(named), control.evaluate("one => one.id")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_dark_and_narrow(browser, url):
    context = browser.new_context(color_scheme="dark", viewport={"width": 420, "height": 800})
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#run")).to_be_enabled()
    ask(page, "entities", text="the value of an object with a class")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", back)[:3])) < 150
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot(page, "dark")
    context.close()


def test_a_token_is_asked_for(browser, folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-the-tests\n")
    tokens.chmod(0o600)
    with served(str(folder / "reviews"), "--tokens-file", str(tokens)) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#error")).to_contain_text("401")
        page.fill("#token", "a-token-of-the-tests")
        page.keyboard.press("Tab")
        expect(page.locator("#run")).to_be_enabled()
        expect(page.locator("#error")).to_be_hidden()
        ask(page, "reviews", text="the value")
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert page.evaluate("document.cookie") == ""
        context.close()
