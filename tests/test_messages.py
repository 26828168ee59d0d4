"""What a user reads where something is refused: every message of the library and the stages is in one style.

CONTRIBUTING.md states it: "where: what was found; what to do". The messages are read from the source, wherever an error
of the project is made, to be raised there or returned by a helper. A placeholder is read as `{}`, the name of a
constant text as that text; of `a if condition else b` each is a message.

What no program can check, or the source does not hold: whether the place is the right one and what to do helps; what a
placeholder holds, such as what to do in "; {}"; whether a reader understands it. A message that ends in another one,
": {}", has its end from there, and one that is all placeholder was made elsewhere.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = "AzNeoBertError"
MOST_CHARACTERS = 200  # without what the placeholders hold
FORBIDDEN = ("would do", "Traceback", "Exception", "NoneType", "object at 0x", "\n")

# Before the first colon: a placeholder, an option, a key of the recipe, a command or a file; or one of these.
NAMED = {
    *("checkpoint", "dvc", "global batch", "launcher", "mixture", "mlflow server", "sbatch", "scontrol", "squeue"),
    *("SLURM", "task", "text"),
}
PLACE = re.compile(r".*\{\}.*|--[a-z-]+( \w+)?|[a-z0-9]+([._]\w+)+|`[^`]+`")
# What to do stands after a "; " and begins with one of these, or with a command, or is filled in.
VERBS = {
    *("allow", "bring", "build", "change", "check", "copy", "correct", "delete", "do", "end", "evaluate", "expected"),
    *("fetch", "fine-tune", "free", "give", "hide", "leave", "look", "make", "mend", "move", "name", "pull", "put"),
    *(
        "register",
        "remove",
        "rename",
        "run",
        "save",
        "see",
        "set",
        "shorten",
        "start",
        "take",
        "train",
        "try",
        "update",
        "use",
    ),
    *("wait",),
}
TO_DO = re.compile(rf"((^|: )expected|; (or )?({'|'.join(sorted(VERBS))}))\b|; (or )?(`|\{{\}})")
ENDS_IN_ANOTHER = re.compile(r"(^|: )(\{\})+$")

# What a module raises that has no place, or does not say what to do, and why.
INCOMPLETE = {
    "azneobert.bench.faults": "goes into the table of trials, beside the fault",
    "azneobert.checkpoint.parameter_order": "the caller puts the optimizer's file before it",
    "azneobert.doctor.programs": "the doctor's finding says what to do",
}
INCOMPLETE_MESSAGES = {
    "MLflow at {}: no answer in {} s": "whoever asked says what waits, and until when",
    "{}: no answer within {} s": "who waits for a job asks SLURM again",
    "{}; it takes {} MB{}": "the run that saves says what it does then",
}

Constants = Mapping[str, ast.expr]


def messages_of(tree: ast.Module, errors: Iterable[str], constants: Constants) -> Iterator[tuple[int, str]]:
    """Line and text of each message of these errors, in the order of the lines."""
    made = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args and name_of(node.func) in errors
    ]
    for call in sorted(made, key=lambda call: call.lineno):
        for text in texts_of(call.args[0], constants):
            if any(character.isalpha() for character in text):
                yield call.lineno, text


def texts_of(node: ast.expr, constants: Constants) -> list[str]:
    """What an expression may read as."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(each) for each in product(*(texts_of(part, constants) for part in parts))]
        case ast.FormattedValue(value=value):
            return texts_of(value, constants)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a, b in product(texts_of(left, constants), texts_of(right, constants))]
        case ast.IfExp(body=one, orelse=other):
            return texts_of(one, constants) + texts_of(other, constants)
        case ast.Name(id=name) if name in constants:
            return texts_of(constants[name], {})
    return ["{}"]


def name_of(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def errors_of(trees: Iterable[ast.Module]) -> set[str]:
    """The names of the project's errors: the classes that are derived from the first one."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {BASE}
    while more := {each.name for each in classes if found & {name_of(base) for base in each.bases}} - found:
        found |= more
    return found


def constants_of(tree: ast.Module, trees: Mapping[str, ast.Module]) -> dict[str, ast.expr]:
    """What a module assigns to names at its top, and what it imports of that from the others."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in trees:
            theirs = assigned(trees[node.module])
            found |= {alias.asname or alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
    return found | assigned(tree)


def assigned(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def wrong_words(text: str) -> list[str]:
    """What is wrong with a text, or with a part of one, whatever stands before and after it."""
    found = [f"says {word!r}" for word in FORBIDDEN if word in text]
    if text.endswith(".") and not text.endswith("..."):
        found.append("ends with a full stop")
    if (length := len(text.replace("{}", ""))) > MOST_CHARACTERS:
        found.append(f"has {length} characters of its own")
    return found


def wrong_form(text: str) -> list[str]:
    """What keeps a text from reading "where: what was found; what to do"."""
    if re.match(r"(\{\})+; ", text):  # begins with another message, which names the place
        place, rest = "{}", text
    else:
        place, _, rest = text.partition(": ")
    if not rest or not (place in NAMED or PLACE.fullmatch(place)):
        return ["does not begin with a place and a colon"]
    return [] if TO_DO.search(rest) or ENDS_IN_ANOTHER.search(rest) else ["does not say what to do"]


def wrong(module: str, text: str) -> list[str]:
    incomplete = module in INCOMPLETE or text in INCOMPLETE_MESSAGES
    return wrong_words(text) + ([] if incomplete else wrong_form(text))


TREES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text("utf-8"))
    for folder in ("azneobert", "pipelines")
    for file in sorted((ROOT / folder).rglob("*.py"))
}
ERRORS = errors_of(TREES.values())
MESSAGES = [
    (module, line, text)
    for module, tree in TREES.items()
    for line, text in messages_of(tree, ERRORS, constants_of(tree, TREES))
]


def test_every_message_is_in_the_style() -> None:
    found = [(f"{module}, line {line}: {text}", wrong(module, text)) for module, line, text in MESSAGES]
    assert not {message: faults for message, faults in found if faults}


def test_what_python_s_own_errors_say_may_become_a_part_of_a_message() -> None:
    builtin = {"ValueError", "TypeError", "KeyError", "OSError", "ArrowInvalid"}
    reasons = [
        f"{module}, line {line}: {text}"
        for module, tree in TREES.items()
        for line, text in messages_of(tree, builtin, constants_of(tree, TREES))
        if wrong_words(text)
    ]
    assert not reasons


def test_the_messages_are_found() -> None:
    assert {"DataError", "CheckpointError", "NewerFormatError", "_RefusedError"} <= ERRORS
    assert {module for module, _, _ in MESSAGES} >= {"azneobert.data.rows", "azneobert.cli.bench", "pipelines.stage"}
    assert len(MESSAGES) > 300
    restored = "{}: a window of no tokens or of no store; `azneobert cache check`, then `dvc repro rows` makes it anew"
    assert ("azneobert.data.rows", restored) in {(module, text) for module, _, text in MESSAGES}


def test_what_is_listed_as_incomplete_is() -> None:
    texts = {text for _, _, text in MESSAGES}
    assert set(INCOMPLETE_MESSAGES) <= texts
    assert all(wrong_form(text) for text in INCOMPLETE_MESSAGES)
    incomplete = {module for module, _, text in MESSAGES if wrong_form(text)}
    assert set(INCOMPLETE) <= incomplete


def test_a_message_is_read_wherever_it_is_made() -> None:
    program = """
from elsewhere import TEXT as MINE
HERE = "here"
class OtherError(AzNeoBertError): ...
def raised(): raise OtherError(f"{HERE}: {x!r} " "found; " + MINE)
def returned(): return errors.OtherError(f"{a}{'; ' if b else ', '}{RESTORE}")
def passed_on(): raise OtherError(f"{error}")
"""
    tree, elsewhere = ast.parse(program), ast.parse("TEXT = 'run it'")
    errors = errors_of([tree])
    found = list(messages_of(tree, errors, constants_of(tree, {"elsewhere": elsewhere})))
    assert [text for _, text in found] == ["here: {} found; run it"]
    assert errors == {BASE, "OtherError"}


@pytest.mark.parametrize(
    "text",
    [
        "{}: no such file; `dvc repro rows` writes it",
        "{}: lacks {}; expected a tokenizer with both",
        "--worlds {}: expected numbers of ranks",
        "--to zero2: the source lacks it; use --to plain",
        "runtime.engine: zero2 takes a GPU; hide it, or use plain",
        "`dvc pull`: {}",
        "{}; or use another one",
    ],
)
def test_a_good_message_passes(text: str) -> None:
    assert wrong("azneobert.some", text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}: lacks {}; one that has it would do", "says 'would do'"),
        ("{}: NoneType; use another", "says 'NoneType'"),
        ("{}: two\nlines; use one", "says '\\n'"),
        ("{}: damaged; use another.", "ends with a full stop"),
        ("{}: " + "long " * 40 + "; use less", "has 212 characters of its own"),
        ("no such file; use another", "does not begin with a place and a colon"),
        ("Something odd: it broke; use another", "does not begin with a place and a colon"),
        ("{}: damaged", "does not say what to do"),
        ("{}: damaged; nothing is removed", "does not say what to do"),
    ],
)
def test_a_bad_message_does_not(text: str, said: str) -> None:
    assert said in wrong("azneobert.some", text)
