from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from refusals import refused

from azneobert.course import divide_batch
from azneobert.errors import RecipeError
from azneobert.recipe import load_recipe, recipe_fingerprint

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def edited(tmp_path):
    """The project's params.yaml with one key of one recipe replaced (or removed, by ...), as a file."""

    def edit(dotted, value):
        document = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        *parents, last = dotted.split(".")
        block = document
        for key in parents:
            block = block[key]
        if value is ...:
            del block[last]
        else:
            block[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return edit


@pytest.fixture(scope="module")
def h200():
    return load_recipe(PARAMS, "h200")[1]


@pytest.mark.parametrize("name", ["sample", "h200"])
def test_both_recipes_load(name):
    assert load_recipe(PARAMS, name)[0] == name


def test_the_file_itself_chooses_the_recipe(edited):
    assert load_recipe(edited("recipe", "h200"))[0] == "h200"


@pytest.mark.parametrize(
    ("key", "published"),
    [
        ("phase1.sequence_length", 1024),
        ("phase1.global_batch", 2304),
        ("phase1.steps", 127_000),
        ("phase1.warmup_steps", 2000),
        ("phase1.peak_learning_rate", 1e-4),
        ("phase1.start_from", None),
        ("phase2.sequence_length", 4096),
        ("phase2.global_batch", 512),
        ("phase2.steps", 7000),
        ("phase2.start_from", "phase1"),
        ("runtime.processes", 8),
        ("runtime.max_micro_batch", 48),
        ("runtime.engine", "zero2"),
        ("training.adam_betas", (0.9, 0.95)),
        ("training.weight_decay", 0.01),
        ("training.clip_norm", 1.0),
        ("training.masking_rate", 0.2),
        ("training.compute_dtype", "bfloat16"),
        ("model.num_hidden_layers", 28),
        ("model.hidden_size", 768),
        ("model.num_attention_heads", 12),
        ("model.intermediate_size", 3072),
        ("model.rms_norm_eps", 1e-5),
        ("model.rope_theta", 10_000.0),
        ("model.vocab_size", 64_000),
        ("model.max_position_embeddings", 4096),
        ("model.tie_embeddings", False),
        ("tokenizer.vocab_size", 64_000),
    ],
)
def test_the_published_recipe_has_the_design_s_number(h200, key, published):
    assert attrgetter(key)(h200) == published


def test_the_published_batch_is_8_gpus_times_48_rows_times_6_micro_steps(h200):
    assert divide_batch(h200.phase1.global_batch, h200.runtime.processes, h200.runtime.max_micro_batch) == (48, 6)


def test_the_published_first_phase_sees_about_300_billion_tokens(h200):
    phase = h200.phase1
    assert phase.steps * phase.global_batch * phase.sequence_length == pytest.approx(300e9, rel=0.01)


def test_wandb_off_may_stand_without_quotes(tmp_path):
    text = PARAMS.read_text(encoding="utf-8")
    assert 'wandb: "off"' in text
    (tmp_path / "params.yaml").write_text(text.replace('wandb: "off"', "wandb: off"), encoding="utf-8")
    assert load_recipe(tmp_path / "params.yaml")[1].tracking.wandb == "off"


def test_a_recipe_cannot_be_changed_once_read(h200):
    with pytest.raises(ValidationError):
        h200.phase1.steps = 1


def test_a_fingerprint_follows_the_content_and_not_the_order(h200):
    plain = h200.training.model_dump(mode="json")
    assert recipe_fingerprint(dict(reversed(plain.items()))) == recipe_fingerprint(h200.training)
    assert recipe_fingerprint(plain | {"clip_norm": 2.0}) != recipe_fingerprint(h200.training)


def test_an_unknown_key_is_refused_with_its_path(edited):
    path = edited("sample.phase1.warmup", 3)
    with refused(RecipeError, f"{path}: sample.phase1.warmup: unknown key", "correct its spelling"):
        load_recipe(path)


def test_an_unknown_key_at_the_top_is_refused(edited):
    path = edited("sampel", 3)
    with refused(RecipeError, f"{path}: sampel: unknown key", "one block a recipe would do"):
        load_recipe(path)


def test_a_missing_key_is_refused_with_its_path(edited):
    with refused(RecipeError, "sample.phase1.steps: is missing", "must be stated"):
        load_recipe(edited("sample.phase1.steps", ...))


@pytest.mark.parametrize(
    ("key", "value", "would_do"),
    [
        ("phase1.steps", "400", "valid integer"),
        ("phase1.steps", 400.0, "valid integer"),
        ("phase1.steps", True, "valid integer"),
        ("model.tie_embeddings", 0, "valid boolean"),
        ("training.masking_rate", 1.5, "less than or equal to 0.5"),
        ("training.compute_dtype", "float16", "'float32' or 'bfloat16'"),
        ("training.adam_betas", [0.9, "x"], "valid number"),
        ("finetuning.seeds", [], "at least 1 item"),
        ("tracking.wandb", True, "'off', 'offline' or 'online'"),
        ("model", None, "valid dictionary"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_what_was_found(edited, key, value, would_do):
    with refused(RecipeError, f"sample.{key}", would_do, "found"):
        load_recipe(edited(f"sample.{key}", value))


def test_a_sequence_longer_than_the_model_s_maximum_is_refused(edited):
    with refused(RecipeError, "phase2.sequence_length 1024", "max_position_embeddings 512", "512 or less would do"):
        load_recipe(edited("sample.phase2.sequence_length", 1024))


def test_a_task_longer_than_the_model_s_maximum_is_refused(edited):
    with refused(RecipeError, "finetuning.max_length 1024", "max_position_embeddings 512", "512 or less would do"):
        load_recipe(edited("sample.finetuning.max_length", 1024))


def test_two_vocabulary_sizes_are_refused(edited):
    with refused(RecipeError, "tokenizer.vocab_size 4000", "model.vocab_size 2048", "same number in both would do"):
        load_recipe(edited("sample.tokenizer.vocab_size", 4000))


def test_a_batch_that_does_not_divide_over_the_processes_is_refused_with_the_sizes_that_would_do(edited):
    path = edited("h200.phase1.global_batch", 2305)
    with refused(
        RecipeError, "phase1.global_batch 2305", "8 processes", "a batch of 2304 or 2312, or 1, 5 processes would do"
    ):
        load_recipe(path, "h200")


def test_a_batch_smaller_than_the_processes_is_not_told_that_none_would_do():
    with refused(ValueError, "global_batch 3", "a batch of 8, or 1, 3 processes would do"):
        divide_batch(3, 8, 4)


def test_a_batch_that_divides_is_made_of_the_largest_micro_batch_that_fits():
    for share in range(1, 60):
        for limit in range(1, 20):
            micro_batch, accumulation = divide_batch(4 * share, 4, limit)
            assert micro_batch * accumulation == share
            assert micro_batch <= limit
            assert not any(share % larger == 0 for larger in range(micro_batch + 1, min(limit, share) + 1))


def test_heads_that_do_not_divide_are_refused_with_a_size_that_would_do(edited):
    with refused(RecipeError, "sample.model", "hidden_size 130 over 4 heads", "128 would do"):
        load_recipe(edited("sample.model.hidden_size", 130))


def test_a_warm_up_as_long_as_the_phase_is_refused(edited):
    with refused(RecipeError, "sample.phase1", "warmup_steps 2000 leaves nothing of 2000 steps", "fewer would do"):
        load_recipe(edited("sample.phase1.warmup_steps", 2000))


def test_a_phase_that_starts_from_another_says_what_it_carries_over(edited):
    with refused(RecipeError, "sample.phase2", "`start_from` and `carry` go together"):
        load_recipe(edited("sample.phase2.carry", ...))


def test_an_imported_tokenizer_needs_a_path(edited):
    with refused(RecipeError, "h200.tokenizer", "`path` names the tokenizer.json to import"):
        load_recipe(edited("h200.tokenizer.path", None), "h200")


def test_a_missing_collection_is_refused_by_its_name(edited):
    with refused(RecipeError, "sample.data: order: folklor is unknown; ", "expected each name in `sources` once"):
        load_recipe(edited("sample.data.sources.folklor", ...))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda order: order[1:], "wikipedia is missing; "),
        (lambda order: [*order, "books"], "books is unknown; "),
        (lambda order: [*order, "news", "news"], "news stands 3 times; "),
        (lambda order: ["wikipedai", *order[1:]], "wikipedia is missing, wikipedai is unknown; "),
    ],
)
def test_an_order_that_does_not_name_every_collection_once_is_refused(edited, change, found):
    order = load_recipe(PARAMS, "sample")[1].data.order
    with refused(RecipeError, f"sample.data: order: {found}", "expected each name in `sources` once"):
        load_recipe(edited("sample.data.order", change(list(order))))


def test_an_order_is_a_list_of_names_and_the_recipe_s_own(edited, h200):
    with refused(RecipeError, "sample.data.order", "valid tuple", "found 'wikipedia'"):
        load_recipe(edited("sample.data.order", "wikipedia"))
    with refused(RecipeError, "sample.data.order: is missing"):
        load_recipe(edited("sample.data.order", ...))
    turned = tuple(reversed(h200.data.order))
    assert load_recipe(edited("h200.data.order", list(turned)), "h200")[1].data.order == turned


def test_a_recipe_may_have_other_collections_and_any_number_of_them(edited):
    path = edited("sample.data.sources", {"kitablar-2": {"path": "data/kitablar"}})
    document = yaml.safe_load(path.read_text())
    document["sample"]["data"]["order"] = ["kitablar-2"]
    path.write_text(yaml.safe_dump(document))
    assert load_recipe(path)[1].data.order == ("kitablar-2",)


@pytest.mark.parametrize("name", ["../news", "news.az", "a b", "", "şeir"])
def test_a_collection_s_name_that_is_no_folder_s_and_no_stage_s_is_refused(edited, name):
    with refused(RecipeError, f"sample.data: sources: {name!r}", "expected letters, digits, _ and - only"):
        load_recipe(edited("sample.data.sources", {name: {"path": "data/news"}}))


def test_a_recipe_without_a_collection_is_refused(edited):
    with refused(RecipeError, "sample.data.sources: ", "at least 1 item"):
        load_recipe(edited("sample.data.sources", {}))


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(edited):
    with refused(RecipeError, "recipe: found 'h100'", "one of sample, h200 would do"):
        load_recipe(edited("recipe", "h100"))


def test_a_missing_file_is_refused(tmp_path):
    with refused(RecipeError, f"{tmp_path}/params.yaml", "no such file", "project's folder"):
        load_recipe(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "found"), [(b"recipe: [sample\nsample: {", "not YAML"), (b"", "NoneType"), (b"# \xfe\n", "UTF-8")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, found):
    (tmp_path / "params.yaml").write_bytes(content)
    with refused(RecipeError, f"{tmp_path}/params.yaml", found):
        load_recipe(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ({}, "one of the two would do"),
        ({"path": "data/news", "dataset": "json"}, "one of the two would do"),
        ({"path": "data/news", "config": "az"}, "belong to a `dataset`"),
        ({"path": "data/news", "split": "test"}, "belong to a `dataset`"),
        ({"path": "data/news", "data_files": "*.json"}, "belong to a `dataset`"),
        ({"path": "data/news", "options": {"delimiter": ";"}}, "belong to a `dataset`"),
    ],
)
def test_a_source_is_local_files_or_a_data_set_and_not_both(edited, source, wrong):
    with refused(RecipeError, "sample.data.sources.news: ", wrong):
        load_recipe(edited("sample.data.sources.news", source))


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"path": "data/news", "sample_by": "word"}, "sample_by"),
        ({"path": 3}, "path"),
        ({"dataset": "json", "data_files": [1]}, "data_files"),
        ({"dataset": "json", "field": "text"}, "field"),
        ({"path": "data/news", "text_field": None}, "text_field"),
    ],
)
def test_a_wrong_value_in_a_source_is_refused_by_its_path(edited, source, key):
    with refused(RecipeError, f"sample.data.sources.news.{key}"):
        load_recipe(edited("sample.data.sources.news", source))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"path": "data/news", "revision": "2", "sample_by": "line", "id_field": None}, "data/news"),
        ({"dataset": "a/b", "config": "az", "split": "test", "revision": "abc"}, "a/b az"),
        ({"dataset": "json", "data_files": ["one", "two"]}, "json one"),
        ({"dataset": "csv", "data_files": "one", "options": {"delimiter": ";"}}, "csv one"),
    ],
)
def test_a_source_has_a_name_for_messages(edited, source, name):
    assert load_recipe(edited("sample.data.sources.news", source))[1].data.sources["news"].name == name


@pytest.mark.parametrize(
    "shares", [[0.5, 0.4], [0.5, 0.6], [0.125, 0.875], [0.333, 0.333, 0.334], [0.9, 0.095, 0.005], [0.99]]
)
def test_shares_of_a_mixture_that_are_no_whole_percents_or_do_not_sum_to_1_are_refused(edited, shares):
    mixture = [{"min_tokens": number, "share": share} for number, share in enumerate(shares)]
    with refused(RecipeError, "sample.phase2: mixture: shares ", "whole percents that sum to 1"):
        load_recipe(edited("sample.phase2.mixture", mixture))


@pytest.mark.parametrize("shares", [[1.0], [0.2, 0.4, 0.4], [0.07, 0.29, 0.57, 0.07], [0.01] * 100])
def test_shares_of_whole_percents_make_a_mixture(edited, shares):
    mixture = [{"min_tokens": number, "share": share} for number, share in enumerate(shares)]
    assert load_recipe(edited("sample.phase2.mixture", mixture))[1].phase2.pools == tuple(enumerate(shares))


def test_a_phase_without_a_mixture_is_one_pool_of_all_documents(h200):
    assert h200.phase1.pools == ((0, 1.0),)
    assert h200.phase2.pools == ((0, 0.2), (1024, 0.4), (2048, 0.4))


@pytest.mark.parametrize(
    ("mixture", "where"),
    [
        ([], "mixture: "),
        ([{"min_tokens": 0, "share": 1.5}], "mixture.0.share: "),
        ([{"min_tokens": 0, "share": 1.0}, {"min_tokens": 9, "share": 0.0}], "mixture.1.share: "),
        ([{"min_tokens": -1, "share": 1.0}], "mixture.0.min_tokens: "),
        ([{"min_tokens": 1.5, "share": 1.0}], "mixture.0.min_tokens: "),
        ([{"share": 1.0}], "mixture.0.min_tokens: is missing"),
        ([{"min_tokens": 0, "share": 1.0, "weight": 1}], "mixture.0.weight: unknown key"),
        ({"min_tokens": 0, "share": 1.0}, "mixture: "),
    ],
)
def test_a_wrong_value_in_a_mixture_is_refused_by_its_path(edited, mixture, where):
    with refused(RecipeError, f"sample.phase2.{where}"):
        load_recipe(edited("sample.phase2.mixture", mixture))


@pytest.mark.parametrize("size", [511, 256, 1])
def test_a_unigram_vocabulary_too_small_for_the_bytes_is_refused(edited, size):
    path = edited("sample.tokenizer", {"algorithm": "unigram", "vocab_size": size})
    with refused(RecipeError, f"sample.tokenizer: vocab_size {size}", "512 would do"):
        load_recipe(path)


def test_an_algorithm_that_trains_takes_no_path(edited):
    with refused(RecipeError, "sample.tokenizer: `path`"):
        load_recipe(edited("sample.tokenizer.path", "tokenizer.json"))


@pytest.mark.parametrize("share", [-0.01, 1.0, 1.5, "1%"])
def test_a_share_of_malformed_records_outside_0_to_1_is_refused(edited, share):
    with refused(RecipeError, "sample.data.cleaning.max_malformed: ", "found"):
        load_recipe(edited("sample.data.cleaning.max_malformed", share))


@pytest.mark.parametrize("share", [0.0, 0.999])
def test_a_share_of_malformed_records_below_1_will_do(edited, share):
    assert load_recipe(edited("sample.data.cleaning.max_malformed", share))[1].data.cleaning.max_malformed == share
