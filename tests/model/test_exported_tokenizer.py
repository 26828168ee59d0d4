"""The exported tokenizer sees a text as training saw it: a repaired text exactly as the tokenizer of training does."""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from azneobert.data.repair import normalise
from azneobert.data.tokenizer import train_tokenizer
from azneobert.language import Language
from azneobert.model.exported_tokenizer import repairing_tokenizer

ROOT = Path(__file__).parents[2]
KAZAKH = Language(name="kazakh", letters="А-Яа-яә", replace={"ǝ": "ә"}, lookalikes={"o": "о"})
LANGUAGES = ["azeri_latin", "turkish", "any", KAZAKH]
# No Cyrillic and Greek letter that looks like a Latin one: those depend on the word, which is one of the limits.
ODD = (
    "aəiıIİTxçşä_1.-'× \n\r\t\x0b\x1c\x85\u00a0\u2003\u2028\u3000бджβμ"
    "ǝƎ\u0300\u0301\u0307\u0308\u0327\u0344\u00ad\u200b\u200c\u200d\u200e\u2060\u061c\ufeff\x00\x7f"
    "\u1100\u1161\u212a\u212b😀漢م"
)
odd_texts = st.text(st.sampled_from(ODD), max_size=25)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    found = []
    for file in sorted((ROOT / "data/sample").glob("*/documents.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found.append(normalise(record.get("text") or record["translation"]["azj_Latn"]))
    return found


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram", "bpe in small letters"])
def trained(request: pytest.FixtureRequest, corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    algorithm, *small = request.param.split(" ", 1)
    file = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    train_tokenizer(iter([corpus]), algorithm, 1200, bool(small)).save(str(file))
    return file


class Pairs(list[tuple[Tokenizer, Tokenizer, str | Language]]):
    """The tokenizer of training and the exported one, for each language; a failure need not spell them out."""

    def __repr__(self) -> str:
        return "Pairs"


@pytest.fixture(scope="module")
def pairs(trained: Path) -> Pairs:
    of_training = Tokenizer.from_file(str(trained))
    return Pairs((of_training, Tokenizer.from_str(repairing_tokenizer(trained, name)), name) for name in LANGUAGES)


def test_every_document_of_the_sample_has_the_tokens_of_training(pairs, corpus: list[str]) -> None:
    for of_training, exported, name in pairs:
        texts = [normalise(text, name) for text in corpus]
        expected, found = of_training.encode_batch(texts), exported.encode_batch(texts)
        assert [encoding.ids for encoding in found] == [encoding.ids for encoding in expected]
        for text, one, other in zip(texts, found, expected, strict=True):
            assert one.offsets == places(of_training, text, other.offsets)


def places(tokenizer: Tokenizer, text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the pieces stand by the export: as by the tokenizer of training, a byte-level one's without spaces."""
    if not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return offsets
    found = []
    for start, end in offsets:
        piece = text[start:end]
        space = None if "[MASK]" in piece else " "  # a mask takes the white space before it, of any kind
        first = start + len(piece) - len(piece.lstrip(space))
        found.append((first, max(first, end - len(piece) + len(piece.rstrip(space)))))
    return found


@given(text=odd_texts, masks=st.lists(st.integers(0, 25), max_size=2))
@settings(max_examples=250, deadline=None)
@example("a  b", [])
@example("a\n\n\nb", [1])
def test_a_repaired_text_has_exactly_the_tokens_of_training(pairs, text: str, masks: list[int]) -> None:
    for of_training, exported, name in pairs:
        repaired = normalise(text, name)
        for place in masks:  # a mask anywhere, a special token being no word of the text
            repaired = repaired[:place] + "[MASK]" + repaired[place:]
        if normalise(repaired, name) == repaired:
            expected, found = of_training.encode(repaired), exported.encode(repaired)
            assert found.ids == expected.ids
            assert found.offsets == places(of_training, repaired, expected.offsets)


@given(text=odd_texts)
@settings(max_examples=250, deadline=None)
@example("Azǝrbay\u00adcan\u00a0 Res\u200bpub\u200clikası \t\n \n\n i\u0307")
@example("\r\u200b\n")
@example("م\u200b\u200cx")
def test_an_odd_text_has_the_tokens_of_the_repaired_one(pairs, text: str) -> None:
    text = f"x{text}x"  # white space at the ends is one of the limits
    for of_training, exported, name in pairs:
        if name == "any" and "\u200b\u200c" in text.replace("\u200d", "\u200c"):
            continue
        assert exported.encode(text).ids == of_training.encode(normalise(text, name)).ids, name


def test_the_limits_are_those_that_are_documented(pairs) -> None:
    """Regression for what the model card says: should one of these go, the card has to change."""
    _, exported, _ = pairs[0]
    normalizer = exported.normalizer
    assert normalizer.normalize_str("Бakı").lower() == "бakı"  # a look-alike inside a Latin word
    assert normalizer.normalize_str("Аzər").lower() == "аzər"
    assert normalise("Аzər") == "Azər"
    assert normalizer.normalize_str(" a\n") == " a\n"  # the ends
    assert len(normalizer.normalize_str("x" + "\u0327" * 40)) == 41  # a heap of accents
    assert len(normalise("x" + "\u0327" * 40)) == 31


DAMAGE = {
    " ": ["\u00a0", "  ", " \u200b", "\t"],
    "ə": ["ǝ"],
    "a": ["a\u00ad", "\u200ba"],
    "ö": ["o\u0308"],
    "i": ["i\u0307"],
}


def test_offsets_point_into_the_text_as_it_was_given(pairs, corpus: list[str]) -> None:
    of_training, exported, _ = pairs[0]
    random = Random(1)
    for text in random.choices(corpus, k=300):
        plain = normalise(text[:120])
        odd = "".join(random.choice([c, *DAMAGE.get(c, [])]) for c in plain)
        expected, found = of_training.encode(plain), exported.encode(odd)
        assert found.ids == expected.ids
        for (start, end), (first, last) in zip(found.offsets, expected.offsets, strict=True):
            assert 0 <= start <= end <= len(odd)
            while end < len(odd) and unicodedata.combining(odd[end]):  # `tokenizers` gives NFC's letter its first part
                end += 1
            assert normalise(odd[start:end]) == plain[first:last].strip()


@pytest.mark.parametrize(
    "text",
    ["\u0301\u0327" * 500_000, " \u00a0" * 500_000, "\u00ad" * 10**6, " \n" * 500_000, "i\u0307" * 300_000],
    ids=["marks", "spaces", "soft hyphens", "lines", "dotted i"],
)
def test_a_megabyte_takes_no_longer_than_its_length_asks_for(text: str, tmp_path: Path) -> None:
    file = imported(tmp_path, None)
    exported = Tokenizer.from_str(repairing_tokenizer(file, "azeri_latin"))
    started = time.perf_counter()
    exported.normalizer.normalize_str(f"x{text}x")
    assert time.perf_counter() - started < 5  # a tenth of that when it is linear, minutes when it is quadratic


_TRIMMING = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def test_the_tokenizer_of_training_is_left_as_it_is_and_the_export_is_another(trained: Path) -> None:
    before = trained.read_bytes()
    exported = repairing_tokenizer(trained, "azeri_latin")
    assert trained.read_bytes() == before
    assert hashlib.sha256(exported.encode()).digest() != hashlib.sha256(before).digest()
    assert exported == repairing_tokenizer(trained, "azeri_latin")
    one, other = json.loads(exported), json.loads(before)
    assert one.pop("normalizer")["normalizers"][-1] == other.pop("normalizer")
    former = other.pop("post_processor")
    assert one.pop("post_processor") in (former, {"type": "Sequence", "processors": [_TRIMMING, former]})
    assert one == other


def test_it_loads_in_transformers_and_survives_being_saved(trained: Path, corpus: list[str], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/tokenizer.json").write_text(repairing_tokenizer(trained, "azeri_latin"), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]", "training_tokenizer_sha256": "abc"}
    (tmp_path / "a/tokenizer_config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert isinstance(again, PreTrainedTokenizerFast)
    assert json.loads((tmp_path / "b/tokenizer_config.json").read_text())["training_tokenizer_sha256"] == "abc"
    of_training = Tokenizer.from_file(str(trained))
    odd = "Azǝrbay\u00adcan\u00a0[MASK]  \u200bbi\u0307r go\u0308l"
    plain = normalise(odd)
    for tokenizer in (loaded, again):
        assert tokenizer(odd)["input_ids"] == of_training.encode(plain).ids
        assert tokenizer(corpus)["input_ids"] == [encoding.ids for encoding in of_training.encode_batch(corpus)]


# Tokenizers that were imported


def imported(tmp_path: Path, normalizer: normalizers.Normalizer | None, *added: AddedToken) -> Path:
    words = {word: number for number, word in enumerate(["[UNK]", "azər", "bir", "iki", "AZƏR"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(tmp_path / "imported.json"))
    return tmp_path / "imported.json"


def test_a_normalizer_of_its_own_comes_after_ours(tmp_path: Path) -> None:
    file = imported(tmp_path, normalizers.Sequence([normalizers.Replace(Regex("^ə"), "a"), normalizers.Lowercase()]))
    exported = Tokenizer.from_str(repairing_tokenizer(file, "azeri_latin"))
    assert exported.normalizer.normalize_str("ǝzƎR") == "azər"
    assert exported.encode("AZƎR").ids == [1]


def test_a_tokenizer_without_a_normalizer_gets_ours(tmp_path: Path) -> None:
    file = imported(tmp_path, None)
    assert Tokenizer.from_file(str(file)).encode("azǝr").ids == [0]
    exported = Tokenizer.from_str(repairing_tokenizer(file, "azeri_latin"))
    assert exported.encode("azǝr").ids == [1]
    assert exported.encode("AZƏR").ids == [4]


def test_an_added_token_that_no_repaired_text_holds_is_not_found_in_one(tmp_path: Path) -> None:
    """Regression: two spaces as a token became one space when it was normalized, and so stood in every text."""
    file = imported(tmp_path, None, AddedToken("  ", normalized=True), AddedToken("iki", normalized=True))
    of_training = Tokenizer.from_file(str(file))
    exported = Tokenizer.from_str(repairing_tokenizer(file, "azeri_latin"))
    assert exported.encode("bir iki bir").ids == of_training.encode("bir iki bir").ids == [2, 3, 2]
    flags = {token["content"]: token["normalized"] for token in json.loads(exported.to_str())["added_tokens"]}
    assert flags == {"  ": False, "iki": True}


def test_nfc_is_ours_even_if_the_imported_one_has_none(tmp_path: Path) -> None:
    exported = Tokenizer.from_str(repairing_tokenizer(imported(tmp_path, None), "any"))
    decomposed = unicodedata.normalize("NFD", "çörək")
    assert exported.normalizer.normalize_str(decomposed) == "çörək"
