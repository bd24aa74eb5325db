"""The page of a comparison: the verdict in words, nothing that is loaded from elsewhere, and no name that is markup."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.cli.compare import main
from cxr_compress.device import INTENDED_USE
from cxr_compress.evaluate.predictions import predictions_csv
from cxr_compress.report.page import render_page
from tests.device.reference import FLOAT_MODEL, INT8_MODEL
from tests.evaluate.compared import draw_logits, noised, score

SCRIPT, IMAGE = "<script>alert(1)</script>", "<img src=//x.example onerror=alert(2)>"
RUNS = ("script", "link", "iframe", "object", "embed", "img", "base")
# Attributes by which a page or an SVG can load or run something.
LOADS = ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "background")


class Page(HTMLParser):
    """What a browser would see: elements with their attributes and path, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def outside(text: str) -> Iterator[str]:
    """All that a page would load or run."""
    page = Page(text)
    yield from (
        tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object", "embed", "img", "base")
    )
    for tag, attributes in page.elements:
        yield from (f"{tag} {name}" for name in attributes if name.startswith("on"))
        yield from (f"{tag} {attributes[name]}" for name in LOADS if not attributes.get(name, "#").startswith("#"))
    yield from re.findall(r"@import[^;]*|url\((?!#)[^)]*\)", text)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of a reference, the same again, and others; a group and a finding have bad names."""
    pytest.importorskip("jinja2", reason="needs the extra report")
    folder = tmp_path_factory.mktemp("predictions")
    labels, before, patients = draw_logits()
    groups = {"sex": ["F" if number % 4 < 2 else IMAGE for number in range(len(patients))]}
    few = 120
    for name, logits in (("original", before), ("same", before), ("lost", noised(before, 0, 1.0))):
        text = predictions_csv(score(labels, logits, patients), groups, key=b"key")
        (folder / f"{name}.csv").write_text(text.replace("_rare", f"_{SCRIPT}"))
    for name, scale in (("few", 0.0), ("few_noised", 0.3)):
        scored = score(labels[:few], noised(before, 0, scale)[:few], patients[:few])
        (folder / f"{name}.csv").write_text(predictions_csv(scored, key=b"key"))
    for name in ("unlabeled", "unlabeled_too"):
        text = predictions_csv(score(np.full_like(labels, np.nan), before, patients), key=b"key")
        (folder / f"{name}.csv").write_text(text)
    return folder


def compare(folder: Path, *names: str, flags: tuple[str, ...] = ()) -> tuple[str, dict]:
    """The page and the JSON of one call."""
    page, results = folder / "page.html", folder / "results.json"
    predictions = [f"--predictions={folder / name}.csv" for name in names]
    assert main([*predictions, f"--html={page}", f"--output_file={results}", "--bootstrap_samples=100", *flags]) in (
        0,
        3,
    )
    return page.read_text(), json.loads(results.read_text())


@pytest.fixture(scope="module")
def compared(files: Path) -> tuple[str, dict]:
    return compare(files, "original", "same", "lost", flags=("--margin=0.02",))


def test_page_says_the_verdict_first_in_words(compared) -> None:
    page, _ = compared
    words = " ".join(Page(page).text.split())
    start = words.index(INTENDED_USE)
    sentences = [
        "Of 2 compressed models 1 keeps what was asked (same.csv) and 1 does not keep it (lost.csv).",
        "same.csv keeps what was asked of it: for each of the 2 findings these images rule out that it lost 0.02 AUROC",
        "lost.csv does not keep what was asked of it: it is shown to be worse than original.csv for common",
        "What was not tested",
    ]
    places = [words.index(sentence) for sentence in sentences]
    assert places == sorted(places)
    assert places[0] - start < 100, "nothing but the use stands before it"
    for what in ("How long the models take: they were not timed", "Groups by view", "No limit was set for"):
        assert what in words, what
    assert words.endswith(INTENDED_USE)


def test_page_is_that_of_the_json_which_was_kept(compared) -> None:
    page, document = compared
    assert render_page(document) == page
    document["margin"] = 0.5
    assert render_page(document) != page


def test_page_loads_and_runs_nothing_whatever_the_names_are(compared) -> None:
    page, document = compared
    assert SCRIPT in document["candidates"][0]["comparison"]["findings"]
    assert list(outside(page)) == []
    text = Page(page).text
    assert SCRIPT in text
    assert IMAGE in text
    policy = next(meta for meta in Page(page).all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    unescaped = list(outside(page.replace("&lt;", "<").replace("&gt;", ">")))  # what is looked for would be seen
    assert {"script", "img", "img onerror", "img //x.example"} <= set(unescaped)


def test_page_has_headers_captions_and_words_for_every_picture(compared) -> None:
    page, _ = compared
    tables = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
    assert len(tables) >= 8
    for table in tables:
        assert table.count("<caption>") == 1
        head, body = table.split("<tbody>")
        columns = head.count('<th scope="col">')
        rows = re.findall(r"<tr>.*?</tr>", body, flags=re.DOTALL)
        assert rows
        for row in rows:
            assert row.count('<th scope="row">') == 1
            assert row.count("<th") + row.count("<td") == columns
    seen = Page(page)
    pictures = seen.all("svg")
    assert len(pictures) == 2, "one for each candidate"
    assert all(picture["role"] == "img" and "Drop of the AUROC" in picture["aria-label"] for picture in pictures)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {name for attributes in seen.all("section") if (name := attributes.get("aria-labelledby"))} <= set(ids)
    assert seen.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_page_without_labels_gives_no_verdict(files) -> None:
    page, _ = compare(files, "unlabeled", "unlabeled_too")
    words = " ".join(Page(page).text.split())
    assert "Nobody can say from these images whether unlabeled_too.csv is as good as unlabeled.csv" in words
    assert "Kappa" in words
    assert "Each finding" not in words
    assert not Page(page).all("svg")


def test_page_of_undecided_findings_says_how_many_more_images(files) -> None:
    page, document = compare(files, "few", "few_noised", flags=("--margin=0.02",))
    words = " ".join(Page(page).text.split())
    assert "It is not settled whether few_noised.csv can take the place of few.csv" in words
    assert "ruled out for none of 2 findings, and the images are too few to tell for common and rare" in words
    more = document["candidates"][0]["comparison"]["findings"]["common"]["more_of_the_rarer_class"]
    assert f"common: not enough images, {more:,} more of the rarer class would probably tell" in words
    assert "rare: not enough data (13 of the rarer class), so it cannot be judged" in words
    page, _ = compare(files, "few", "few_noised", flags=("--margin=0.5",))
    assert "ruled out for 1 of 2 findings" in " ".join(Page(page).text.split()), "a wide margin is"


def test_page_has_what_each_model_costs(files, tmp_path) -> None:
    from tests.cli.test_evaluate import write_set

    (tmp_path / "images").mkdir()
    flags = [f"--reference={FLOAT_MODEL}", f"--candidate={INT8_MODEL}", "--dataset=csv", "--bootstrap_samples=50"]
    page = tmp_path / "page.html"
    assert main([*flags, f"--data_dir={write_set(tmp_path / 'images')}", f"--html={page}", "--timed_runs=2"]) == 0
    text = Page(page.read_text()).text
    for model in (FLOAT_MODEL, INT8_MODEL):
        assert f"{model.stat().st_size:,}" in text
    assert "0.2 M" in text
    assert "they were not timed" not in text
    assert "the numbers of this page say nothing about patients" in " ".join(text.split()), "drawn weights"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_page_without_its_extra_says_what_to_install(package, tmp_path, capsys, monkeypatch) -> None:
    if package == "matplotlib":
        pytest.importorskip("jinja2", reason="needs the extra report")
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("image\n")
    flags = [f"--predictions={tmp_path / name}.csv" for name in ("a", "b")]
    assert main([*flags, f"--html={tmp_path / 'page.html'}"]) == 2
    expected = f"needs the Python package {package}, which is not installed: pip install 'cxr-compress[report]'"
    assert capsys.readouterr().err == f"cxr_compare: {expected}\n"


def test_page_replaces_its_own_and_nothing_else(files, capsys) -> None:
    compare(files, "original", "same", flags=("--by=",))
    capsys.readouterr()
    compare(files, "original", "same", flags=("--by=",))
    assert "page.html, the page of an earlier comparison" in capsys.readouterr().err
    other = files / "other.html"
    other.write_text("<!DOCTYPE html><title>mine</title>")
    flags = [f"--predictions={files / name}.csv" for name in ("original", "same")]
    assert main([*flags, f"--html={other}"]) == 2
    assert "not a file that cxr_compare is known to have written" in capsys.readouterr().err
