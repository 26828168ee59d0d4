import itertools
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from azneobert.data.cleaning import CleaningReport, clean, content_hash, is_validation
from azneobert.data.languages import BUILT_IN
from azneobert.data.letters import are_of, count_letters, letter_counts
from azneobert.data.records import Records
from azneobert.data.repair import normalise
from azneobert.recipe import Cleaning

AZERBAIJANI = "Azərbaycanın paytaxtı Bakı Xəzər dənizinin sahilində yerləşən ən böyük şəhərdir."
CYRILLIC_AZERBAIJANI = "Азәрбајҹанын пајтахты Бакы Хәзәр дәнизинин саһилиндә јерләшән ән бөјүк шәһәрдир."
RUSSIAN = "Столица Азербайджана Баку расположена на берегу Каспийского моря и является крупнейшим городом."
TURKISH = "Azerbaycan'ın başkenti Bakü, Hazar Denizi kıyısında yer alan en büyük şehirdir."
ENGLISH = "Baku, the capital of Azerbaijan, is the largest city on the shore of the Caspian Sea."
THRESHOLDS = Cleaning(min_words=3, max_malformed=0.01, validation_fraction=0.5)
# What a repair may trip over: look-alikes, marks that compose, invisible characters, spaces, signs among the letters.
ODD = (
    "aəiıIİoTxçş_1.-'×ªſ \n\r\t\x0b\x0c\x1c\x1f\x85\u00a0\u2003\u2028\u3000"
    "әаеорсхуіјѕһкӘАВІТйёЀұѴԱԯ"
    "οΑΙΚΤΧαβμΆϊϋ\u0345\u0374\u0375\u0378\u037a\u037e\u0387\u0483\u0488"
    "ǝƎ\u0300\u0301\u0307\u0308\u0306\u0323\u0327\u0338\u0342\u0344"
    "\u00ad\u200b\u200d\u200e\u202b\u2060\u2067\u061c\ufeff\x00\x7f\ud83d\ude00"
    "\u1100\u1161\u11a8\u212a\u212b\u2126\u1fef😀漢"
)
weird_texts = st.text(st.sampled_from(ODD) | st.characters(), max_size=40) | st.text(st.sampled_from(ODD), max_size=9)


def records(*texts, malformed=()):
    return Records([f"id-{number}" for number in range(len(texts))], list(texts), list(malformed))


def cleaned(*texts, **changes):
    report = CleaningReport()
    return clean(records(*texts), THRESHOLDS.model_copy(update=changes), report), report


def are_azerbaijani(texts, min_latin, min_schwa):
    shares = {"min_share": min_latin, "min_must_share": min_schwa}
    language = BUILT_IN["azeri_latin"].model_copy(update=shares)
    return are_of(count_letters(texts, language), language)


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


# What normalise makes of a text


def test_decomposed_letters_become_nfc():
    decomposed = unicodedata.normalize("NFD", "Çörək, üzüm, şüşə, ağ İnci")
    assert decomposed != "Çörək, üzüm, şüşə, ağ İnci"
    assert normalise(decomposed) == "Çörək, üzüm, şüşə, ağ İnci"


def test_a_letter_and_its_accent_meet_when_an_invisible_character_between_them_is_dropped():
    assert normalise("go\u00ad\u0308l") == "göl"


@pytest.mark.parametrize("schwa", ["ә", "ǝ"], ids=["cyrillic", "turned e"])
def test_a_foreign_schwa_becomes_the_azerbaijani_letter(schwa):
    assert normalise(f"s{schwa}h{schwa}r {schwa.upper()}li") == "səhər Əli"


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ("Аzərbаycаn Rеspublikаsı", "Azərbaycan Respublikası"),
        ("mәktәb", "məktəb"),
        ("хаnım һazırlayır", "xanım hazırlayır"),
        ("Јalə və Ѕevda", "Jalə və Sevda"),
        ("qiymət-100АZN", "qiymət-100AZN"),
        ("Вakı", "Bakı"),
        ("Ηeydər Αlı ΤΕMPəratur", "Heydər Alı TEMPəratur"),
        ("Ваkıdakı", "Bakıdakı"),
    ],
)
def test_look_alike_letters_are_repaired_inside_latin_words(odd, plain):
    assert odd != plain
    assert normalise(odd) == plain


@pytest.mark.parametrize("odd", ["Baкı", "кeçirilən"])
def test_a_cyrillic_ka_is_repaired_inside_latin_words(odd):
    assert normalise(odd) == odd.replace("к", "k")


@pytest.mark.parametrize(
    "text",
    [
        "rusca «сор» və «Москва» sözü",
        "kiril əlifbası ilə «мәктәб» sözü",
        "yunanca «ΑΘΗΝΑ» və «οδός»",
        "TNFα, β-karoten və κB",
        "ΑΒΓ üçbucağı",
        "А-4 kağızı",
        RUSSIAN,
        CYRILLIC_AZERBAIJANI,
    ],
)
def test_what_belongs_to_another_script_stays(text):
    assert normalise(text) == text


def test_a_mark_inside_a_word_does_not_hide_that_the_word_is_latin():
    assert normalise("Τ\u0323аbla") == "Ṭabla"


@pytest.mark.parametrize(("odd", "plain"), [("i\u0307stanbul", "istanbul"), ("bi\u0307r ki\u0307şi", "bir kişi")])
def test_a_dotted_i_lower_cased_the_english_way_becomes_i(odd, plain):
    assert normalise(odd) == plain


@pytest.mark.parametrize("odd", ["bі\u0307r", "bi\u0307\u0307r"], ids=["cyrillic i", "two dots"])
def test_no_i_keeps_a_combining_dot(odd):
    assert normalise(odd) == "bir"


def test_an_accent_behind_the_dot_that_goes_composes_with_the_letter():
    assert normalise("i\u0307\u0301") == "í"


def test_capital_i_with_a_combining_dot_is_the_azerbaijani_capital():
    assert normalise("I\u0307sa") == "İsa"


@pytest.mark.parametrize(
    "invisible",
    ["\u00ad", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u202a", "\u202e", "\u2060", "\u2064", "\ufeff"],
)
def test_soft_hyphens_zero_width_characters_and_marks_of_direction_are_dropped(invisible):
    assert normalise(f"{invisible}kitab{invisible}xana{invisible}") == "kitabxana"


@pytest.mark.parametrize("mark", ["\u061c", "\u2066", "\u2067", "\u2068", "\u2069"])
def test_isolates_and_the_arabic_letter_mark_are_marks_of_direction_too(mark):
    assert normalise(f"kitab{mark}xana") == "kitabxana"


def test_control_characters_are_dropped():
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()]
    assert len(controls) > 50
    assert [control for control in controls if normalise(f"kitab{control}xana") != "kitabxana"] == []


def test_halves_of_surrogate_pairs_are_dropped():
    assert normalise("ki\ud83dtab\udfff xana") == "kitab xana"


def test_every_space_of_unicode_parts_words_as_split_parts_them():
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    wrong = [
        space for space in spaces if normalise(f"bir{space}{space} iki") not in ("bir iki", "bir\niki", "bir\n\niki")
    ]
    assert wrong == []


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u0085", "\u2028", "\u2029", " \n\t", "\u00a0\r\n "])
def test_every_line_end_becomes_a_newline(end):
    assert normalise(f"bir{end}iki") == "bir\niki"


def test_spaces_are_made_plain_and_paragraphs_kept():
    assert normalise(" bir\u00a0\t iki \r\n \n\n\n üç\r\ndörd ") == "bir iki\n\nüç\ndörd"


def test_emoji_and_other_scripts_stay():
    assert normalise("salam 😀 漢字 עברית") == "salam 😀 漢字 עברית"


@given(text=weird_texts)
@settings(max_examples=1500, deadline=None)
@example("əΤ\u0323і")
@example("_\u0483а\u0323ә")
@example("aо\u0483с")
@example("aо\u0375с")
@example("oі\u0307")
@example("i\u0307\u0301")
@example("i\u0307\u0307")
@example("a\r\u200b\n \n\u2029")
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode()


@given(texts=st.lists(weird_texts, max_size=5))
@settings(max_examples=300, deadline=None)
def test_words_are_counted_as_split_counts_them(texts):
    documents, _ = cleaned(*texts, min_words=1, language="any")
    assert documents.words == [len(text.split()) for text in documents.texts]


@pytest.mark.parametrize(
    "text",
    [
        "aа" * 100_000,
        "a" * 200_000 + "а",
        "а" * 200_000 + "a",
        "a\u0375" * 100_000,
        "а\u0301" * 100_000,
        "_" * 200_000 + "\u0483",
        "а" + "_\u0301" * 100_000,
        " \n\t" * 70_000 + "a",
        RUSSIAN * 2000,
        CYRILLIC_AZERBAIJANI * 2000 + "a",
        "\u200b" * 200_000,
    ],
    ids=lambda text: ascii(text[:4]),
)
def test_a_strange_text_takes_no_longer_than_its_length_asks_for(text):
    assert seconds(normalise, text) < 1  # a hundredth of that when it is linear, minutes when it is quadratic


@pytest.mark.parametrize(
    "marks", ["\u0327\u0301" * 30_000, "\u0301" * 30_000 + "\u0327" * 30_000], ids=["mixed", "two"]
)
def test_a_heap_of_combining_marks_takes_no_longer_than_its_length_asks_for(marks):
    assert seconds(normalise, f"Bakı{marks} gözəl") < 1


# Which documents stay


@pytest.mark.parametrize(
    "text", [RUSSIAN, TURKISH, ENGLISH, CYRILLIC_AZERBAIJANI], ids=["russian", "turkish", "english", "cyrillic"]
)
def test_the_language_filter_keeps_azerbaijani_and_drops(text):
    documents, report = cleaned(AZERBAIJANI, text)
    assert documents.texts == [AZERBAIJANI]
    assert report.dropped["language"] == 1


@pytest.mark.parametrize(
    "text",
    [
        f"{AZERBAIJANI} Rusca: «Баку».",
        f"{AZERBAIJANI} {ENGLISH}",
        AZERBAIJANI.upper(),
        AZERBAIJANI.replace("ə", "ә"),
        AZERBAIJANI.replace("a", "а"),
    ],
    ids=["a russian word", "half english", "capitals", "cyrillic schwas", "cyrillic a"],
)
def test_a_document_that_is_azerbaijani_for_the_most_part_stays(text):
    assert len(cleaned(text)[0]) == 1


@pytest.mark.parametrize(
    "text",
    [f"{AZERBAIJANI} {RUSSIAN} {RUSSIAN}", f"{AZERBAIJANI} {ENGLISH * 9}", "1 2 3 4 5", "... !!! ???"],
    ids=["two thirds russian", "nine tenths english", "numbers", "signs"],
)
def test_a_document_with_little_azerbaijani_goes(text):
    assert cleaned(text)[1].dropped["language"] == 1


@pytest.mark.parametrize("percent", [1, 2, 7, 14, 28, 29, 55, 57, 58, 70])
@pytest.mark.parametrize("size", [1, 3, 10, 7000])
def test_a_share_of_schwas_at_the_threshold_is_enough_and_one_less_is_not(percent, size):
    schwas, others = percent * size, (100 - percent) * size
    texts = ["ə" * schwas + "a" * others, "ə" * (schwas - 1) + "a" * (others + 1)]
    assert are_azerbaijani(texts, 0.0, percent / 100).tolist() == [True, False]


@pytest.mark.parametrize("percent", [7, 29, 57, 70, 100])
def test_a_share_of_latin_letters_at_the_threshold_is_enough_and_one_less_is_not(percent):
    texts = ["ə" * percent + "ж" * (100 - percent), "ə" * (percent - 1) + "ж" * (101 - percent)]
    assert are_azerbaijani(texts, percent / 100, 0.0).tolist() == [True, False]


def test_the_number_of_words_at_the_threshold_is_enough_and_one_less_is_not():
    documents, report = cleaned("Səhər gəldi.", "Səhər tez gəldi.")
    assert documents.texts == ["Səhər tez gəldi."]
    assert report.dropped["short"] == 1


def slow_letter_counts(text):
    """Latin letters are those of the blocks that European languages use, and ə."""
    letters = [c for c in text if c.isalpha()]
    latin = [c for c in letters if "A" <= c <= "Z" or "a" <= c <= "z" or "À" <= c <= "ɏ" or c == "ə"]
    return [len(letters), len(latin), sum(c in "əƏ" for c in text), 0]


@given(texts=st.lists(st.text(st.sampled_from("aZçəƏжΩ漢 1.\n") | st.characters(codec="utf-8")), max_size=8))
@settings(max_examples=300, deadline=None)
@example(["", "ə", "", "", "a ж", ""])
@example(["5×5÷2", "×"])
def test_letters_are_counted_as_one_by_one(texts):
    assert letter_counts(texts).T.tolist() == [slow_letter_counts(text) for text in texts]


def test_letter_counts_of_nothing():
    assert letter_counts([]).shape == (4, 0)
    assert letter_counts(["", ""]).tolist() == [[0, 0]] * 4


# Counts


def test_each_reason_to_drop_a_document_is_counted():
    report = CleaningReport()
    malformed = ["b.jsonl:7: not JSON", "b.jsonl:9: not UTF-8"]
    texts = [AZERBAIJANI, None, "", "\u200b \n", "Salam, dünya", RUSSIAN, ENGLISH]
    documents = clean(records(*texts, malformed=malformed), THRESHOLDS, report)
    assert documents.ids == ["id-0"]
    assert report.dropped == {"malformed": 2, "empty": 3, "short": 1, "language": 2}
    assert (report.documents, report.kept) == (9, 1)
    assert (report.words, report.characters) == (10, len(AZERBAIJANI))
    assert report.first_malformed == malformed[0]


def test_the_first_malformed_record_is_kept_over_later_batches():
    report = CleaningReport()
    for batch in (records(AZERBAIJANI), records(malformed=["a:1: bad"]), records(malformed=["a:2: worse"])):
        clean(batch, THRESHOLDS, report)
    assert report.first_malformed == "a:1: bad"
    assert report.dropped["malformed"] == 2


@given(
    batches=st.lists(
        st.lists(st.sampled_from([None, "", "bir", AZERBAIJANI, AZERBAIJANI + " Yenə.", RUSSIAN, TURKISH])), max_size=4
    ),
    bad=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_sums_of_the_report_add_up(batches, bad):
    report = CleaningReport()
    kept = [clean(records(*texts, malformed=["x"] * bad), THRESHOLDS, report) for texts in batches]
    assert report.documents == sum(map(len, batches)) + bad * len(batches)
    assert report.documents == report.kept + sum(report.dropped.values())
    assert report.kept == sum(map(len, kept))
    assert report.validation == sum(sum(documents.validation) for documents in kept)
    assert report.words == sum(len(text.split()) for documents in kept for text in documents.texts)
    assert report.characters == sum(len(text) for documents in kept for text in documents.texts)


def test_an_empty_batch_changes_nothing():
    documents, report = cleaned()
    assert len(documents) == 0
    assert report == CleaningReport()


def test_columns_stay_beside_each_other_when_documents_go():
    texts = [AZERBAIJANI, RUSSIAN, "", AZERBAIJANI + " Yenə.", ENGLISH, AZERBAIJANI + " Bir daha yenə."]
    documents, _ = cleaned(*texts)
    assert documents.ids == ["id-0", "id-3", "id-5"]
    assert documents.words == [10, 11, 13]
    assert documents.hashes == [content_hash(text) for text in documents.texts]
    assert documents.validation == [is_validation(digest, 0.5) for digest in documents.hashes]


# The content hash and the split


def test_the_content_hash_does_not_depend_on_spacing():
    variants = [
        AZERBAIJANI,
        AZERBAIJANI.replace(" ", " \u00a0 "),
        AZERBAIJANI.replace(" ", "\n\n", 3),
        f"\n{AZERBAIJANI} ",
    ]
    documents, _ = cleaned(*variants, AZERBAIJANI.replace(" ", "", 1))
    assert len(set(documents.hashes[:4])) == 1
    assert documents.hashes[4] != documents.hashes[0]
    assert {len(digest) for digest in documents.hashes} == {16}


def test_the_content_hash_does_not_depend_on_look_alikes():
    documents, _ = cleaned(AZERBAIJANI, AZERBAIJANI.replace("a", "а"), unicodedata.normalize("NFD", AZERBAIJANI))
    assert len(set(documents.hashes)) == 1


@given(order=st.permutations(range(9)), cuts=st.lists(st.integers(0, 9), max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_else_is_in_the_batch_changes_nothing(order, cuts):
    texts = [f"{AZERBAIJANI} Sənəd {number}." for number in range(6)] + [RUSSIAN, "", "bir iki"]
    alone = {text: documents for text in texts for documents in [cleaned(text)[0]]}
    shuffled = [texts[i] for i in order]
    bounds = [0, *sorted(cuts), len(texts)]
    for low, high in itertools.pairwise(bounds):
        together, _ = cleaned(*shuffled[low:high])
        expected = [alone[text] for text in shuffled[low:high] if len(alone[text])]
        assert together.texts == [documents.texts[0] for documents in expected]
        assert together.hashes == [documents.hashes[0] for documents in expected]
        assert together.validation == [documents.validation[0] for documents in expected]


def test_the_side_of_the_split_depends_on_the_hash_alone():
    texts = [f"{AZERBAIJANI} Sənəd {number}." for number in range(200)]
    before, _ = cleaned(*texts)
    after, _ = cleaned(*(text.replace(" ", "\n") for text in reversed(texts)))
    assert dict(zip(before.hashes, before.validation, strict=True)) == dict(
        zip(after.hashes, after.validation, strict=True)
    )
    assert set(before.validation) == {True, False}


def test_the_split_holds_out_about_the_fraction_and_a_larger_fraction_keeps_who_is_held_out():
    digests = [content_hash(f"sənəd {number}") for number in range(20_000)]
    few, more = ({digest for digest in digests if is_validation(digest, fraction)} for fraction in (0.1, 0.2))
    assert few < more
    deviation = np.sqrt(len(digests) * 0.1 * 0.9)
    assert abs(len(few) - 2000) < 4 * deviation
    assert abs(len(more) - 4000) < 4 * deviation * 4 / 3


@pytest.mark.parametrize(
    ("start", "fraction", "held_out"),
    [(0x00, 1e-9, True), (0x7F, 0.5, True), (0x80, 0.5, False), (0xFF, 0.99, False), (0x00, 0.0, False)],
)
def test_a_document_is_held_out_if_its_hash_lies_below_the_fraction(start, fraction, held_out):
    assert is_validation(bytes([start, *[0] * 15]), fraction) is held_out
