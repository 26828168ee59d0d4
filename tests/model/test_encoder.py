"""The encoder computes what transformers' EuroBERT computes, keeps documents apart, and starts as NeoBERT does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from toy import ROOT, lively, packed, random_ids, toy_recipe

from azneobert.model.attention import Attention, reference
from azneobert.model.backend import Backend
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.model.size import count_parameters, flops_per_token, swiglu_size
from azneobert.recipe import Model, load_recipe


def toy_model(**overrides: object) -> Model:
    return toy_recipe({"model": overrides}).model


def test_two_documents_in_one_row_have_the_hidden_states_they_have_alone() -> None:
    model = lively(toy_model())
    one, other = random_ids(13, 1), random_ids(19, 2)
    together = model.encoder(*packed([one, other], 32))
    torch.testing.assert_close(together[:13], model.encoder(*packed([one], 13)), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[13:], model.encoder(*packed([other], 19)), atol=1e-5, rtol=0)


def test_documents_in_two_rows_have_the_hidden_states_they_have_alone() -> None:
    model = lively(toy_model())
    documents = [random_ids(n, n) for n in (10, 22, 32)]  # two in the first row, one that fills the second
    together = model.encoder(*packed(documents, 32))
    for found, document in zip(together.split([10, 22, 32]), documents, strict=True):
        torch.testing.assert_close(found, model.encoder(*packed([document], 32)), atol=1e-5, rtol=0)


def test_repeated_entries_at_the_end_of_cu_seqlens_change_nothing() -> None:
    model = lively(toy_model())
    ids, positions, starts, row = packed([random_ids(12, 1), random_ids(20, 2)], 32)
    padded = torch.cat([starts, torch.full((5,), 32, dtype=torch.int32)])
    assert torch.equal(model.encoder(ids, positions, padded, row), model.encoder(ids, positions, starts, row))


def test_the_order_of_a_documents_tokens_matters() -> None:
    model = lively(toy_model())
    document = random_ids(16, 3)
    forwards = model.encoder(*packed([document], 16)).mean(0)
    backwards = model.encoder(*packed([document.flip(0)], 16)).mean(0)
    assert (forwards - backwards).abs().max() > 1e-2


def test_no_gradient_of_one_documents_loss_reaches_another_document() -> None:
    model = lively(toy_model())
    # The two share no token, so a gradient on the other's embeddings could only have come through attention.
    one, other = torch.arange(10, 20), torch.arange(100, 122)
    ids, positions, starts, row = packed([one, other], 32)
    model.encoder(ids, positions, starts, row)[: len(one)].square().sum().backward()
    gradient = model.encoder.embedding.weight.grad
    assert gradient is not None
    assert gradient[one].any(dim=1).all()
    assert not gradient[other].any()


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_at_initialisation_is_the_logarithm_of_the_vocabulary(tied: bool) -> None:
    config = toy_model(tie_embeddings=tied)
    model = build_model(config, seed=3)
    rows = [random_ids(32, seed) for seed in range(32)]
    targets = random_ids(32 * 32, 99)
    logits = model(*packed(rows, 32), torch.arange(32 * 32))
    assert F.cross_entropy(logits, targets).item() == pytest.approx(math.log(config.vocab_size), abs=0.15)


def test_the_head_sees_masked_tokens_only_and_in_their_order() -> None:
    model = lively(toy_model())
    inputs = packed([random_ids(32, 1)], 32)
    everywhere = model(*inputs, torch.arange(32))
    chosen = torch.tensor([30, 2, 17])
    torch.testing.assert_close(model(*inputs, chosen), everywhere[chosen], atol=1e-6, rtol=1e-6)
    assert everywhere.shape == (32, 300)


@pytest.mark.parametrize("tied", [False, True])
def test_the_count_of_parameters_is_the_number_that_the_model_has(tied: bool) -> None:
    config = toy_model(tie_embeddings=tied)
    assert count_parameters(config) == sum(p.numel() for p in build_model(config, 0).parameters())


@pytest.mark.parametrize(("tied", "count"), [(False, 296_528_640), (True, 247_376_640)])
def test_the_published_model_has_the_published_number_of_parameters(tied: bool, count: int) -> None:
    config = load_recipe(ROOT / "recipes" / "h200.yaml").model.model_copy(update={"tie_embeddings": tied})
    assert count_parameters(config) == count
    with torch.device("meta"):
        model = MaskedLM(config)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("plain", "gated"), [(3072, 2048), (512, 344), (64, 48), (12, 8)])
def test_swiglu_is_two_thirds_as_wide_rounded_up_to_eight(plain: int, gated: int) -> None:
    assert swiglu_size(plain) == gated


def test_initial_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    config = toy_model()
    torch.manual_seed(1)
    first = build_model(config, seed=5).state_dict()
    torch.manual_seed(2)
    torch.rand(100)
    second = build_model(config, seed=5, compute_dtype=torch.bfloat16).state_dict()
    other = build_model(config, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[n], other[n]) for n in first if first[n].ndim >= 2)


def test_matrices_start_uniform_within_the_range_and_norms_at_one() -> None:
    config = toy_model()
    for name, parameter in build_model(config, 0).named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.abs().max() <= config.initializer_range, name
            assert parameter.std().item() == pytest.approx(config.initializer_range / math.sqrt(3), rel=0.1), name


def test_a_tied_head_is_the_embedding_itself() -> None:
    model = build_model(toy_model(tie_embeddings=True), 0)
    assert model.head.weight is model.encoder.embedding.weight


def test_parameters_stay_fp32_under_bfloat16_compute_and_gradients_too() -> None:
    config = toy_model()
    model = build_model(config, 0, torch.bfloat16)
    inputs = packed([random_ids(32, 1)], 32)
    assert model.encoder(*inputs).dtype == torch.bfloat16
    logits = model(*inputs, torch.arange(6))
    assert logits.dtype == torch.float32
    logits.logsumexp(-1).sum().backward()
    assert {(p.dtype, p.grad.dtype if p.grad is not None else None) for p in model.parameters()} == {
        (torch.float32, torch.float32)
    }
    exact = build_model(config, 0)(*inputs, torch.arange(6))
    torch.testing.assert_close(logits, exact, atol=0.02, rtol=0.02)


def test_the_model_calls_the_attention_that_it_was_given() -> None:
    calls = []

    def counted(*arguments: object) -> torch.Tensor:
        calls.append(arguments[-1])
        return reference(*arguments)  # type: ignore[arg-type]

    kernel: Attention = counted
    config = toy_model()
    build_model(config, 0, backend=Backend(attention=kernel)).encoder(*packed([random_ids(32, 1)], 32))
    assert calls == [32] * config.num_hidden_layers


def test_flops_are_six_a_weight_that_a_token_meets_and_twelve_a_score() -> None:
    config = toy_model()
    weights = sum(
        p.numel() for name, p in build_model(config, 0).named_parameters() if "blocks" in name and p.ndim == 2
    )
    head = 0.2 * config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * 12 * 32 * config.hidden_size
    assert flops_per_token(config, 32, 0.2) == pytest.approx(6 * (weights + head) + attention)
