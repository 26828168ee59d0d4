import importlib
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import refused
from tokenizers import Tokenizer, models, pre_tokenizers

from azneobert.data.cleaning import CleaningReport, clean
from azneobert.data.documents import training_texts, write_part
from azneobert.data.records import Records
from azneobert.data.tokenizer import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    load_tokenizer,
    read_tokenizer,
    special_ids,
    tokenizer_sha256,
    train_tokenizer,
)
from azneobert.errors import DataError
from azneobert.layout import Layout
from azneobert.recipe import Tokenizer as Settings
from azneobert.recipe import load_recipe

COLLECTIONS = load_recipe(Path(__file__).parents[2] / "recipes" / "sample.yaml").data.order
SIZE = 640
ALGORITHMS = ["bpe", "unigram", "wordpiece"]
SENTENCE = "Bakı gözəl şəhərdir."
# Every valid character, with those that tokenizers stumble over more often.
ANY_TEXT = st.text(
    st.characters(codec="utf-8") | st.sampled_from("ə ıİ\n\t\x00\x7f\u00a0\u0301\u200d\ufeff😀漢👨‍👩‍👧ﷺ<0x4>[]")
)


@pytest.fixture(scope="module")
def trained(sample_texts):
    """Tokenizers by (algorithm, lowercase), each trained once."""
    made = {}

    def train(algorithm, lowercase=False):
        key = (algorithm, lowercase)
        if key not in made:
            made[key] = train_tokenizer(iter([sample_texts]), algorithm, SIZE, lowercase)
        return made[key]

    return train


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def spelled(tokenizer, text):
    """A text encoded and decoded again."""
    return tokenizer.decode(ids_of(tokenizer, text), skip_special_tokens=False)


# What is trained


@pytest.mark.parametrize("lowercase", [False, True], ids=["cased", "lowercase"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_come_first_and_frame_what_is_encoded(trained, algorithm, lowercase):
    tokenizer = trained(algorithm, lowercase)
    assert special_ids(tokenizer) == {PAD: 0, UNK: 1, CLS: 2, SEP: 3, MASK: 4}
    assert [tokenizer.id_to_token(number) for number in range(5)] == list(SPECIAL_TOKENS)
    ids = tokenizer.encode(SENTENCE).ids
    assert (ids[0], ids[-1]) == (2, 3)
    assert min(ids[1:-1]) >= len(SPECIAL_TOKENS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_vocabulary_has_the_size_asked_for_and_its_ids_have_no_gap(trained, algorithm):
    assert trained(algorithm).get_vocab_size() == SIZE
    assert sorted(trained(algorithm).get_vocab().values()) == list(range(SIZE))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_texts_are_framed_as_a_pair(trained, algorithm):
    encoding = trained(algorithm).encode("Bakı", "Gəncə")
    first, second = (len(ids_of(trained(algorithm), text)) for text in ("Bakı", "Gəncə"))
    assert [i for i, number in enumerate(encoding.ids) if number == 3] == [first + 1, first + second + 2]
    assert encoding.type_ids == [0] * (first + 2) + [1] * (second + 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_known_text_is_spelled_without_unknown_tokens(trained, algorithm, sample_texts):
    tokenizer = trained(algorithm)
    unknown = sum(ids.ids.count(1) for ids in tokenizer.encode_batch(sample_texts))
    assert unknown == 0


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
@example("\x00\x01\x1b\x7f\u0085")
@example("😀👨‍👩‍👧🇦🇿")
@example("漢字かな한글 עברית ไทย")
@example("bir\n\niki  üç\t")
def test_no_text_has_an_unknown_token(trained, algorithm, text):
    assert 1 not in ids_of(trained(algorithm), text)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_no_character_of_unicode_has_an_unknown_token(trained, algorithm):
    codes = [*range(0x3000), *range(0x3000, 0x110000, 29)]  # all of the alphabets, and every 29th of the rest
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    blocks = ["".join(characters[i : i + 4096]) for i in range(0, len(characters), 4096)]
    assert sum(ids.ids.count(1) for ids in trained(algorithm).encode_batch(blocks)) == 0


@given(text=ANY_TEXT)
@settings(max_examples=200, deadline=None)
@example(" ▁ <0x41>\n ")
def test_bpe_gives_back_any_text(trained, text):
    assert spelled(trained("bpe"), text) == unicodedata.normalize("NFC", text)


@given(text=ANY_TEXT)
@settings(max_examples=200, deadline=None)
@example("a\n\nb  c\td ")
@example("\x00😀漢\u0301")
def test_unigram_gives_back_any_text(trained, text):
    # Its pieces show a space as ▁, and it puts one before the text: neither can be told from one that was there.
    text = text.replace("▁", "").lstrip(" ")
    assert spelled(trained("unigram"), text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", ["<0x41>", "sətir <0x0A> sonu", "0x<0xFF>"])
def test_unigram_does_not_take_the_name_of_a_byte_for_the_byte(trained, text):
    assert spelled(trained("unigram"), text) == text


def test_wordpiece_gives_back_plain_words(trained):
    assert spelled(trained("wordpiece"), "bakı gözəl şəhərdir") == "bakı gözəl şəhərdir"


def test_wordpiece_has_an_unknown_token_for_what_it_has_never_seen(trained):
    assert ids_of(trained("wordpiece"), "漢")[0] == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_decomposed_text_is_encoded_as_composed_text(trained, algorithm):
    tokenizer = trained(algorithm)
    assert ids_of(tokenizer, unicodedata.normalize("NFD", SENTENCE)) == ids_of(tokenizer, SENTENCE)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mask_takes_the_space_before_it(trained, algorithm):
    tokenizer = trained(algorithm)
    assert ids_of(tokenizer, f"Bakı {MASK} şəhər") == [*ids_of(tokenizer, "Bakı"), 4, *ids_of(tokenizer, "x şəhər")[1:]]


@pytest.mark.parametrize("after", [".", ", və", " şəhər", "-dır", "\nBakı", ""])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_mask_stands_in_the_place_of_a_word_and_changes_nothing_around_it(trained, algorithm, after):
    tokenizer = trained(algorithm)
    whole = ids_of(tokenizer, f"Bakı və{after}")  # və is one token with all of them
    before = ids_of(tokenizer, "Bakı")
    assert ids_of(tokenizer, f"Bakı {MASK}{after}") == [*before, 4, *whole[len(before) + 1 :]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_mask_may_stand_first(trained, algorithm):
    assert ids_of(trained(algorithm), f"{MASK} şəhər")[0] == 4


# Lower-casing


@pytest.mark.parametrize(
    ("text", "lower"),
    [("DİL", "dil"), ("IŞIQ", "ışıq"), ("İ I i ı", "i ı i ı"), ("I\u0307sa", "isa"), ("ƏÖÜĞÇŞ Qız", "əöüğçş qız")],
)
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_lower_casing_is_azerbaijani(trained, algorithm, text, lower):
    assert spelled(trained(algorithm, lowercase=True), text) == lower


def test_lower_casing_is_azerbaijani_with_wordpiece_too(trained):
    tokenizer = trained("wordpiece", lowercase=True)
    assert ids_of(tokenizer, "DİL IŞIQ") == ids_of(tokenizer, "dil ışıq")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lower_casing_leaves_the_special_tokens(trained, algorithm):
    assert 4 in ids_of(trained(algorithm, lowercase=True), f"Bakı {MASK}")


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_without_lower_casing_capitals_stay(trained, algorithm):
    assert spelled(trained(algorithm), "DİL İŞIQ Işıq") == "DİL İŞIQ Işıq"


# Training again, and asking for too much or too little


def test_bpe_trained_twice_is_bit_identical(trained, sample_texts, tmp_path):
    again = train_tokenizer(iter([[text] for text in sample_texts]), "bpe", SIZE, lowercase=False)
    trained("bpe").save(str(tmp_path / "one.json"))
    again.save(str(tmp_path / "other.json"))
    assert tokenizer_sha256(tmp_path / "one.json") == tokenizer_sha256(tmp_path / "other.json")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_asking_for_more_vocabulary_than_there_is_says_what_would_do(sample_texts, algorithm):
    with refused(DataError, "tokenizer.vocab_size: 64000 asked for", "give only", "; use "):
        train_tokenizer(iter([sample_texts[:40]]), algorithm, 64_000, lowercase=False)


def test_the_vocabulary_size_that_the_error_names_does_train(sample_texts):
    with pytest.raises(DataError) as caught:
        train_tokenizer(iter([sample_texts[:40]]), "bpe", 64_000, lowercase=False)
    named = int(re.search(r"(\d+) for tokenizer.vocab_size", str(caught.value))[1])
    assert train_tokenizer(iter([sample_texts[:40]]), "bpe", named, lowercase=False).get_vocab_size() == named


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_size_that_would_not_do_either_is_not_named(algorithm):
    with pytest.raises(DataError, match="give only") as caught:
        train_tokenizer(iter([["a b"]]), algorithm, 512, lowercase=False)
    named = re.search(r"(\d+) for tokenizer.vocab_size", str(caught.value))
    if named:
        assert train_tokenizer(iter([["a b"]]), algorithm, int(named[1]), False).get_vocab_size() == int(named[1])


@pytest.mark.parametrize(("algorithm", "size"), [("bpe", 1), ("bpe", 260), ("wordpiece", 64)])
def test_asking_for_less_vocabulary_than_the_alphabet_names_a_size_that_does_train(sample_texts, algorithm, size):
    with pytest.raises(DataError, match=f"tokenizer.vocab_size: {size} asked for, but the alphabet") as caught:
        train_tokenizer(iter([sample_texts]), algorithm, size, lowercase=False)
    named = int(re.search(r"(\d+) or more for tokenizer.vocab_size", str(caught.value))[1])
    assert train_tokenizer(iter([sample_texts]), algorithm, named, lowercase=False).get_vocab_size() == named


def test_unigram_with_less_room_than_the_alphabet_needs_is_refused():
    alphabet = "".join(map(chr, range(0x4E00, 0x4F00)))  # 256 pieces, and 251 are left of 512
    with refused(DataError, "tokenizer.vocab_size: 512 asked for", "alphabet"):
        train_tokenizer(iter([[alphabet]]), "unigram", 512, lowercase=False)


def test_the_recipe_refuses_unigram_with_less_room_than_bytes_and_pieces_need():
    with pytest.raises(ValueError, match="use 512"):
        Settings(vocab_size=511, trained={"unigram": {}}, imported={})
    assert Settings(vocab_size=512, trained={"unigram": {}}, imported={}).vocab_size == 512


@pytest.mark.parametrize("size", [0, -64])
def test_the_recipe_refuses_a_vocabulary_of_nothing(size):
    with pytest.raises(ValueError, match="greater than 0"):
        Settings(vocab_size=size, trained={"bpe": {}}, imported={})


# Loading


@pytest.fixture
def saved(trained, tmp_path):
    trained("bpe").save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_tokenizer_loads_unchanged(trained, tmp_path, algorithm):
    trained(algorithm).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json", SIZE).to_str() == trained(algorithm).to_str()


def test_a_tokenizer_with_another_vocabulary_size_is_refused(saved):
    with refused(DataError, str(saved), f"has {SIZE} tokens", "model.vocab_size is 64000", f"set it to {SIZE}"):
        load_tokenizer(saved, 64_000)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_tokenizer_without_a_special_token_is_refused(saved, token):
    saved.write_text(saved.read_text().replace(token, "<other>"))
    with refused(DataError, str(saved), f"lacks {token}", f"{PAD}, {UNK}, {CLS}, {SEP}, {MASK}"):
        load_tokenizer(saved, SIZE)


def test_a_tokenizer_whose_ids_go_beyond_its_size_is_refused(saved):
    content = json.loads(saved.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 5000  # the model would look up a row that it does not have
    saved.write_text(json.dumps(content))
    with refused(DataError, str(saved), "5000"):
        load_tokenizer(saved, SIZE)


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[]", b"null", b"not JSON", b"\xff\xfe", b'{\n "model": 7\n}'], ids=repr
)
def test_a_damaged_tokenizer_is_refused(saved, content):
    saved.write_bytes(saved.read_bytes()[:-100] if content is None else content)
    with refused(DataError, str(saved), "not a tokenizer.json", "fetch or train it again"):
        load_tokenizer(saved)


@pytest.mark.parametrize("read", [load_tokenizer, read_tokenizer])
def test_a_missing_tokenizer_is_refused(tmp_path, read):
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with refused(DataError, str(path), "no such tokenizer", "dvc repro tokens", "correct the path"):
            read(path)


def test_an_imported_tokenizer_that_cuts_and_pads_encodes_whole_documents(saved, trained):
    cutting = Tokenizer.from_file(str(saved))
    cutting.enable_truncation(4)
    cutting.enable_padding()
    cutting.save(str(saved))
    texts = [SENTENCE, "Bakı"]
    expected = [encoding.ids for encoding in trained("bpe").encode_batch(texts, add_special_tokens=False)]
    found = load_tokenizer(saved, SIZE).encode_batch(texts, add_special_tokens=False)
    assert [encoding.ids for encoding in found] == expected


def test_any_tokenizer_can_be_read_to_compare_with(tmp_path):
    other = Tokenizer(models.WordLevel({"bir": 0, "?": 1}, unk_token="?"))
    other.save(str(tmp_path / "other.json"))
    assert read_tokenizer(tmp_path / "other.json").get_vocab_size() == 2
    with refused(DataError, "lacks", ", ".join(SPECIAL_TOKENS)):
        load_tokenizer(tmp_path / "other.json")


def test_the_sha256_is_that_of_the_file(saved):
    before = tokenizer_sha256(saved)
    assert re.fullmatch("[0-9a-f]{64}", before)
    saved.write_bytes(saved.read_bytes() + b"\n")
    assert tokenizer_sha256(saved) != before


# The stages: documents -> duplicates -> tokenizer


@pytest.fixture
def stages(project, tmp_path, monkeypatch, sample_texts):
    """Runs the stages `deduplicate` and `tokenizer` in a folder of their own; gives back where things are kept."""
    monkeypatch.syspath_prepend(project / "pipelines")
    monkeypatch.chdir(tmp_path)
    paths = Layout("sample")
    recipe = load_recipe(project / "recipes" / "sample.yaml")
    held_out = "Saxlanılmış sənəd: 漢字 yalnız burada dəfələrlə gəlir."
    for number, collection in enumerate(COLLECTIONS):
        texts = [*sample_texts[number :: len(COLLECTIONS)], "Hər yerdə eyni sənəd gəlir, bu da odur."]
        report = CleaningReport()
        documents = clean(Records([""] * len(texts), texts), recipe.data.cleaning, report)
        documents.texts.append(held_out)
        documents.ids.append("")
        documents.hashes.append(bytes([number]) * 16)
        documents.validation.append(True)
        documents.words.append(7)
        paths.documents(collection).mkdir(parents=True)
        write_part(paths.documents(collection), 0, documents)
        paths.report("ingest").mkdir(parents=True, exist_ok=True)
        ingested = {"documents": report.documents, "dropped": report.dropped}
        paths.report(f"ingest/{collection}").parent.mkdir(parents=True, exist_ok=True)
        paths.report(f"ingest/{collection}").write_text(json.dumps(ingested))

    def run(**settings):
        changed = recipe.model_copy(
            update={"tokenizer": Settings.model_validate({"trained": {}, "imported": {}} | settings)}
        )
        for stage in ("deduplicate", "tokenizer"):
            getattr(importlib.import_module(stage), stage)(changed, paths, None)
        return paths

    return run


def test_an_imported_tokenizer_stays_byte_for_byte(stages, trained, tmp_path):
    given = tmp_path / "given.json"
    content = json.loads(trained("bpe").to_str())
    given.write_text(json.dumps(content, indent=7, ensure_ascii=True) + "\n\n")  # as no library would write it
    paths = stages(vocab_size=SIZE, imported={"given": {"path": str(given)}})
    assert paths.tokenizer.read_bytes() == given.read_bytes()


def test_an_import_of_another_size_is_refused_and_leaves_nothing(stages, trained, tmp_path):
    trained("bpe").save(str(tmp_path / "given.json"))
    with refused(DataError, "given.json", f"has {SIZE} tokens"):
        stages(vocab_size=SIZE + 64, imported={"given": {"path": str(tmp_path / "given.json")}})
    assert not (tmp_path / "outputs/sample/tokenizer/tokenizer.json").exists()


def test_a_tokenizer_is_trained_and_measured_on_the_training_side_of_what_is_left(stages):
    paths = stages(vocab_size=SIZE, trained={"wordpiece": {}})
    tokenizer = load_tokenizer(paths.tokenizer, SIZE)
    assert tokenizer.token_to_id("漢") is None  # stands in what is held out
    figures = json.loads(paths.report("tokenizer").read_text())
    assert list(figures) == list(COLLECTIONS)
    for figure in figures.values():
        assert list(figure) == ["words", "azneobert", "qwen3.5", "deepseek-v4", "unknown"]
        assert figure["words"] > 0
        assert figure["unknown"] == 0
    rows = (paths.plots / "fertility.csv").read_text().splitlines()
    assert rows[0] == "collection,group,tokens_per_word"
    assert len(rows) == 1 + 3 * len(COLLECTIONS)
    for number, collection in enumerate(COLLECTIONS):
        report = json.loads(paths.report(f"documents/{collection}").read_text())
        assert report["dropped"]["elsewhere"] == (number > 0)
        assert report["kept"] == report["documents"] - sum(report["dropped"].values()) + 1  # the one put in by hand
        assert np.load(paths.duplicates(collection)).tolist() == ([report["documents"] - 1] if number else [])


def test_a_tokenizer_is_trained_on_a_sample_when_there_is_more(stages, tmp_path):
    paths = stages(vocab_size=512, trained={"bpe": {"max_characters": 20_000}})
    reports = (json.loads(paths.report(f"documents/{collection}").read_text()) for collection in COLLECTIONS)
    share = 20_000 / sum(report["characters"] for report in reports)
    places = [(paths.documents(collection), np.load(paths.duplicates(collection))) for collection in COLLECTIONS]
    sample = [batch for folder, struck in places for batch in training_texts(folder, struck, share)]
    assert share < 0.5
    assert 10_000 < sum(len(text) for batch in sample for text in batch) < 30_000
    train_tokenizer(iter(sample), "bpe", 512, lowercase=False).save(str(tmp_path / "expected.json"))
    assert tokenizer_sha256(paths.tokenizer) == tokenizer_sha256(tmp_path / "expected.json")


def test_a_missing_tokenizer_to_compare_with_is_said_before_training(stages, tmp_path):
    with refused(DataError, "missing.json", "no such tokenizer"):
        stages(vocab_size=512, trained={"bpe": {}}, compare={"other": str(tmp_path / "missing.json")})
    assert not (tmp_path / "outputs/sample/tokenizer/tokenizer.json").exists()


def test_pieces_of_bpe_do_not_reach_over_spaces(trained):
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    pieces = set(trained("bpe").get_vocab()) - set(SPECIAL_TOKENS)
    assert alphabet <= pieces
    assert [piece for piece in pieces if "Ġ" in piece.lstrip("Ġ")] == []
