"""The pictures hold what they are made of, and equal numbers make equal files."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.image import imread

from azneobert.finetuning import figures
from azneobert.finetuning.figures import Curve, draw_comparison, draw_confusion, draw_learning_curve
from azneobert.finetuning.task import UNSEEN, Task

REVIEWS = Task("rəylər", "classification", ["mənfi", "müsbət", "neytral"], {})
PNG = b"\x89PNG\r\n\x1a\n"
DOTS = ((0.8, "best"), (0.6, "behind"))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, which can still be asked what is on them."""
    saved = []
    save = figures._save
    monkeypatch.setattr(figures, "_save", lambda figure, file: (saved.append(figure), save(figure, file)))
    return saved


def _cells(figure):
    """The numbers in the cells of a confusion matrix by (row, column)."""
    texts = figure.axes[0].texts
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in texts}


def _ticks(figure, axis):
    return [text.get_text() for text in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def test_a_confusion_matrix_has_percentages_of_each_gold_label(drawn, tmp_path):
    draw_confusion(REVIEWS, [0, 0, 0, 1, 1], [0, 0, 1, 1, 2], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(PNG)
    (figure,) = drawn
    assert _cells(figure) == {(0, 0): "67", (0, 1): "33", (1, 1): "50", (1, 2): "50"}
    assert _ticks(figure, "x") == ["mənfi", "müsbət", "neytral"]
    assert _ticks(figure, "y") == ["mənfi (3)", "müsbət (2)", "neytral (0)"]


def test_of_very_many_labels_those_are_drawn_that_are_confused(drawn, tmp_path):
    task = Task("mövzular", "classification", [f"mövzu {n}" for n in range(40)], {})
    gold = [*range(40)] * 2
    predicted = [n if n < 12 else 12 + (n - 11) % 28 for n in gold]  # all but the first twelve are mistaken
    draw_confusion(task, gold, predicted, tmp_path / "confusion.png")
    assert _ticks(drawn[0], "x") == [f"mövzu {n}" for n in [0, 1, *range(12, 40)]]
    assert drawn[0].axes[0].get_title() == "mövzular: 30 of 40 labels, those most confused"
    assert set(_cells(drawn[0]).values()) == {"100"}


def test_words_and_answers_are_counted_too(drawn, tmp_path):
    tags = Task("adlar", "tokens", ["B-LOC", "O"], {})
    draw_confusion(tags, [(0, 1), (1,)], [(0, 0), (1,)], tmp_path / "tags.png")
    draw_confusion(Task("suallar", "choice", [], {}), [0, 2], [2, 2], tmp_path / "answers.png")
    assert _cells(drawn[0]) == {(0, 0): "100", (1, 0): "50", (1, 1): "50"}
    assert _cells(drawn[1]) == {(0, 2): "100", (2, 2): "100"}
    assert _ticks(drawn[1], "x") == ["answer 1", "answer 2", "answer 3"]


def test_unseen_words_are_among_those_of_their_label_and_in_no_cell(drawn, tmp_path):
    tags = Task("pos", "tokens", ["ADJ", "NOUN"], {})
    draw_confusion(tags, [(0, 1), (1, 1, 1)], [(0, UNSEEN), (1, 0, 1)], tmp_path / "tags.png")
    assert _cells(drawn[0]) == {(0, 0): "100", (1, 0): "25", (1, 1): "50"}
    assert _ticks(drawn[0], "y") == ["ADJ (1)", "NOUN (4)"]


def test_a_learning_curve_has_a_line_for_each_seed_and_a_dot_on_the_best_epoch(drawn, tmp_path):
    curves = [
        Curve("pretrained", 1, [0.9, 0.5, 0.4], [0.5, 0.8, 0.7]),
        Curve("pretrained", 2, [0.8, 0.6], [0.6, 0.7]),
        Curve("random", 1, [1.0], [0.3]),
    ]
    draw_learning_curve(REVIEWS, curves, tmp_path / "curve.png")
    (figure,) = drawn
    of_scores, of_losses = figure.axes
    assert [line.get_ydata().tolist() for line in of_losses.lines] == [curve.losses for curve in curves]
    dots = [line.get_xydata().tolist() for line in of_scores.lines if line.get_marker() == "o"]
    assert dots == [[[2, 0.8]], [[2, 0.7]], [[1, 0.3]]]
    legend = [text.get_text() for text in of_scores.get_legend().get_texts()]
    assert legend == ["pretrained weights, 2 seeds", "random weights, 1 seed"]
    assert of_scores.get_ylabel() == "macro_f1 on validation"


def test_equal_numbers_make_equal_files_and_no_figure_stays_open(tmp_path):
    for name in ("one.png", "two.png"):
        draw_confusion(REVIEWS, [0, 1, 2], [0, 2, 2], tmp_path / f"confusion-{name}")
        draw_learning_curve(REVIEWS, [Curve("random", 1, [1.0, 0.5], [0.3, 0.4])], tmp_path / f"curve-{name}")
    for picture in ("confusion", "curve"):
        assert (tmp_path / f"{picture}-one.png").read_bytes() == (tmp_path / f"{picture}-two.png").read_bytes()
    assert pyplot.get_fignums() == []


@pytest.mark.filterwarnings("error:Glyph")
def test_the_letters_of_azerbaijani_have_glyphs(tmp_path):
    alphabet = "ABCÇDEƏFGĞHXIİJKQLMNOÖPRSŞTUÜVYZ"
    labels = [alphabet[:16], alphabet[16:], alphabet[:16].lower()]
    draw_confusion(Task("ə", "classification", labels, {}), [0, 1, 2], [0, 1, 2], tmp_path / "letters.png")
    assert np.ptp(imread(tmp_path / "letters.png")) > 0.5


def test_a_comparison_has_a_panel_for_each_task_and_a_dot_for_each_model_that_has_it(drawn, tmp_path):
    best, behind = (SimpleNamespace(mean=m, low=m - 0.1, high=m + 0.1, mark=mark) for m, mark in DOTS)
    models = {"a model": {"sib200": best, "wikiann": best}, "a path/" * 9: {"sib200": behind}}
    draw_comparison({"sib200": "macro_f1", "wikiann": "f1"}, models, tmp_path / "scores.png")
    panels = drawn[0].axes
    assert [(axes.get_title(), axes.get_xlabel()) for axes in panels] == [
        ("sib200", "macro_f1, %"),
        ("wikiann", "f1, %"),
    ]
    dots = [
        [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
        for axes in panels
    ]
    assert dots == [[pytest.approx(80), pytest.approx(60)], [pytest.approx(80)]]
    assert _ticks(drawn[0], "y") == ["a model", "…" + ("a path/" * 9)[-39:]]
