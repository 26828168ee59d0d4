import copy
import functools
import json
import re
from operator import attrgetter
from pathlib import Path

import pytest
from dvc.utils.serialize import modify_yaml
from pydantic import ValidationError
from refusals import refused
from toy import toy_recipe

from azneobert.course import divide_batch
from azneobert.dotted import flatten
from azneobert.errors import RecipeError
from azneobert.model.size import count_parameters
from azneobert.recipe import PHASES, FileSource, HubSource, load_recipe, recipe_fingerprint
from azneobert.yaml_files import read_yaml

RECIPES = Path(__file__).parents[1] / "recipes"


@functools.cache
def content(recipe):
    return read_yaml(RECIPES / f"{recipe}.yaml")


@pytest.fixture
def edited(tmp_path):
    """A recipe of the project with one key replaced (or removed, by ...), as params.yaml of another folder."""

    def edit(dotted, value, recipe="sample"):
        document = copy.deepcopy(content(recipe))
        *parents, last = dotted.split(".")
        block = document
        for key in parents:
            block = block[key]
        if value is ...:
            del block[last]
        else:
            block[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(json.dumps(document, ensure_ascii=False))  # which is YAML, and written in no time
        return path

    return edit


@pytest.fixture(scope="module")
def h200():
    return load_recipe(RECIPES / "h200.yaml")


@pytest.mark.parametrize("name", ["sample", "h200", "legal", "legal-28x768"])
def test_every_recipe_loads(name):
    assert load_recipe(RECIPES / f"{name}.yaml").name == name


def test_a_fresh_clone_runs_the_sample():
    assert load_recipe(RECIPES.parent / "params.yaml") == load_recipe(RECIPES / "sample.yaml")


@pytest.mark.parametrize("name", ["sample", "h200", "legal", "legal-28x768", "template"])
def test_a_recipe_is_written_as_dvc_writes_it_back(name, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_bytes((RECIPES / f"{name}.yaml").read_bytes())
    with modify_yaml(file) as content:  # what `dvc exp run -S` does
        content["seed"] = 7
    before, after = (text.splitlines() for text in ((RECIPES / f"{name}.yaml").read_text(), file.read_text()))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [line.split("#")[0].split() for line in changed] == [["seed:", "7"]]


@pytest.mark.parametrize("name", ["sample", "legal"])
def test_no_other_recipe_registers_under_the_published_model_s_name(name, h200):
    assert load_recipe(RECIPES / f"{name}.yaml").registry.name != h200.registry.name


def test_the_small_model_has_the_published_proportions_and_no_more_than_five_million_parameters(h200):
    small, published = load_recipe(RECIPES / "legal.yaml").model, h200.model
    assert count_parameters(small) == 4_672_320
    for key in ("num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(small, key) / small.hidden_size == getattr(published, key) / published.hidden_size


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


def test_a_word_that_yaml_1_1_reads_as_false_is_a_word(h200):
    assert h200.tracking.wandb == "off"  # DVC takes the quotes away


@pytest.mark.parametrize("rate", ["5e-5", "5e-05", "5E-5", "0.00005", "5.0e-5"])
def test_a_number_with_an_exponent_is_a_number_in_any_spelling(tmp_path, rate):
    text = (RECIPES / "sample.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("5.0e-4\n  mixture: []", f"{rate}\n  mixture: []"))
    assert load_recipe(tmp_path / "params.yaml").phase1.peak_learning_rate == 5e-5


def test_a_recipe_cannot_be_changed_once_read(h200):
    with pytest.raises(ValidationError):
        h200.phase1.steps = 1


def test_a_fingerprint_follows_the_content_and_not_the_order(h200):
    plain = h200.training.model_dump(mode="json")
    assert recipe_fingerprint(dict(reversed(plain.items()))) == recipe_fingerprint(h200.training)
    assert recipe_fingerprint(plain | {"clip_norm": 2.0}) != recipe_fingerprint(h200.training)


def test_an_unknown_key_is_refused_with_its_path(edited):
    path = edited("phase1.warmup", 3)
    with refused(RecipeError, f"{path}: phase1.warmup: unknown key", "correct its spelling"):
        load_recipe(path)


def test_an_unknown_key_at_the_top_is_refused(edited):
    path = edited("sampel", 3)
    with refused(RecipeError, f"{path}: sampel: unknown key"):
        load_recipe(path)


def test_fp8_is_optional_and_refused_beside_float32(edited, h200):
    assert h200.training.fp8 is False
    with refused(RecipeError, "training", "fp8: true needs compute_dtype: bfloat16, found float32"):
        load_recipe(edited("training.fp8", True))


@pytest.mark.parametrize(("key", "slower"), [("blocks", "torch"), ("attention", "reference")])
def test_fp8_is_refused_where_the_recipe_asks_for_other_blocks_than_fused_ones(key, slower):
    fast = toy_recipe({"training": {"compute_dtype": "bfloat16", "fp8": True}, "runtime": {key: "auto"}})
    assert fast.training.fp8
    found = f"training.fp8: true needs fused blocks, found runtime.{key}: {slower}; use auto"
    with pytest.raises(ValidationError, match=re.escape(found)):
        toy_recipe({"training": {"compute_dtype": "bfloat16", "fp8": True}, "runtime": {key: slower}})


def test_a_missing_key_is_refused_with_its_path(edited):
    with refused(RecipeError, "phase1.steps: is missing", "must be stated"):
        load_recipe(edited("phase1.steps", ...))


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
    with refused(RecipeError, f"{key}", would_do, "found"):
        load_recipe(edited(f"{key}", value))


def test_a_sequence_longer_than_the_model_s_maximum_is_refused(edited):
    with refused(RecipeError, "phase2.sequence_length 1024", "max_position_embeddings 512", "use 512 or less"):
        load_recipe(edited("phase2.sequence_length", 1024))


def test_a_task_longer_than_the_model_s_maximum_is_refused(edited):
    with refused(RecipeError, "finetuning.max_length 1024", "max_position_embeddings 512", "use 512 or less"):
        load_recipe(edited("finetuning.max_length", 1024))


def test_two_vocabulary_sizes_are_refused(edited):
    with refused(RecipeError, "tokenizer.vocab_size 4000", "model.vocab_size 2048", "use the same number in both"):
        load_recipe(edited("tokenizer.vocab_size", 4000))


def test_a_batch_that_does_not_divide_over_the_processes_is_refused_with_the_sizes_that_would_do(edited):
    path = edited("phase1.global_batch", 2305, "h200")
    with refused(
        RecipeError, "phase1.global_batch 2305", "8 processes", "use a batch of 2304 or 2312, or 1, 5 processes"
    ):
        load_recipe(path)


def test_a_batch_smaller_than_the_processes_is_not_told_that_none_would_do():
    with refused(ValueError, "global_batch 3", "use a batch of 8, or 1, 3 processes"):
        divide_batch(3, 8, 4)


def test_a_batch_that_divides_is_made_of_the_largest_micro_batch_that_fits():
    for share in range(1, 60):
        for limit in range(1, 20):
            micro_batch, accumulation = divide_batch(4 * share, 4, limit)
            assert micro_batch * accumulation == share
            assert micro_batch <= limit
            assert not any(share % larger == 0 for larger in range(micro_batch + 1, min(limit, share) + 1))


def test_heads_that_do_not_divide_are_refused_with_a_size_that_would_do(edited):
    with refused(RecipeError, "model", "hidden_size 130 over 4 heads", "use 128"):
        load_recipe(edited("model.hidden_size", 130))


def test_a_warm_up_as_long_as_the_phase_is_refused(edited):
    with refused(RecipeError, "phase1", "warmup_steps 2000 leaves nothing of 2000 steps", "use fewer"):
        load_recipe(edited("phase1.warmup_steps", 2000))


def test_a_phase_that_starts_from_another_says_what_it_carries_over(edited):
    with refused(RecipeError, "phase2", "`start_from` and `carry` go together"):
        load_recipe(edited("phase2.carry", ...))


@pytest.mark.parametrize(
    ("trained", "imported", "found"),
    [
        ({}, {}, "nothing"),
        ({"bpe": {}}, {"ours": {"path": "tokenizer.json"}}, "bpe and ours"),
        ({"bpe": {}, "unigram": {}}, {}, "bpe and unigram"),
    ],
)
def test_a_tokenizer_is_trained_or_imported_and_in_one_way(edited, trained, imported, found):
    settings = {"vocab_size": 2048, "trained": trained, "imported": imported}
    with refused(RecipeError, f"tokenizer: {found} under trained and imported; expected one entry"):
        load_recipe(edited("tokenizer", settings))


@pytest.mark.parametrize("which", ["trained", "imported"])
def test_both_ways_to_a_tokenizer_are_stated_since_dvc_makes_stages_of_them(edited, which):
    with refused(RecipeError, f"tokenizer.{which}: is missing"):
        load_recipe(edited(f"tokenizer.{which}", ...))


def test_a_missing_collection_is_refused_by_its_name(edited):
    with refused(RecipeError, "data: order: 'folklor' is unknown; ", "expected each name of files and hub once"):
        load_recipe(edited("data.files.folklor", ...))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda order: order[1:], "wikipedia is missing; "),
        (lambda order: [*order, "books"], "'books' is unknown; "),
        (lambda order: [*order, "news", "news"], "news stands 3 times; "),
        (lambda order: ["wikipedai", *order[1:]], "wikipedia is missing, 'wikipedai' is unknown; "),
    ],
)
def test_an_order_that_does_not_name_every_collection_once_is_refused(edited, change, found):
    order = load_recipe(RECIPES / "sample.yaml").data.order
    with refused(RecipeError, f"data: order: {found}", "expected each name of files and hub once"):
        load_recipe(edited("data.order", change(list(order))))


def test_an_order_is_a_list_of_names_and_the_recipe_s_own(edited, h200):
    with refused(RecipeError, "data.order", "valid tuple", "found 'wikipedia'"):
        load_recipe(edited("data.order", "wikipedia"))
    with refused(RecipeError, "data.order: is missing"):
        load_recipe(edited("data.order", ...))
    turned = tuple(reversed(h200.data.order))
    assert load_recipe(edited("data.order", list(turned), "h200")).data.order == turned


def data_of(files, hub=None, order=None):
    """The block `data` with other collections."""
    cleaning = content("sample")["data"]["cleaning"]
    hub = hub or {}
    return {"files": files, "hub": hub, "order": [*files, *hub] if order is None else order, "cleaning": cleaning}


def test_a_recipe_may_have_other_collections_and_any_number_of_them(edited):
    data = data_of({"kitablar-2": {"path": "corpus/kitablar"}}, {"veb": {"dataset": "a/b"}}, ["veb", "kitablar-2"])
    recipe = load_recipe(edited("data", data))
    assert recipe.data.order == ("veb", "kitablar-2")
    assert list(recipe.data.sources) == ["veb", "kitablar-2"]


NO_NAMES = ["../news", "news.az", "a b", "", "şeir", "News", "2news", "-news", '"; touch PWNED', "a@b", "a/b", "a" * 65]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("where", ["data.files", "data.hub", "finetuning.files", "tokenizer.imported"])
def test_a_name_that_a_shell_a_stage_or_a_folder_would_take_for_something_else_is_refused(edited, name, where):
    value = {name: {"dataset": "a/b"} if where == "data.hub" else {"path": "data/news"}}
    with refused(RecipeError, f"{where}.", "is no name here; expected lower-case letters"):
        load_recipe(edited(where, value))


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_recipe_s_name_is_one_of_that_kind_too(edited, name):
    with refused(RecipeError, "name: ", "is no name here; expected lower-case letters"):
        load_recipe(edited("name", name))


def test_a_number_as_a_collection_s_name_is_refused(tmp_path):
    text = (RECIPES / "sample.yaml").read_text(encoding="utf-8").replace("    news:\n", "    2023:\n")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with refused(RecipeError, "data.files: the key 2023 is no text"):
        load_recipe(tmp_path / "params.yaml")


def test_a_recipe_without_a_collection_is_refused(edited):
    with refused(RecipeError, "data: no collection; expected one at least under files (local) or hub (streamed)"):
        load_recipe(edited("data", data_of({})))


@pytest.mark.parametrize("which", ["files", "hub"])
@pytest.mark.parametrize("value", [..., None])
def test_both_maps_of_collections_are_written_since_dvc_makes_stages_of_them(edited, which, value):
    with refused(RecipeError, f"data.{which}: "):
        load_recipe(edited(f"data.{which}", value))


def test_one_name_under_files_and_hub_is_refused(edited):
    data = data_of({"news": {"path": "data/news"}}, {"news": {"dataset": "a/b"}})
    with refused(RecipeError, "data: news stands under files and under hub; use two names"):
        load_recipe(edited("data", data))


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("data/news", "data/news", "have one path"),
        ("data/news", "./data//news/", "have one path"),
        ("data/news", "data/x/../news", "have one path"),
        ("data/news/old", "data/news", "lie one in the other"),
        ("data/news", "data/news/a.jsonl", "lie one in the other"),
    ],
)
def test_two_collections_of_the_same_files_are_refused(edited, one, other, how):
    with refused(RecipeError, "data: files: ", how, "expected each file in one collection"):
        load_recipe(edited("data", data_of({"a": {"path": one}, "b": {"path": other}})))


def test_two_collections_beside_each_other_are_none_in_the_other(edited):
    load_recipe(edited("data", data_of({"a": {"path": "data/news"}, "b": {"path": "data/news2"}})))


def test_a_missing_file_is_refused(tmp_path):
    with refused(RecipeError, f"{tmp_path}/params.yaml", "no such file", "project's folder"):
        load_recipe(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "found"), [(b"seed: [1\nsample: {", "not YAML"), (b"", "holds nothing"), (b"# \xfe\n", "UTF-8")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, found):
    (tmp_path / "params.yaml").write_bytes(content)
    with refused(RecipeError, f"{tmp_path}/params.yaml", found):
        load_recipe(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("where", "source", "wrong"),
    [
        ("files", {"path": "data/news", "dataset": "json"}, "`dataset` belongs under data.hub"),
        ("files", {"dataset": "json"}, "`dataset` belongs under data.hub"),
        ("hub", {"path": "data/news"}, "`path` belongs under data.files"),
        ("hub", {"path": "data/news", "dataset": "json"}, "`path` belongs under data.files"),
    ],
)
def test_a_source_is_local_files_or_a_data_set_and_not_both(edited, where, source, wrong):
    with refused(RecipeError, f"data.{where}.news: ", wrong):
        load_recipe(edited(f"data.{where}", {"news": source}))


@pytest.mark.parametrize(
    ("where", "source", "key"),
    [
        ("files", {"path": "data/news", "sample_by": "word"}, "sample_by"),
        ("files", {"path": 3}, "path"),
        ("files", {"path": ""}, "path"),
        ("files", {}, "path"),
        ("files", {"path": "data/news", "split": "test"}, "split"),
        ("files", {"path": "data/news", "text_field": None}, "text_field"),
        ("hub", {"dataset": "json", "data_files": [1]}, "data_files"),
        ("hub", {"dataset": "json", "field": "text"}, "field"),
        ("hub", {"dataset": "text", "sample_by": "line"}, "sample_by"),
    ],
)
def test_a_wrong_value_in_a_source_is_refused_by_its_path(edited, where, source, key):
    with refused(RecipeError, f"data.{where}.news.{key}"):
        load_recipe(edited(f"data.{where}", {"news": source}))


def test_a_file_of_before_is_refused_with_the_command_that_mends_it(tmp_path):
    (tmp_path / "params.yaml").write_text("recipe: sample\nsample:\n  seed: 1\n")
    with refused(RecipeError, "params.yaml: holds a block a recipe, as before; `azneobert recipe migrate`"):
        load_recipe(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (FileSource(path="data/news", sample_by="line", id_field=None), "data/news"),
        (HubSource(dataset="a/b", config="az", split="test", revision="abc"), "a/b az"),
        (HubSource(dataset="json", data_files=("one", "two")), "json one"),
        (HubSource(dataset="csv", data_files="one", options={"delimiter": ";"}), "csv one"),
    ],
)
def test_a_source_has_a_name_for_messages(source, name):
    assert source.name == name


NUMBERS = [
    ("seed", int),
    *((f"model.{key}", int) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")),
    *((f"model.{key}", int) for key in ("intermediate_size", "max_position_embeddings")),
    *((f"model.{key}", float) for key in ("rope_theta", "rms_norm_eps", "initializer_range")),
    *((f"training.{key}", float) for key in ("masking_rate", "adam_eps", "weight_decay", "clip_norm")),
    *((f"{phase}.{key}", int) for phase in PHASES for key in ("sequence_length", "global_batch", "steps")),
    *((f"{phase}.warmup_steps", int) for phase in PHASES),
    *((f"{phase}.peak_learning_rate", float) for phase in PHASES),
    *((f"runtime.{key}", int) for key in ("processes", "max_micro_batch", "workers", "log_every", "checkpoint_every")),
    ("runtime.keep_checkpoints", int),
    ("runtime.stall_seconds", int),
    ("runtime.keep_every", int),
    ("guards.stop_after", int),
    ("guards.spike_score", float),
    ("guards.spike_window", int),
    ("guards.rewinds", int),
    ("guards.repeat_every", int),
    *((f"evaluation.{key}", int) for key in ("every", "max_rows_per_collection")),
    *((f"data.cleaning.{key}", float) for key in ("max_malformed", "validation_fraction")),
    ("data.cleaning.min_words", int),
    ("tokenizer.vocab_size", int),
    *((f"finetuning.{key}", int) for key in ("epochs", "patience", "batch_size", "max_length")),
    ("finetuning.learning_rate", float),
]


@pytest.mark.parametrize(("key", "kind"), NUMBERS)
def test_every_number_is_finite_and_of_this_world(edited, key, kind):
    absurd = [-1, 10**30] if kind is int else [-1.0, float("inf"), float("-inf"), float("nan")]
    for value in absurd:
        with refused(RecipeError, f"{key}: ", "found"):
            load_recipe(edited(key, value))


@pytest.mark.parametrize("value", [0, -1, (1 << 20) + 1, True, 1.5, "8", "automatic", None])
def test_a_micro_batch_is_a_number_of_rows_or_auto(edited, value):
    with refused(RecipeError, "runtime.max_micro_batch: expected a number of rows from 1 to 1,048,576, or auto, found"):
        load_recipe(edited("runtime.max_micro_batch", value))


@pytest.mark.parametrize("value", [1, 48, 1 << 20, "auto"])
def test_a_micro_batch_is_taken_as_it_is_stated(edited, value):
    assert load_recipe(edited("runtime.max_micro_batch", value)).runtime.max_micro_batch == value


def test_no_number_of_the_sample_was_forgotten():
    known = {key for key, _ in NUMBERS}
    apart = {"training.adam_betas", "finetuning.seeds"}
    found = {
        key
        for key, value in flatten(content("sample")).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert {key for key in found if not re.search(r"\.\d+|mixture", key)} - apart <= known


@pytest.mark.parametrize(
    ("key", "value"), [("runtime.processes", 999_999_999), ("model.rope_theta", -1.0), ("model.rope_theta", 0.0)]
)
def test_an_absurd_value_is_refused(edited, key, value):
    with refused(RecipeError, f"{key}: ", f"found {value}"):
        load_recipe(edited(key, value))


@pytest.mark.parametrize(
    "shares", [[0.5, 0.4], [0.5, 0.6], [0.125, 0.875], [0.333, 0.333, 0.334], [0.9, 0.095, 0.005], [0.99]]
)
def test_shares_of_a_mixture_that_are_no_whole_percents_or_do_not_sum_to_1_are_refused(edited, shares):
    mixture = [{"min_tokens": number, "share": share} for number, share in enumerate(shares)]
    with refused(RecipeError, "phase2: mixture: shares ", "whole percents that sum to 1"):
        load_recipe(edited("phase2.mixture", mixture))


@pytest.mark.parametrize("shares", [[1.0], [0.2, 0.4, 0.4], [0.07, 0.29, 0.57, 0.07], [0.01] * 100])
def test_shares_of_whole_percents_make_a_mixture(edited, shares):
    mixture = [{"min_tokens": number, "share": share} for number, share in enumerate(shares)]
    assert load_recipe(edited("phase2.mixture", mixture)).phase2.pools == tuple(enumerate(shares))


def test_an_empty_mixture_is_none(edited):
    assert load_recipe(edited("phase2.mixture", [])).phase2 == load_recipe(edited("phase2.mixture", None)).phase2


def test_a_phase_without_a_mixture_is_one_pool_of_all_documents(h200):
    assert h200.phase1.pools == ((0, 1.0),)
    assert h200.phase2.pools == ((0, 0.2), (1024, 0.4), (2048, 0.4))


@pytest.mark.parametrize(
    ("mixture", "where"),
    [
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
    with refused(RecipeError, f"phase2.{where}"):
        load_recipe(edited("phase2.mixture", mixture))


@pytest.mark.parametrize("size", [511, 256, 1])
def test_a_unigram_vocabulary_too_small_for_the_bytes_is_refused(edited, size):
    path = edited("tokenizer", {"trained": {"unigram": {}}, "imported": {}, "vocab_size": size})
    with refused(RecipeError, f"tokenizer: vocab_size {size}", "use 512"):
        load_recipe(path)


def test_an_algorithm_that_nobody_knows_is_refused_with_those_that_there_are(edited):
    settings = {"trained": {"sentencepiece": {}}, "imported": {}, "vocab_size": 2048}
    with refused(RecipeError, "tokenizer.trained.sentencepiece: ", "'wordpiece', 'bpe' or 'unigram'"):
        load_recipe(edited("tokenizer", settings))


@pytest.mark.parametrize("share", [-0.01, 1.0, 1.5, "1%"])
def test_a_share_of_malformed_records_outside_0_to_1_is_refused(edited, share):
    with refused(RecipeError, "data.cleaning.max_malformed: ", "found"):
        load_recipe(edited("data.cleaning.max_malformed", share))


@pytest.mark.parametrize("share", [0.0, 0.999])
def test_a_share_of_malformed_records_below_1_will_do(edited, share):
    assert load_recipe(edited("data.cleaning.max_malformed", share)).data.cleaning.max_malformed == share
