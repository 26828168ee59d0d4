"""Languages by name and by block: what stays, what goes and why, what is repaired, and what a recipe may not say."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from azneobert.data.cleaning import CleaningReport, clean
from azneobert.data.languages import BUILT_IN, both_cases, find_language, script_of
from azneobert.data.letters import are_of, count_letters, letter_counts, scripts_of
from azneobert.data.records import Records
from azneobert.data.repair import Repair, normalise
from azneobert.language import Language, expand_letters
from azneobert.recipe import Cleaning

AZERBAIJANI = "Azərbaycanın paytaxtı Bakı Xəzər dənizinin sahilində yerləşən ən böyük şəhərdir."
RUSSIAN = "Столица Азербайджана Баку расположена на берегу Каспийского моря и является крупнейшим городом."
ENGLISH = "Baku, the capital of Azerbaijan, is the largest city on the shore of the Caspian Sea."
KAZAKH = "Қазақстанның астанасы Астана қаласы Есіл өзенінің жағасында орналасқан үлкен қала болып табылады."
TURKISH = [
    "Bugün hava çok güzel olduğu için çocuklar parkta oynuyor.",
    "Ankara, Türkiye Cumhuriyeti'nin başkenti ve en kalabalık ikinci şehridir.",
    "Toplantı saat üçte başlayacak, lütfen geç kalmayın.",
    "Annem her sabah kahvaltıda zeytin, peynir ve domates hazırlar.",
    "İstanbul Boğazı, Asya ile Avrupa kıtalarını birbirinden ayırır.",
    "Öğrenciler sınavdan önce kütüphanede ders çalışıyorlar.",
    "Bu kitabı geçen hafta bir arkadaşımdan ödünç aldım.",
    "Yeni kanun tasarısı mecliste uzun tartışmaların ardından kabul edildi.",
    "Kışın dağ köylerinde yollar kar yüzünden sık sık kapanır.",
    "Doktor, hastanın daha fazla su içmesi gerektiğini söyledi.",
    "Futbol takımımız dün akşamki maçı iki sıfır kazandı.",
    "Otobüs durağında beklerken eski bir komşumla karşılaştım.",
    "Enflasyon oranı geçen aya göre yüzde iki azaldı.",
    "Dedem gençliğinde denizciydi ve bütün dünyayı gezmiş.",
    "Mutfaktaki musluk yine bozulmuş, tesisatçıyı aramamız lazım.",
    "Sanatçının yeni sergisi büyük ilgi gördü.",
    "Bilgisayarım çok yavaş çalışıyor, belki bellek eklemek gerekir.",
    "Köpeğimiz bahçede saklanan kediyi bulamadı.",
    "Üniversiteye başvuru süresi yarın sona eriyor.",
    "Tarihçilere göre bu köprü on altıncı yüzyılda yapılmıştır.",
    "Ben kahveyi şekersiz içerim ama çayı tatlı severim.",
    "Trafik yoğun olduğundan havaalanına zor yetiştik.",
    "Hükümet, deprem bölgesine yardım göndereceğini açıkladı.",
    "Küçük kız, kaybolan oyuncağını yatağın altında buldu.",
    "Mahkeme, davayı gelecek aya ertelemeye karar verdi.",
    "Çiftçiler bu yıl bol yağmur sayesinde iyi ürün aldı.",
    "Telefonumu evde unuttuğum için seni arayamadım.",
    "Müzenin giriş ücreti öğrenciler için yarı yarıya indirimli.",
    "Yazar, romanında göçmen bir ailenin hikâyesini anlatıyor.",
    "Akşam yemeğinden sonra sahilde yürüyüş yapalım mı?",
]
# The first words of its neighbours and of what else has ş, ç or ö.
OTHERS = {
    "azerbaijani": AZERBAIJANI,
    "english": ENGLISH,
    "russian": RUSSIAN,
    "german": "Die größte Stadt des Landes liegt am Ufer des Meeres und ist für ihre schönen alten Häuser berühmt.",
    "french": "La plus grande ville du pays est située au bord de la mer et elle est célèbre pour sa façade ancienne.",
    "romanian": "Cel mai mare oraș al țării este situat pe malul mării și este cunoscut pentru clădirile sale vechi.",
    "uzbek": "O‘zbekiston poytaxti Toshkent shahri mamlakatning eng katta shahri bo‘lib, u yerda ko‘p odam yashaydi.",
}
KAZAKH_CYRILLIC = {
    "name": "kazakh_cyrillic",
    "letters": "А-Яа-яЁёӘәҒғҚқҢңӨөҰұҮүҺһІі",
    "min_share": 0.7,
    "must": "әғқңөұүһі",
    "min_must_share": 0.02,
    "lookalikes": {"a": "а", "c": "с", "e": "е", "h": "һ", "i": "і", "o": "о", "p": "р", "x": "х", "y": "у"},
}


def settings_for(language, **changes) -> Cleaning:
    return Cleaning(min_words=3, language=language, max_malformed=0.01, validation_fraction=0.5, **changes)


def cleaned(language, *texts, **changes):
    report = CleaningReport()
    records = Records([f"id-{number}" for number in range(len(texts))], list(texts))
    return clean(records, settings_for(language, **changes), report), report


# Names


def test_without_a_setting_the_language_is_azerbaijani() -> None:
    assert Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5).language == "azeri_latin"
    assert BUILT_IN.keys() == {"azeri_latin", "turkish", "any"}


@pytest.mark.parametrize("text", [RUSSIAN, ENGLISH, KAZAKH, "这是 一个 很好的 城市", "هذه مدينة كبيرة جدا", "1 2 3"])
def test_any_keeps_every_language(text: str) -> None:
    documents, report = cleaned("any", text)
    assert documents.texts == [text]
    assert report.dropped["language"] == 0


def test_any_does_only_what_is_right_in_every_script() -> None:
    assert normalise("Аzə\u00adr\u200bi\u00a0\x00 ǝ i\u0307 go\u0308l", "any") == "Аzəri ǝ i\u0307 göl"


@pytest.mark.parametrize("word", ["می\u200cخواهم", "क्\u200dष"])
def test_a_joiner_that_belongs_to_the_spelling_stays_where_all_languages_do(word: str) -> None:
    assert normalise(word, "any") == word
    assert normalise(f"ki\u200ctab {word}", "any") == f"kitab {word}"
    assert normalise(word, "azeri_latin") == word.replace("\u200c", "").replace("\u200d", "")


def test_turkish_keeps_turkish() -> None:
    documents, report = cleaned("turkish", *TURKISH, " ".join(TURKISH).upper())
    assert len(documents) == len(TURKISH) + 1, report.examples


@pytest.mark.parametrize("language", OTHERS)
def test_turkish_drops(language: str) -> None:
    documents, report = cleaned("turkish", OTHERS[language], *TURKISH[:1])
    assert documents.texts == TURKISH[:1]
    assert report.dropped["language"] == 1


def test_turkish_is_no_azerbaijani() -> None:
    assert len(cleaned("azeri_latin", *TURKISH)[0]) == 0


def test_turkish_repairs_its_own_look_alikes_and_no_schwa() -> None:
    assert normalise("Türkiyе'nin bаşkenti", "turkish") == "Türkiye'nin başkenti"
    assert normalise("ǝ mәktup", "turkish") == "ǝ mәktup"


# Why a text goes


@pytest.mark.parametrize(
    ("language", "text", "why"),
    [
        ("azeri_latin", "Баку və Москва и Киев", "11.8% of its letters are of azeri_latin, at least 70.0% expected"),
        ("azeri_latin", "one two three", "0.0% of its letters are among əƏ, at least 2.0% expected"),
        ("turkish", AZERBAIJANI, "of its letters are among əә, at most 1.0% expected"),
        ("azeri_latin", "1 2 3", "0.0% of its letters are of azeri_latin"),
    ],
)
def test_an_example_says_which_document_goes_and_why(language: str, text: str, why: str) -> None:
    (example,) = cleaned(language, text)[1].examples["language"]
    assert example.startswith(f"id-0: {text[:10]}")
    assert why in example


def test_three_examples_are_kept_in_the_order_of_the_records_whatever_the_batches() -> None:
    texts = [f"{ENGLISH} {number}\n\n{number}" for number in range(9)]
    together = cleaned("azeri_latin", *texts)[1]
    assert [example.split(":")[0] for example in together.examples["language"]] == ["id-0", "id-1", "id-2"]
    assert all("\n" not in example and len(example) < 200 for example in together.examples["language"])
    apart = CleaningReport()
    for number, text in enumerate(texts):
        clean(Records([f"id-{number}"], [text]), settings_for("azeri_latin"), apart)
    assert asdict(apart) == asdict(together)


# Blocks


def test_a_language_of_a_recipe_keeps_its_own_and_drops_its_neighbour() -> None:
    documents, report = cleaned(KAZAKH_CYRILLIC, KAZAKH, RUSSIAN, AZERBAIJANI, ENGLISH)
    assert documents.texts == [KAZAKH]
    assert report.dropped["language"] == 3
    assert report.scripts == {
        "cyrillic": {"documents": 2, "mixed": 0},
        "latin": {"documents": 2, "mixed": 0},
    }


def test_a_language_of_a_recipe_repairs_its_own_words_only() -> None:
    language = Language(**KAZAKH_CYRILLIC)
    assert normalise("бaла Microsoft кiтап café", language) == "бала Microsoft кітап café"
    assert normalise("бaдd", language) == "бaдd"  # d has no look-alike: the word is broken in another way
    assert normalise("mәктеб", Language(**KAZAKH_CYRILLIC | {"lookalikes": {"m": "м"}})) == "мәктеб"


@given(text=st.text(st.sampled_from("abcéiохқі \u0301\u0307\u200b\u00a0\n'1Ṭ") | st.characters(), max_size=30))
@settings(max_examples=400, deadline=None)
def test_repairing_twice_changes_nothing_in_any_language(text: str) -> None:
    for language in (Language(**KAZAKH_CYRILLIC), "any", "turkish"):
        once = normalise(text, language)
        assert normalise(once, language) == once
        once.encode()


@pytest.mark.parametrize("text", ["", " \n", "...!?", "\ud83d\udfff", "\u200b" * 5, "😀"])
def test_a_text_without_letters_is_none_of_a_language(text: str) -> None:
    for language in ("azeri_latin", "turkish", KAZAKH_CYRILLIC):
        documents, report = cleaned(language, f"{text} {text} {text} 1 2 3")
        assert len(documents) == 0
        assert report.dropped["language"] == 1
        assert report.scripts == {"none": {"documents": 1, "mixed": 0}}


# What looks like the syntax of a regular expression: letters of real alphabets stand beside them in the code points.
@pytest.mark.parametrize("signs", ["]", "\\", "^", "-", "[", "]-^", "\\d", "[^a]"])
def test_a_sign_among_the_letters_is_refused_and_never_read_as_an_expression(signs: str) -> None:
    with pytest.raises(ValidationError, match=r"expected letters|expected '"):
        Language(name="x", letters=f"{signs}а-я" if signs[0] != "-" else f"{signs}а")
    with pytest.raises(ValidationError, match=r"one character|a letter for another one"):
        Language(name="x", letters="а-я", lookalikes={signs: "а"})


@pytest.mark.parametrize("letters", ["ա-ևԱ-Ֆ", "ა-ჰ", "一-龥", "𐐀-𐑏", "ﬁﬂ", "ªº"])
def test_letters_of_any_plane_are_matched_as_they_are(letters: str) -> None:
    own = sorted(expand_letters(letters))
    language = Language(name="x", letters=letters, lookalikes={"a": own[0]})
    counts = letter_counts(["".join(own), "xyz"], language)
    assert counts[1].tolist() == [len(own), 0]
    assert Repair(language)(f"{own[1]}a{own[1]}") == f"{own[1]}{own[0]}{own[1]}"


def test_shares_at_the_threshold_are_enough() -> None:
    language = Language(
        name="x", letters="a-z", min_share=0.7, must="e", min_must_share=0.1, must_not="q", max_must_not_share=0.05
    )
    texts = ["e" * 7 + "a" * 63 + "ж" * 30, "e" * 7 + "a" * 62 + "ж" * 31, "e" * 6 + "a" * 64 + "ж" * 30]
    texts += ["e" * 10 + "a" * 85 + "q" * 5, "e" * 10 + "a" * 84 + "Q" * 6]
    assert are_of(count_letters(texts, language), language).tolist() == [True, False, False, True, False]


def test_both_cases_count_where_they_are_a_pair() -> None:
    assert both_cases("əş") == set("əƏşŞ")
    assert both_cases("ı") == {"ı"}
    assert both_cases("İ") == {"İ"}
    assert both_cases("") == set()


def test_letters_are_spelled_out_with_hyphens_at_the_ends_meant() -> None:
    assert expand_letters("a-dx") == set("abcdx")
    assert expand_letters("-a") == expand_letters("a-") == {"-", "a"}
    assert expand_letters("") == set()


# What a recipe may not say


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"letters": ""}, ["letters: is empty", "language: any"]),
        ({"letters": "я-а"}, ["letters: found the range 'я-а'", "expected 'а-я'"]),
        ({"letters": "а-я1"}, ["letters: found '1'", "expected letters"]),
        ({"must": "q"}, ["must: 'q' is not among `letters`"]),
        ({"must": "\u0301"}, ["must: found", "expected letters"]),
        ({"must_not": "ә"}, ["must_not: 'ә' stands in `must` too"]),
        ({"must": "", "min_must_share": 0.1}, ["must: is empty", "0.1"]),
        ({"max_must_not_share": 0.1}, ["must_not: is empty", "0.1"]),
        ({"lookalikes": {"ab": "а"}}, ["lookalikes: found 'ab'", "one character for one"]),
        ({"lookalikes": {"а": "б"}}, ["lookalikes: 'а' is one of `letters`"]),
        ({"lookalikes": {"a": "z"}}, ["lookalikes: 'z' is none of `letters`"]),
        ({"lookalikes": {"a": "а", "z": "a"}}, ["lookalikes: 'a' is repaired itself"]),
        ({"replace": {"é": "e"}}, ["replace: 'é' is a letter with a mark"]),
        ({"replace": {"а": "б"}}, ["replace: 'а' is what a look-alike becomes"]),
        ({"certain": "z"}, ["certain: 'z' is none of `lookalikes`"]),
        ({"min_share": 1.5}, ["min_share: ", "found 1.5"]),
        ({"min_share": "0.7"}, ["min_share: ", "found '0.7'"]),
        ({"name": "Kazakh Cyrillic"}, ["name: ", "found 'Kazakh Cyrillic'"]),
        ({"name": "x\n"}, ["name: ", "found 'x\\n'"]),
        ({"colour": "red"}, ["colour: unknown key"]),
    ],
)
def test_a_block_that_cannot_be_is_refused_in_one_line(change: dict, parts: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        settings_for(KAZAKH_CYRILLIC | change)
    (error,) = caught.value.errors()
    assert error["loc"] == ("language",)
    assert "\n" not in error["msg"]
    assert [part for part in parts if part not in error["msg"]] == [], error["msg"]


@pytest.mark.parametrize("value", ["azeri", "", None, 7, ["any"], True])
def test_an_unknown_name_is_refused_with_those_that_are_known(value) -> None:
    with pytest.raises(ValidationError, match="one of azeri_latin, turkish, any, or a block"):
        settings_for(value)


@pytest.mark.parametrize("key", ["min_latin", "min_schwa"])
def test_the_former_thresholds_say_where_they_went(key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key}: is part of the language now; use `language: azeri_latin`"):
        Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5, **{key: 0.5})


@pytest.mark.parametrize("language", ["any", KAZAKH_CYRILLIC])
def test_a_recipe_goes_through_json_unchanged(language) -> None:
    chosen = settings_for(language, scripts=["latin"])
    assert Cleaning.model_validate(json.loads(json.dumps(chosen.model_dump(mode="json")))) == chosen


# Scripts


@pytest.mark.parametrize(
    ("text", "script", "share"),
    [
        (AZERBAIJANI, "latin", 1.0),
        (RUSSIAN, "cyrillic", 1.0),
        ("aaaжжж ж", "cyrillic", 4 / 7),
        ("漢字漢 かな", "han", 0.6),
        ("ქართული ენა", "georgian", 1.0),
        ("ꦲꦏ꧀ꦱꦫ", "other", 1.0),
        ("a" * 300 + "ж" * 700, "cyrillic", 0.7),  # its first letters tell another script
        ("123 !?", "none", 0.0),
        ("", "none", 0.0),
    ],
)
def test_the_script_of_a_text_is_that_of_most_of_its_letters(text: str, script: str, share: float) -> None:
    main, others = scripts_of(count_letters([text], None), None)
    assert main is None
    assert others == [(0, script, pytest.approx(share))]


@given(texts=st.lists(st.text(st.sampled_from("aəżжωא漢 1×ﬁ") | st.characters(codec="utf-8")), max_size=5))
@settings(max_examples=200, deadline=None)
def test_a_language_of_one_script_saves_only_the_counting(texts: list[str]) -> None:
    language = find_language("azeri_latin")
    main, others = scripts_of(count_letters(texts, language), language)
    slow = {at: (script, share) for at, script, share in scripts_of(count_letters(texts, None), None)[1]}
    for at, script, share in others:
        assert slow.pop(at) == (script, share)
    assert all(script == main == "latin" and share >= 0.9 for script, share in slow.values())


def test_every_letter_of_the_built_in_languages_is_latin() -> None:
    for name in ("azeri_latin", "turkish"):
        language = BUILT_IN[name]
        assert {script_of(c) for c in expand_letters(language.letters) if c.isalpha()} == {"latin"}
        assert not {script_of(c) for c in language.lookalikes} & {"latin", "other"}


def test_scripts_are_counted_before_the_language_drops_them() -> None:
    report = cleaned("azeri_latin", AZERBAIJANI, RUSSIAN, f"{AZERBAIJANI} Москва, Россия")[1]
    assert report.scripts == {"latin": {"documents": 2, "mixed": 1}, "cyrillic": {"documents": 1, "mixed": 0}}
    assert report.examples["cyrillic script"] == [f"id-1: {RUSSIAN[:80].strip()} (100.0% of its letters)"]
    assert report.dropped["language"] == 1


def test_only_the_scripts_of_the_recipe_stay() -> None:
    documents, report = cleaned("any", AZERBAIJANI, RUSSIAN, "1 2 3", KAZAKH, scripts=["cyrillic"])
    assert documents.texts == [RUSSIAN, KAZAKH]
    assert report.dropped["script"] == 2
    assert report.documents == report.kept + sum(report.dropped.values())


def test_a_document_of_the_wrong_script_and_language_is_counted_once() -> None:
    documents, report = cleaned("azeri_latin", AZERBAIJANI, RUSSIAN, ENGLISH, scripts=["latin"])
    assert documents.texts == [AZERBAIJANI]
    assert {reason: count for reason, count in report.dropped.items() if count} == {"script": 1, "language": 1}


def test_an_unknown_script_is_refused() -> None:
    with pytest.raises(ValidationError, match="latin"):
        settings_for("any", scripts=["roman"])
