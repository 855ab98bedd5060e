"""The search page without a browser: content, JSON, errors, and what keeps it to itself."""

from __future__ import annotations

import os
import sys

import pytest
from starlette.testclient import TestClient

from gradatim.inference.search import FolderIndex, IndexSettings, build_index
from gradatim.serve import make_app
from gradatim.serve.app import LONGEST_QUESTION, MOST_AT_ONCE, _Service

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "inference", "search"))
from folders import make_folder, put

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    folder = make_folder(home / "docs", 6)
    put(folder / "notes" / f"{EVIL.replace('/', '_')}.md", f"# Title {EVIL}\n\nneedle \" & {EVIL} ' words")
    build_index(folder, home / "ix", IndexSettings(methods=("binary",), bits=32))
    return FolderIndex(home / "ix")


@pytest.fixture(scope="module")
def client(index):
    return TestClient(make_app(index), base_url="http://127.0.0.1:8765")


def test_first_page(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "7 files" in page.text
    assert '<html lang="en">' in page.text
    for method in ("bm25", "binary"):
        assert f'value="{method}"' in page.text
    assert 'value="dense"' not in page.text


def test_columns_side_by_side_without_scripts(client):
    page = client.get("/", params={"q": "needle matrix", "m": ["bm25", "binary"], "k": "5"}).text
    assert page.count('<section class="column"') == 2
    assert page.index('data-method="bm25"') < page.index('data-method="binary"')
    assert "<mark>needle</mark>" in page
    assert page.count('class="hit"') == 10
    one = client.get("/column", params={"q": "needle", "m": "bm25"}).text
    assert one.startswith("<section")
    assert one.count('class="hit"') == 1


def test_everything_is_escaped(client):
    for query in (f"needle {EVIL}", "needle \"'><img src=x onerror=alert(1)>"):
        for path in ("/", "/column"):
            text = client.get(path, params={"q": query, "m": "bm25"}).text
            assert "<script>alert" not in text
            assert "<img" not in text
    assert "&lt;script&gt;" in client.get("/", params={"q": "needle"}).text


def test_json(client):
    found = client.get("/api/search", params={"q": "needle", "method": "bm25", "k": 3}).json()
    assert found["hits"][0]["file"].startswith("notes/")
    assert found["method"] == "bm25"
    info = client.get("/api/index").json()
    assert info["files"] == 7
    assert info["methods"] == ["bm25", "binary"]
    assert "folder" not in info


@pytest.mark.parametrize(
    ("query", "status", "match"),
    [
        ({"q": ""}, 400, "empty"),
        ({}, 400, "empty"),
        ({"q": "x" * (LONGEST_QUESTION + 1)}, 413, "at most 1,000"),
        ({"q": "x", "k": "0"}, 400, "1 to 100"),
        ({"q": "x", "k": "101"}, 400, "1 to 100"),
        ({"q": "x", "k": "many"}, 400, "no number"),
        ({"q": "x", "method": "dense"}, 400, "was made for bm25, binary"),
        ({"q": "x", "method": "../x"}, 400, "no method"),
        ({"q": "x", "rerank": "1"}, 400, "no re-ranker"),
    ],
)
def test_bad_questions(client, query, status, match):
    answer = client.get("/api/search", params=query)
    assert answer.status_code == status
    assert match in answer.json()["error"]


def test_odd_addresses_fall_back(client):
    for query in (
        "m=none&q=needle",
        "k=99999999&q=needle",
        "k=-1&q=needle",
        "k=x&q=needle",
        "q=%ff%fe",
        "q=%00",
        "m=",
    ):
        assert client.get(f"/?{query}").status_code in (200, 400)
    assert client.get("/nothing").status_code == 404
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e%2fapp.py").status_code == 404
    assert client.post("/").status_code == 405


def test_headers_on_every_answer(client):
    for path in (
        "/",
        "/column?q=needle",
        "/api/search?q=needle",
        "/static/style.css",
        "/nothing",
        "/api/search",
    ):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
    assert client.get("/api/search?q=needle").headers["cache-control"] == "no-store"


def test_other_names_are_refused(index):
    app = make_app(index)
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        answer = TestClient(app, base_url="http://127.0.0.1").get("/", headers={"host": host})
        assert answer.status_code == 400
        assert "x-frame-options" in answer.headers
    for host in ("127.0.0.1:9", "localhost", "[::1]:8765"):
        assert (
            TestClient(app, base_url="http://127.0.0.1").get("/", headers={"host": host}).status_code == 200
        )
    assert TestClient(make_app(index, ("*",)), base_url="http://box.lan").get("/").status_code == 200


def test_nothing_is_loaded_from_elsewhere(client):
    texts = [client.get(p).text for p in ("/?q=needle", "/static/style.css", "/static/search.js")]
    for text in texts:
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "url(" not in text
    assert " style=" not in texts[0]
    assert "onclick" not in texts[0]


def test_too_many_at_once(index, monkeypatch):
    service = _Service(index, None)
    for _ in range(MOST_AT_ONCE):
        service._slots.acquire()
    monkeypatch.setattr(service._slots, "acquire", lambda timeout: False)
    status, error = service._search("needle", 3, "bm25", None)
    assert (status, "too many" in error) == (503, True)
