"""The page: it comes without a token, asks this server alone, and makes no markup of texts.

How it looks and what it does, `make browser` tries in a browser.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from small_service import SmallService, client_of

from xlnet_fast.serve.protocols import page, sagemaker

ROOT = Path(str(files(page.__package__) / "page"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in ROOT.iterdir()}


@pytest.fixture(scope="module")
def ask():
    return client_of(page.router, SmallService())


@pytest.mark.parametrize("path", page.FREE_PATHS)
def test_every_file_comes_with_the_policy(ask, path):
    response = ask("GET", path)
    assert response.status_code == 200
    assert response.text == TEXTS[Path(path).name or "index.html"]
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert ask("HEAD", path).status_code == 200


def test_there_is_no_other_file(ask):
    assert {Path(path).name or "index.html" for path in page.FREE_PATHS} == set(TEXTS)
    for path in ("/page/", "/page/page.py", "/page/../page.py", "/page/%2e%2e/page.py"):
        assert ask("GET", path).status_code == 404


def test_the_document_names_only_files_that_are_there():
    named = re.findall(r'(?:src|href)="([^"#][^"]*)"', TEXTS["index.html"])
    assert "page/page.js" in named
    assert {f"/{name}" for name in named} <= {*page.FREE_PATHS, "/openapi.json"}
    imported = re.findall(r'from "\./([^"]+)"', TEXTS["page.js"])
    assert set(imported) <= set(TEXTS)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_nothing_comes_from_elsewhere(name):
    without_names = TEXTS[name].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", without_names)


@pytest.mark.parametrize("name", ["page.js", "show.js", "index.html"])
def test_no_text_becomes_markup(name):
    wrong = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser"
    wrong += r"|setAttribute\(\"(?:on|style)|javascript:|localStorage|sessionStorage|cookie"
    assert not re.search(wrong, TEXTS[name])
    assert not re.search(r"\son[a-z]+=|<script>|\sstyle=", TEXTS["index.html"])


def test_every_field_has_a_label():
    html = TEXTS["index.html"]
    for tag in re.findall(r"<(?:input|select|textarea)[^>]*>", html):
        name = re.search(r'id="([^"]+)"', tag)[1]
        assert f'for="{name}"' in html or "aria-label=" in tag, tag


def test_the_script_asks_for_routes_that_are_there():
    """With the names that the protocols have."""
    script = TEXTS["page.js"]
    assert f'"{sagemaker.TARGET_MODEL}"' in script
    assert set(re.findall(r"request\(\"(\w[\w/]*)\"", script)) == {"v1/models", "invocations"}
