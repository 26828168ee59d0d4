import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data.tokenizer import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    fertility,
    load_tokenizer,
    special_ids,
    tokenizer_sha256,
    train_tokenizer,
)
from azneobert.errors import DataError

SIZE = 512


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


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_special_tokens_come_first_and_frame_what_is_encoded(trained, algorithm):
    tokenizer = trained(algorithm)
    assert special_ids(tokenizer) == {PAD: 0, UNK: 1, CLS: 2, SEP: 3, MASK: 4}
    assert tokenizer.get_vocab_size() == SIZE
    ids = tokenizer.encode("Bakı gözəl şəhərdir.").ids
    assert (ids[0], ids[-1]) == (2, 3)
    assert min(ids[1:-1]) >= len(SPECIAL_TOKENS)


@given(text=st.text())
@settings(max_examples=60, deadline=None)
def test_byte_level_bpe_gives_back_any_text(trained, text):
    tokenizer = trained("bpe")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_byte_level_bpe_knows_every_byte(trained):
    text = "".join(map(chr, range(1, 0x3000)))
    assert special_ids(trained("bpe"))[UNK] not in trained("bpe").encode(text, add_special_tokens=False).ids


def test_byte_level_bpe_trained_twice_is_bit_identical(trained, sample_texts, tmp_path):
    again = train_tokenizer(iter([[text] for text in sample_texts]), "bpe", SIZE, lowercase=False)
    trained("bpe").save(str(tmp_path / "one.json"))
    again.save(str(tmp_path / "other.json"))
    assert tokenizer_sha256(tmp_path / "one.json") == tokenizer_sha256(tmp_path / "other.json")


def test_lower_casing_is_azerbaijani(trained):
    tokenizer = trained("bpe", lowercase=True)
    ids = tokenizer.encode("İŞIQ I İ Ə I\u0307", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "işıq ı i ə i"


def test_without_lower_casing_capitals_stay(trained):
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode("İŞIQ Işıq").ids) == "İŞIQ Işıq"


def test_asking_for_more_vocabulary_than_there_is_says_what_would_do(sample_texts):
    with refused(DataError, "tokenizer.vocab_size: 64000 asked for", "give only", "would do"):
        train_tokenizer(iter([sample_texts]), "bpe", 64000, lowercase=False)


def test_the_vocabulary_size_that_the_error_names_does_train(sample_texts):
    with pytest.raises(DataError) as caught:
        train_tokenizer(iter([sample_texts]), "bpe", 64000, lowercase=False)
    named = int(re.search(r"(\d+) for tokenizer.vocab_size", str(caught.value))[1])
    assert train_tokenizer(iter([sample_texts]), "bpe", named, lowercase=False).get_vocab_size() == named


def test_asking_for_less_vocabulary_than_the_alphabet_does_not_name_that_size_as_one_that_would_do(sample_texts):
    with pytest.raises(DataError) as caught:
        train_tokenizer(iter([sample_texts]), "bpe", 256, lowercase=False)
    assert "256 for tokenizer.vocab_size" not in str(caught.value)


@pytest.fixture
def saved(trained, tmp_path):
    trained("bpe").save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_saved_tokenizer_loads_unchanged(saved, trained):
    assert load_tokenizer(saved, SIZE).to_str() == trained("bpe").to_str()


def test_a_tokenizer_with_another_vocabulary_size_is_refused(saved):
    with refused(DataError, str(saved), f"has {SIZE} tokens", "model.vocab_size is 64000", f"set it to {SIZE}"):
        load_tokenizer(saved, 64000)


def test_a_tokenizer_without_a_special_token_is_refused(saved):
    saved.write_text(saved.read_text().replace(MASK, "<mask>"))
    with refused(DataError, str(saved), f"lacks {MASK}", f"{PAD}, {UNK}, {CLS}, {SEP}, {MASK} would do"):
        load_tokenizer(saved, SIZE)


def test_a_damaged_tokenizer_is_refused(saved):
    saved.write_text(saved.read_text()[:-100])
    with refused(DataError, str(saved), "not a tokenizer.json", "fetch or train it again"):
        load_tokenizer(saved)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/tokenizer.json", "no such tokenizer", "dvc repro tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_fertility_counts_tokens_words_and_unknown_tokens(trained):
    tokenizer = trained("wordpiece")
    texts = [["Bakı şəhəri", "漢"], ["kitab"]]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for batch in texts for text in batch)
    assert fertility(tokenizer, texts) == {
        "tokens": tokens,
        "words": 4,
        "tokens_per_word": round(tokens / 4, 4),
        "unknown": round(1 / tokens, 6),
    }
