"""Sentences of CoNLL as they are published."""

import pytest
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.tables import rows
from azneobert.task_settings import TaskSettings

SETTINGS = TaskSettings(kind="tokens")
CONLLU = """# sent_id = 1
# text = Vermir\tO
1-2\tVermir\t_\t_\t_\t_\t_\t_\t_\t_
1\tVer\tver\tVERB\t_\t_\t0\troot\t_\t_
2\tmir\tmə\tAUX\t_\t_\t1\taux\t_\t_
2.1\tgizli\t_\tNOUN\t_\t_\t_\t_\t_\t_
3\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_

"""


@pytest.fixture
def read(tmp_path):
    def sentences(text, name="a.conll", settings=SETTINGS):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return list(rows(tmp_path / name, settings))

    return sentences


def sentence(*pairs):
    return {"tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}


@pytest.mark.parametrize("name", ["a.conll", "a.iob", "a.iob2", "a.bio", "a.txt", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["Bakı\tB-LOC\n!\tO\n\n\nKür\tB-LOC", "\nBakı\tB-LOC\n!\tO\n \nKür\tB-LOC\n\n"])
def test_blank_lines_stand_between_sentences(read, tmp_path, name, end, text):
    found = read(text.replace("\n", end), name)
    assert [row for _, row in found] == [sentence(("Bakı", "B-LOC"), ("!", "O")), sentence(("Kür", "B-LOC"))]
    assert found[0][0] == f"{tmp_path}/{name}:{1 + text.startswith(chr(10))}"


def test_of_several_columns_the_first_is_the_word_and_the_last_its_tag(read):
    text = "-DOCSTART- -X- -X- O\n\nBakı NNP B-NP B-LOC\n1\xa0000 CD  I-NP O\n"
    assert [row for _, row in read(text)] == [sentence(("Bakı", "B-LOC"), ("1\xa0000", "O"))]


def test_a_word_may_hold_spaces_where_tabs_stand_between_columns(read):
    assert [row for _, row in read("1 000\tO\n")] == [sentence(("1 000", "O"))]


def test_comments_stand_before_a_sentence_and_words_may_begin_like_them(read):
    text = "# id 5\tdomain=train\n# qeyd\nBakı O\n# SYM\n\n#Bakı B-LOC\n\n#Kür\tX\n\n#begin document (x); part 0\n# O\n"
    assert [row for _, row in read(text)] == [
        sentence(("Bakı", "O"), ("#", "SYM")),
        sentence(("#Bakı", "B-LOC")),
        sentence(("#Kür", "X")),
        sentence(("#", "O")),
    ]


def test_of_conllu_form_and_upos_are_read_and_what_is_no_word_is_left_out(read):
    assert [row for _, row in read(CONLLU, "a.conllu")] == [sentence(("Ver", "VERB"), ("mir", "AUX"), (".", "PUNCT"))]


def test_sentences_without_tags_have_words_alone(read):
    assert [row for _, row in read("Bakı\nşəhəri\n")] == [{"tokens": ["Bakı", "şəhəri"]}]
    untagged = CONLLU.replace("VERB", "_").replace("AUX", "_").replace("PUNCT", "_")
    assert [row for _, row in read(untagged, "a.conllu")] == [{"tokens": ["Ver", "mir", "."]}]


def test_words_and_tags_have_the_names_of_the_settings(read):
    settings = TaskSettings(kind="tokens", text_field="words", label_field="ner.tags")
    assert [row for _, row in read("Bakı\tO\n", settings=settings)] == [{"words": ["Bakı"], "ner.tags": ["O"]}]


def test_a_tsv_whose_header_names_the_words_or_the_tags_is_a_table(read):
    assert [row for _, row in read("cümlə\ttags\nBakı gözəl\tO O\n", "a.tsv")] == [
        {"cümlə": "Bakı gözəl", "tags": "O O"}
    ]
    assert [row for _, row in read("id\ttokens\ttags\n1\tBakı gözəl\tO O\n", "a.tsv")] == [
        {"id": "1", "tokens": "Bakı gözəl", "tags": "O O"}
    ]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.conll", "Bakı\tO\n\tB-LOC\n", ":2: no word in the first column; expected a word and its tag"),
        ("a.conll", "Bakı\tO\n\xa0\tB-LOC\n", ":2: no word in the first column"),
        ("a.conll", "a\tO\n\nBakı\tO\nKür\n", ':3: 1 of the 2 words of this sentence have no tag, "Kür" first'),
        ("a.conllu", "1\tVer\tver\tVERB\n", ":1: 4 columns, by tabs; expected the 10 of CoNLL-U"),
        ("a.conllu", CONLLU.replace("1\tVer\t", "1\t\t"), ":4: its FORM is empty"),
    ],
)
def test_a_line_that_is_no_word_is_refused_with_its_place(read, tmp_path, name, text, found):
    with refused(DataError, f"{tmp_path}/{name}{found}"):
        read(text, name)
