import time
import unicodedata

import pytest

from azneobert.data.cleaning import CleaningReport, clean, content_hash, is_validation, normalise
from azneobert.data.collections import RawDocument

AZERBAIJANI = "Azərbaycanın paytaxtı Bakı Xəzər dənizinin sahilində yerləşən ən böyük şəhərdir."
RUSSIAN = "Столица Азербайджана Баку расположена на берегу Каспийского моря и является крупнейшим городом."
TURKISH = "Azerbaycan'ın başkenti Bakü, Hazar Denizi kıyısında yer alan en büyük şehirdir."
ENGLISH = "Baku, the capital of Azerbaijan, is the largest city on the shore of the Caspian Sea."


def cleaned(texts, validation_fraction=0.5):
    report = CleaningReport()
    raw = [RawDocument(f"id-{number}", text) for number, text in enumerate(texts)]
    limits = {"min_words": 3, "min_latin": 0.7, "min_schwa": 0.02}
    return list(clean(raw, **limits, validation_fraction=validation_fraction, report=report)), report


def test_decomposed_letters_become_nfc():
    decomposed = unicodedata.normalize("NFD", "Çörək, üzüm, şüşə, ağ İnci")
    assert decomposed != "Çörək, üzüm, şüşə, ağ İnci"
    assert normalise(decomposed) == "Çörək, üzüm, şüşə, ağ İnci"


def test_a_letter_and_its_accent_meet_when_an_invisible_character_between_them_is_dropped():
    assert normalise("go\u00ad\u0308l") == "göl"


@pytest.mark.parametrize("schwa", ["ә", "ǝ"])
def test_a_foreign_schwa_becomes_the_azerbaijani_letter(schwa):
    assert normalise(f"s{schwa}h{schwa}r {schwa.upper()}li") == "səhər Əli"


def test_look_alike_letters_are_repaired_inside_mixed_words():
    assert normalise("Аzərbаycаn Rеspublikаsı") == "Azərbaycan Respublikası"


def test_a_pure_cyrillic_word_stays_even_when_all_its_letters_look_latin():
    assert normalise("rusca «сор» və «Москва» sözü") == "rusca «сор» və «Москва» sözü"


def test_a_pure_cyrillic_word_with_a_schwa_stays():
    assert normalise("kiril əlifbası ilə «мәктәб» sözü") == "kiril əlifbası ilə «мәктәб» sözü"


@pytest.mark.parametrize("invisible", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\x00"])
def test_soft_hyphens_and_zero_width_characters_are_dropped(invisible):
    assert normalise(f"kitab{invisible}xana") == "kitabxana"


def test_a_form_feed_between_pages_does_not_join_two_words():
    assert normalise("birinci\x0cikinci").split() == ["birinci", "ikinci"]


def test_half_of_a_surrogate_pair_does_not_stop_the_collection():
    documents, _ = cleaned([AZERBAIJANI + " \ud83d", AZERBAIJANI + " Yenə."])
    assert documents[0].text == AZERBAIJANI


def test_a_dotted_i_lower_cased_the_english_way_becomes_i():
    assert normalise("İstanbul".lower()) == "istanbul"


def test_spaces_are_made_plain_and_paragraphs_kept():
    assert normalise(" bir\u00a0\t iki \r\n \n\n\n üç\r\ndörd ") == "bir iki\n\nüç\ndörd"


def test_a_very_long_word_takes_no_longer_than_as_many_letters_in_short_words():
    started = time.perf_counter()
    normalise("a" * 800)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("text", [RUSSIAN, TURKISH, ENGLISH], ids=["russian", "turkish", "english"])
def test_the_language_filter_keeps_azerbaijani_and_drops(text):
    documents, report = cleaned([AZERBAIJANI, text])
    assert [document.text for document in documents] == [AZERBAIJANI]
    assert report.dropped["language"] == 1


def test_a_quotation_in_another_script_does_not_drop_an_azerbaijani_document():
    assert len(cleaned([f"{AZERBAIJANI} Rusca: «Баку»."])[0]) == 1


def test_duplicates_are_dropped_whatever_their_spacing():
    documents, report = cleaned([AZERBAIJANI, AZERBAIJANI.replace(" ", "  "), AZERBAIJANI.replace("a", "а", 1)])
    assert [document.id for document in documents] == ["id-0"]
    assert report.dropped["duplicate"] == 2


def test_empty_and_short_documents_are_dropped_and_everything_is_counted():
    documents, report = cleaned(["\u200b ", "Salam, dünya", AZERBAIJANI])
    assert report.dropped == {"empty": 1, "short": 1, "language": 0, "duplicate": 0}
    assert (report.documents, report.kept) == (3, 1)
    assert (report.words, report.characters) == (10, len(AZERBAIJANI))
    assert report.validation == documents[0].validation


def test_adding_a_source_never_moves_a_document_across_the_split():
    texts = [f"{AZERBAIJANI} Sənəd {number}." for number in range(60)]
    before = {document.text: document.validation for document in cleaned(texts)[0]}
    others = [f"{AZERBAIJANI} Başqa mənbə {number}." for number in range(60)]
    after = {document.text: document.validation for document in cleaned([*others, *reversed(texts)])[0]}
    assert before == {text: after[text] for text in texts}
    assert set(before.values()) == {True, False}


def test_the_split_holds_out_about_the_fraction_and_a_larger_fraction_keeps_who_is_held_out():
    digests = [content_hash(f"sənəd {number}") for number in range(4000)]
    few = {digest for digest in digests if is_validation(digest, 0.1)}
    more = {digest for digest in digests if is_validation(digest, 0.2)}
    assert few < more
    assert 0.08 < len(few) / len(digests) < 0.12
