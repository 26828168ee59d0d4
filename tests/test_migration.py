"""A params.yaml of before, with a block a recipe, becomes a file of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from azneobert.data.languages import find_language
from azneobert.errors import RecipeError
from azneobert.migration import migrate
from azneobert.recipe import load_recipe
from azneobert.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
PARAMS = Path("params.yaml")

pytestmark = pytest.mark.usefixtures("recipes")


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*.yaml")}


BEFORE = """# Chosen here.
recipe: two

# The first one.
one:
  seed: 1337 # of all
  data:
    # Raise `revision`.
    sources:
      news: {path: data/news, revision: "2"} # local
      # Streamed:
      web: {dataset: a/b, config: az}
      books:
        path: data/books
        text_field: body
    # The order.
    order: [web, news, books]
    cleaning:
      min_words: 3
      min_latin: 0.7
      min_schwa: 0.02
      max_malformed: 0.01
      validation_fraction: 0.12
  tokenizer:
    algorithm: bpe # wordpiece | bpe
    vocab_size: 2048
    lowercase: true
    path: null
REST
  finetuning:
    model: models:/azneobert@phase2
    task: data/sample/My Topics
    epochs: 8
    batch_size: 16
    learning_rate: 5.0e-4
    max_length: 128
    seeds: [1, 2, 3]

# The second one.
two:
  seed: 3
  data:
    sources:
      news: {path: data/news}
    order: [news]
    cleaning:
      min_words: 3
      min_latin: 0.7
      min_schwa: 0.02
      max_malformed: 0.01
      validation_fraction: 0.12
  tokenizer:
    algorithm: import
    vocab_size: 2048
    lowercase: false
    path: data/tokenizer.json # the published one
REST
  finetuning:
    model: models:/azneobert@phase2
    task: data/topics
    epochs: 8
    batch_size: 16
    learning_rate: 5.0e-4
    max_length: 128
    seeds: [1, 2, 3]
"""


@pytest.fixture
def before() -> str:
    """A params.yaml with two blocks, as it was before."""
    sample = Path("recipes/sample.yaml").read_text(encoding="utf-8")
    rest = sample[sample.index("model:\n") : sample.index("finetuning:\n")].rstrip("\n")
    text = BEFORE.replace("REST", "\n".join(f"  {line}" if line else "" for line in rest.splitlines()))
    PARAMS.write_text(text, encoding="utf-8")
    return text


def test_blocks_of_before_become_a_file_each_and_the_chosen_one_is_in_place(before: str) -> None:
    written = migrate()
    assert written == [Path("recipes/one.yaml"), Path("recipes/two.yaml"), Path("recipes/kept/params-1.yaml")]
    assert written[-1].read_text(encoding="utf-8") == before
    assert PARAMS.read_bytes() == Path("recipes/two.yaml").read_bytes()
    one, two = load_recipe("recipes/one.yaml"), load_recipe("recipes/two.yaml")
    assert list(one.data.files) == ["news", "books"]
    assert list(one.data.hub) == ["web"]
    assert one.data.order == ("web", "news", "books")
    assert one.tokenizer.trained["bpe"].lowercase
    assert two.tokenizer.imported["published"].path == "data/tokenizer.json"
    assert {name: each.path for name, each in one.finetuning.files.items()} == {"my_topics": "data/sample/My Topics"}


def test_the_thresholds_of_before_are_a_part_of_the_language(before: str) -> None:
    PARAMS.write_text(before.replace("min_schwa: 0.02", "min_schwa: 0.05", 1), encoding="utf-8")
    migrate()
    assert load_recipe("recipes/two.yaml").data.cleaning.language == "azeri_latin"
    own = find_language("azeri_latin")
    assert own
    changed = own.model_copy(update={"min_must_share": 0.05, "name": "azeri_latin_changed"})
    assert load_recipe("recipes/one.yaml").data.cleaning.language == changed


def test_what_decides_a_run_s_identity_is_the_same_after_the_migration(before: str) -> None:
    old = read_yaml(PARAMS)["one"]
    migrate()
    new = read_yaml(Path("recipes/one.yaml"))
    assert [new[part] for part in ("seed", "model", "training", "phase1", "phase2")] == [
        old[part] for part in ("seed", "model", "training", "phase1", "phase2")
    ]


def test_the_migration_keeps_every_comment(before: str) -> None:
    migrate()
    kept = Path("recipes/one.yaml").read_text() + Path("recipes/two.yaml").read_text()
    comments = {line.split("#", 1)[1].strip() for line in before.splitlines() if "#" in line} - {"Chosen here."}
    assert [comment for comment in comments if comment not in kept] == []
    assert "The second one." not in Path("recipes/one.yaml").read_text()


def test_a_block_whose_name_is_taken_is_kept_beside(before: str) -> None:
    PARAMS.write_text(before.replace("\none:", "\nsample:"), encoding="utf-8")
    assert migrate()[0] == Path("recipes/kept/sample-1.yaml")
    assert Path("recipes/sample.yaml").read_bytes() == (ROOT / "recipes/sample.yaml").read_bytes()


def test_a_block_that_is_no_recipe_stops_the_migration_and_nothing_is_written(before: str) -> None:
    PARAMS.write_text(before.replace("min_words: 3", "min_wrods: 3", 1), encoding="utf-8")
    known = files()
    with refused(RecipeError, "params.yaml, block one.yaml: data.cleaning.min_words"):
        migrate()
    assert files() == known
    assert not Path("recipes/.migrated").exists()


def test_a_block_whose_name_would_leave_the_folder_is_refused(before: str) -> None:
    PARAMS.write_text(before.replace("\none:", '\n"../one":'), encoding="utf-8")
    known = files()
    with refused(RecipeError, "params.yaml: '../one' is no name here"):
        migrate()
    assert files() == known


def test_a_recipe_of_today_is_not_migrated() -> None:
    known = files()
    with refused(RecipeError, "params.yaml: no block that `recipe:` names"):
        migrate()
    assert files() == known
