"""HTML that was left in a text is told from signs that only look like it, and taken away on request."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azneobert.data.cleaning import CleaningReport, clean
from azneobert.data.markup import find_html, strip_html
from azneobert.data.records import Records
from azneobert.recipe import Cleaning


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('salam <div class="a">', '<div class="a">'),
        ("mətn </p> son", "</p>"),
        ("mətn<br/>son", "<br/>"),
        ("bir&nbsp;iki", "&nbsp;"),
        ("bir &#8217; iki", "&#8217;"),
        ("bir &#x2019; iki", "&#x2019;"),
        ("<DIV>", "<DIV>"),
        ("<b>qalın</b>", "<b>"),
        ('<a href="x">', '<a href="x">'),
        ("<!-- gizli -->", "<!--"),
        ("<!DOCTYPE html>", "<!DOCTYPE html>"),
        ("kəsilmiş <div", "<div"),
        ("<div olan və <p> olan", "<div"),
        ("<h1>Başlıq</h1>", "<h1>"),
    ],
)
def test_tags_and_entities_are_found(text: str, found: str) -> None:
    match = find_html(text)
    assert match
    assert match[0] == found


@pytest.mark.parametrize(
    "text",
    [
        "x < y və y > z",
        "a<b",
        "a <b and b> c",
        "3<p<5",
        "<3",
        "R&D",
        "A & B; C",
        "R&D;",
        "&xyzzy;",
        "<Əli>",
        "<divan>",
        "->",
    ],
)
def test_signs_of_mathematics_and_prose_are_no_html(text: str) -> None:
    assert find_html(text) is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>Bir <b>iki</b> üç.</p><p>Dörd.</p>", "\nBir iki üç.\n\nDörd.\n"),
        ("bir<br/>iki", "bir\niki"),
        ("ki<b>tab</b>xana", "kitabxana"),
        ("a<!-- <p>gizli</p> -->b", "ab"),
        ("a<script>if (x<y) alert('<p>')</script>b<style>p {}</style >c", "abc"),
        ("a <script> heç vaxt bitmir", "a  heç vaxt bitmir"),
        ("a <!-- heç vaxt bitmir", "a  heç vaxt bitmir"),
        ("5 &lt; 6 &amp;lt; &Ccedil;ay&nbsp;i&ccedil;", "5 < 6 &lt; Çay\u00a0iç"),
        ("x < y, R&D; &xyzzy; <3", "x < y, R&D; &xyzzy; <3"),
        ("<div olan mətn və <p>son", "\n olan mətn və \nson"),
        ("&#xD800;&#0;&#1114112;", "\ufffd\ufffd\ufffd"),
    ],
)
def test_stripping_leaves_the_text_between_the_tags(text: str, plain: str) -> None:
    assert strip_html(text) == plain


@given(text=st.text(st.sampled_from("<>/!-&#;ab pdiv=\"'script") | st.characters(), max_size=60))
@settings(max_examples=500, deadline=None)
def test_what_holds_no_html_is_not_touched(text: str) -> None:
    if find_html(text) is None:
        assert strip_html(text) == text
    else:
        assert strip_html(text) != text


@pytest.mark.parametrize(
    "text",
    [
        *("<" * 10**6, "<!--" * 250_000, "<script>" * 125_000, "<div" * 250_000, "<a " + " " * 10**6, "<a " * 300_000),
        *("&" * 10**6, "&#1" * 300_000, "&a" * 500_000, "<b" + " b=" * 300_000, "</p" + " " * 10**6, "</p " * 250_000),
    ],
    ids=lambda text: text[:8],
)
def test_a_strange_text_takes_no_longer_than_its_length_asks_for(text: str) -> None:
    started = time.process_time()
    find_html(text)
    strip_html(text)
    assert time.process_time() - started < 3  # a tenth of that when it is linear, minutes when it is quadratic


TEXTS = ["<p>Səhər&nbsp;tez <b>gəldi</b> evə.</p>", "Gecə x < y gəldi evə.", "<div>", "<p>az</p>"]


def cleaned(html: str):
    report = CleaningReport()
    chosen = Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5, html=html)
    return clean(Records(list("abcd"), list(TEXTS)), chosen, report), report


def test_html_is_reported_and_left_by_default() -> None:
    documents, report = cleaned("report")
    assert Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5).html == "report"
    assert documents.texts == [TEXTS[0], TEXTS[1]]
    assert report.html == 3
    assert report.examples["html"] == [
        "a: <p>Səhər&nbsp;tez <b>gəldi</b> evə.</p> (holds '<p>')",
        "c: <div> (holds '<div>')",
        "d: <p>az</p> (holds '<p>')",
    ]


def test_html_is_stripped_before_the_text_is_repaired_and_counted() -> None:
    documents, report = cleaned("strip")
    assert documents.texts == ["Səhər tez gəldi evə.", TEXTS[1]]
    assert documents.words == [4, 6]
    assert (report.html, report.dropped["empty"], report.dropped["short"]) == (3, 1, 1)


def test_documents_with_html_are_dropped() -> None:
    documents, report = cleaned("drop")
    assert documents.ids == ["b"]
    assert report.dropped["html"] == report.html == 3
    assert report.documents == report.kept + sum(report.dropped.values())
