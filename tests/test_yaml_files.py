import os
import time

import pytest
from refusals import refused
from ruamel.yaml import YAML

from azneobert.yaml_files import edit_yaml, read_yaml, write_yaml, yaml_text


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some.yaml"


def write(file, text):
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-05", 5e-5),
        ("5e5", 5e5),
        (".5", 0.5),
        ("off", "off"),
        ("no", "no"),
        ("true", True),
        ("2024-13-45", "2024-13-45"),
        ("2024-01-05", "2024-01-05"),
        ("", None),
        ('"a\\tb"', "a\tb"),
    ],
)
def test_scalars_are_those_of_yaml_1_2_and_a_date_is_text(file, text, value):
    assert read_yaml(write(file, f"key: {text}\n")) == {"key": value}


def test_it_reads_what_dvc_reads(file):
    text = "a: 1\nb: [1.5, 1e3, yes, ~, '1']\nc:\n  d: off\n  e: 0o17\n"
    assert read_yaml(write(file, text)) == YAML(typ="safe").load(text)


BOMB = ",".join(f"&b{level} [{','.join(['x' if level == 0 else f'*b{level - 1}'] * 10)}]" for level in range(9))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"seed: [{BOMB}]", "line 1: an anchor or alias"),
        ("a: &x 1\nb: 2", "line 1: an anchor or alias"),
        ("a: 1\nb: *x", "line 2: an anchor or alias"),
        ("seed: !!int abc", "line 1: a tag"),
        ("seed: !!python/object/apply:os.system [ls]", "line 1: a tag"),
        ("seed: " + "[" * 3000, "more than 20 levels deep"),
        ("seed: " + "{a: " * 3000, "more than 20 levels deep"),
        ("\n".join(" " * level + "a:" for level in range(300)), "more than 20 levels deep"),
        ("- " * 3000 + "a", "more than 20 levels deep"),
        ("seed: " + "9" * 5000, "4300 digits"),
        ("a: 1\na: 2", 'line 2: found duplicate key "a"'),
        ("a: 'x", "line 1: found unexpected end of stream"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: \x1b[0m", "not YAML"),
        ("\ta: 1", "line 1: found character '\\t'"),
        ("2023: x", "top level: the key 2023 is no text"),
        ("a:\n  b:\n  - {1.5: x}", "a.b.0: the key 1.5 is no text"),
        ("? [a, b]\n: 1", "the key ('a', 'b') is no text"),
        ("", "holds nothing, expected keys and values"),
        ("- 1", "holds list, expected keys and values"),
        ("a: 1\n" * (1 << 18), "at most 1048576 expected"),
    ],
)
def test_what_is_no_mapping_of_plain_values_is_one_line_at_once(file, text, found):
    write(file, text)
    began = time.process_time()
    with refused(ValueError, found):
        read_yaml(file)
    assert time.process_time() - began < 3  # of 40 s before there were limits


def test_a_file_that_is_not_utf_8_says_so(file):
    file.write_bytes("a: ə".encode("utf-16"))
    with refused(ValueError, "is not UTF-8", "save it as UTF-8"):
        read_yaml(file)


def test_a_pipe_is_not_waited_for(file):
    os.mkfifo(file)
    with refused(ValueError, "is not a regular file"):
        read_yaml(file)


def test_a_changed_file_keeps_its_comments(file):
    content = edit_yaml(write(file, "# above\na: 1 # beside\n\nb:\n# inside\n- x\n"))
    content["a"] = 2
    write_yaml(file, content)
    assert file.read_text() == "# above\na: 2 # beside\n\nb:\n# inside\n- x\n"


def test_what_is_written_is_read_back(file):
    content = {"a": {"b": [1, 2.5, None, "off", "1e-5", "Xəzər: #1"]}, "c": {}, "d": []}
    write_yaml(file, content)
    assert read_yaml(file) == content
    assert file.read_text(encoding="utf-8") == yaml_text(content)
