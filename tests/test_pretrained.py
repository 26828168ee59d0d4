"""Words that come one by one get the tokens that they have in running text, from which the encoder has learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from toy import ROOT
from transformers import AutoTokenizer, RobertaTokenizer

from azneobert.data.repair import normalise
from azneobert.data.tokenizer import train_tokenizer
from azneobert.model.exported_tokenizer import repairing_tokenizer
from azneobert.pretrained import load_tokenizer

SENTENCES = [
    ["Bakı", "park'ın", "12-ci", "ABŞ-da", "Bakı–Gəncə", "3,5", "«Nizami»", "😀", "gəldi."],
    ["park'ın", "yanında", "«", "Şəhər", "»", "—", "1990-cı", "ildə", "%5", "R&D"],
    ["12-ci", "ev"],
    ["«", "Kitab", "»"],
    ["😀", "😀😀", "salam!"],
    ["O'nun", "Mir-Cəfər'in", "2.000", "I", "İ", "ı"],
]


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as an export has it, and beside it, as training.json, the one of training."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    lines = (ROOT / "data/sample/cc100/documents.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [normalise(json.loads(line)["text"]) for line in lines]
    train_tokenizer(iter([texts]), request.param, 1200, lowercase=False).save(str(folder / "training.json"))
    written = repairing_tokenizer(folder / "training.json", "azeri_latin")
    (folder / "tokenizer.json").write_text(written, encoding="utf-8")
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def by_word(tokenizer: Any, words: list[str]) -> list[list[int]]:
    """The ids of each word of a list."""
    encoding = tokenizer(words, is_split_into_words=True).encodings[0]
    ids: list[list[int]] = [[] for _ in words]
    for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
        if word is not None:
            ids[word].append(token)
    return ids


def in_running_text(tokenizer: Any, words: list[str]) -> list[int]:
    """The ids of the words with a space before each of them, of which the first token of the text tells nothing."""
    text = tokenizer(f"x {' '.join(words)}", add_special_tokens=False)["input_ids"]
    first = tokenizer("x", add_special_tokens=False)["input_ids"]
    assert text[: len(first)] == first
    return list(text[len(first) :])


@pytest.mark.parametrize("words", SENTENCES)
def test_split_words_have_the_ids_of_running_text(exported: Path, words: list[str]) -> None:
    plain, split = load_tokenizer(exported), load_tokenizer(exported, split_words=True)
    assert [token for word in by_word(split, words) for token in word] == in_running_text(plain, words)
    assert all(by_word(split, words)), "each word has a token of its own"


@pytest.mark.parametrize("words", SENTENCES)
def test_they_still_do_when_it_was_saved_and_is_loaded_by_transformers_alone(
    exported: Path, words: list[str], tmp_path: Path
) -> None:
    split = load_tokenizer(exported, split_words=True)
    split.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(words, is_split_into_words=True)["input_ids"] == split(words, is_split_into_words=True)["input_ids"]
    text = " ".join(words)
    assert again(text)["input_ids"] == split(text)["input_ids"]


@pytest.mark.parametrize("words", SENTENCES)
def test_running_text_has_the_ids_of_training(exported: Path, words: list[str]) -> None:
    text = " ".join(words)
    of_training = Tokenizer.from_file(str(exported / "training.json"))
    assert load_tokenizer(exported)(text)["input_ids"] == of_training.encode(text).ids


@pytest.mark.parametrize("split_words", [False, True])
@pytest.mark.parametrize("words", SENTENCES)
def test_no_piece_is_said_to_begin_on_a_space(exported: Path, words: list[str], split_words: bool) -> None:
    if exported.name.startswith("unigram"):
        pytest.skip("of a unigram tokenizer the space belongs to the piece")
    text = " ".join(words)
    encoded = load_tokenizer(exported, split_words=split_words)(text, return_offsets_mapping=True)
    places = [(start, end) for start, end in encoded["offset_mapping"] if end > start]
    assert [text[start:end] for start, end in places if text[start] == " "] == []
    covered = {at for start, end in places for at in range(start, end)}
    assert covered == {at for at, character in enumerate(text) if character != " "}


def test_a_first_word_begins_where_it_stands_in_a_list(exported: Path) -> None:
    encoded = load_tokenizer(exported, split_words=True)(["Bakı", "dağ"], is_split_into_words=True)
    encoding = encoded.encodings[0]
    starts = [encoding.offsets[encoding.word_ids.index(word)][0] for word in (0, 1)]
    assert starts == [0, 0]


@pytest.mark.parametrize("words", SENTENCES)
def test_a_tokenizer_that_cuts_words_first_puts_one_space_before_a_word(
    exported: Path, tmp_path: Path, words: list[str]
) -> None:
    whole = load_tokenizer(exported)
    if not isinstance(whole.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        pytest.skip("is not byte-level")
    cuts = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s?\p{N}{1,3}|\s?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cuts, level])
    whole.save_pretrained(tmp_path / "cutting")
    split = load_tokenizer(tmp_path / "cutting", split_words=True)
    expected = in_running_text(load_tokenizer(tmp_path / "cutting"), words)
    assert [token for word in by_word(split, words) for token in word] == expected


def test_one_that_was_saved_for_split_words_is_the_same_when_it_is_loaded_for_them(
    exported: Path, tmp_path: Path
) -> None:
    split = load_tokenizer(exported, split_words=True)
    split.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", split_words=True)
    assert [by_word(again, words) for words in SENTENCES] == [by_word(split, words) for words in SENTENCES]


def test_the_tokenizer_in_the_folder_is_left_as_it_is(exported: Path) -> None:
    before = (exported / "tokenizer.json").read_bytes()
    load_tokenizer(exported, split_words=True)
    assert (exported / "tokenizer.json").read_bytes() == before


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A tokenizer of the hub's most usual kind, which has its space by a setting."""
    trained = train_tokenizer(iter([[" ".join(words) for words in SENTENCES]]), "bpe", 300, lowercase=False)
    content = json.loads(trained.to_str())["model"]
    RobertaTokenizer(
        vocab=content["vocab"] | {"<s>": 300, "</s>": 301, "<unk>": 302, "<pad>": 303, "<mask>": 304},
        merges=[tuple(merge) for merge in content["merges"]],
    ).save_pretrained(tmp_path / "roberta")
    return tmp_path / "roberta"


def test_a_tokenizer_of_roberta_puts_the_space_also_when_it_is_saved_and_loaded(roberta: Path, tmp_path: Path) -> None:
    words = SENTENCES[0]
    split = load_tokenizer(roberta, split_words=True)
    expected = in_running_text(load_tokenizer(roberta), words)
    assert [token for word in by_word(split, words) for token in word] == expected
    split.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [token for word in by_word(again, words) for token in word] == expected
