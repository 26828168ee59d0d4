"""Which tensor an optimizer's number stands for: the truth of a live optimizer, or a refusal; never a wrong name."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import permutations, product

import pytest
import torch
from torch import nn

from azneobert.checkpoint.parameter_order import Shape, check_names, match_names, name_parameters
from azneobert.errors import CheckpointError

Groups = list[list[Shape | None]]


class Block(nn.Module):
    """NeoBERT's: two norms have one shape, so that the shapes do not tell them apart."""

    def __init__(self, norms: tuple[str, ...]):
        super().__init__()
        self.qkv, self.wo = nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)
        self.ffn = nn.ModuleDict({"w12": nn.Linear(8, 42, bias=False), "w3": nn.Linear(21, 8, bias=False)})
        for name in norms:
            setattr(self, name, nn.RMSNorm(8))


def neobert(*norms: str) -> nn.Module:
    return nn.ModuleDict({"embedding": nn.Embedding(50, 8), "layers": nn.ModuleList(Block(norms) for _ in range(28))})


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "intermediate_size": 32, "max_position_embeddings": 20, "vocab_size": 50}
    return BertForMaskedLM(BertConfig(num_hidden_layers=24, num_attention_heads=2, **sizes))


def sequential() -> nn.Module:
    """Eleven modules: as text, 10 sorts before 2."""
    return nn.Sequential(nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(9)), nn.LayerNorm(8))


def perceptron() -> nn.Module:
    """Its names do not sort in its order, which the shapes tell."""
    return nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 3), "again": nn.Linear(3, 5, bias=False)})


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 12)


def attention() -> nn.Module:
    return nn.ModuleDict({"up": nn.Linear(3, 8), "mix": nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=5, vdim=5)})


def shapes(net: nn.Module) -> dict[str, Shape]:
    return {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}


def live_optimizer(net: nn.Module, groups: int) -> tuple[list[list[str]], Groups]:
    """The names and the shapes of what a torch optimizer was given, from the optimizer itself."""
    sides = [list(net.parameters())]
    if groups == 2:
        sides = [[parameter for parameter in sides[0] if (parameter.ndim > 1) is decayed] for decayed in (True, False)]
    optimizer = torch.optim.AdamW([{"params": side} for side in sides])
    names = {parameter: name for name, parameter in net.named_parameters()}
    held = [group["params"] for group in optimizer.param_groups]
    return [[names[p] for p in group] for group in held], [[tuple(p.shape) for p in group] for group in held]


def by_name(tensors: dict[str, Shape]) -> dict[str, Shape]:
    """The order in which safetensors gives them."""
    return dict(sorted(tensors.items()))


NETS = [neobert, bert, sequential, perceptron, transformer, attention]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("build", [lambda: neobert("attention_norm", "ffn_norm"), *NETS])
def test_in_the_models_order_and_by_given_names_every_network_is_named_rightly(
    build: Callable[[], nn.Module], groups: int
) -> None:
    net = build()
    truth, held = live_optimizer(net, groups)
    assert name_parameters(held, shapes(net), in_order=True) == truth
    assert match_names(held, by_name(shapes(net)), list(shapes(net))) == truth


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("build", [neobert, sequential, perceptron, attention])
def test_networks_whose_shapes_tell_are_named_rightly_though_the_order_was_lost(
    build: Callable[[], nn.Module], groups: int
) -> None:
    net = build()
    truth, held = live_optimizer(net, groups)
    assert name_parameters(held, by_name(shapes(net)), in_order=False) == truth


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("build", "swapped"),
    [
        (lambda: neobert("attention_norm", "ffn_norm"), "attention_norm.weight and layers.0.ffn_norm.weight"),
        (bert, "bert.encoder.layer"),
    ],
)
def test_networks_with_exchangeable_parts_are_refused_with_a_pair_of_names(
    build: Callable[[], nn.Module], swapped: str, groups: int
) -> None:
    net = build()
    _, held = live_optimizer(net, groups)
    with pytest.raises(CheckpointError, match="could be swapped; use --parameter-names FILE") as refused:
        name_parameters(held, by_name(shapes(net)), in_order=False)
    assert swapped in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_torch_transformer_is_named_by_the_numbers_of_its_layers_parts() -> None:
    net = transformer()
    truth, held = live_optimizer(net, 1)
    assert name_parameters(held, by_name(shapes(net)), in_order=False) == truth


def test_given_names_may_leave_out_or_hold_what_is_frozen() -> None:
    net = sequential()
    net[0].requires_grad_(False)  # type: ignore[operator]
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    held: Groups = [[shapes(net)[name] for name in trained]]
    assert match_names(held, by_name(shapes(net)), trained) == [trained]
    net[4].requires_grad_(False)  # type: ignore[operator]
    trained = [name for name in trained if not name.startswith("4.")]
    held = [[shapes(net)[name] for name in trained]]
    with pytest.raises(CheckpointError, match="name only what the optimizer holds"):
        match_names(held, by_name(shapes(net)), list(shapes(net)))
    assert match_names(held, by_name(shapes(net)), trained) == [trained]


def test_a_frozen_tensor_of_a_shape_of_its_own_is_left_out() -> None:
    net = perceptron()
    truth = [[name for name in shapes(net) if name != "down.weight"]]
    held: Groups = [[shapes(net)[name] for name in truth[0]]]
    for tensors, in_order in ((shapes(net), True), (by_name(shapes(net)), False)):
        assert name_parameters(held, tensors, in_order=in_order) == truth


def test_parameters_without_state_are_named_by_their_neighbours() -> None:
    net = perceptron()
    truth, held = live_optimizer(net, 1)
    held[0][2] = held[0][3] = None
    for tensors, in_order in ((shapes(net), True), (by_name(shapes(net)), False)):
        assert name_parameters(held, tensors, in_order=in_order) == truth


def test_an_unknown_shape_that_could_be_in_either_group_is_refused() -> None:
    held: Groups = [[(4, 3), None], [(4,), None]]
    tensors = {"a.weight": (4, 3), "a.bias": (4,), "spare.weight": (2, 2), "spare.bias": (2,)}
    with pytest.raises(CheckpointError, match=r"spare\.weight and spare\.bias could be swapped"):
        name_parameters(held, tensors, in_order=True)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([[(8, 4), (8,), (8,)]], r"2 parameters of shape \(8,\), the model has 1"),
        ([[(8, 4), (8,), None, None]], "4 parameters, the model has 3"),
        ([[(8,), (8, 4), (3,)]], "in no order"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(held: Groups, message: str) -> None:
    for in_order in (True, False):
        with pytest.raises(CheckpointError, match=message):
            name_parameters(held, {"up.weight": (8, 4), "up.bias": (8,), "scale": (3,)}, in_order=in_order)


@pytest.mark.parametrize(
    ("names", "given", "recorded"),
    [
        ("ac", "c is not in the model", "c is not in the model"),
        ("aa", "a is named twice", "a is named twice"),
        ("ba", "in no order", r"b is \(2,\), in the model \(3,\)"),
        ("a", "the model has 0", "2 parameters has 1 names"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: str, given: str, recorded: str) -> None:
    tensors = {"a": (2,), "b": (3,)}
    with pytest.raises(CheckpointError, match=given):
        match_names([[(2,), (3,)]], tensors, list(names))
    with pytest.raises(CheckpointError, match=recorded):
        check_names([[(2,), (3,)]], tensors, [list(names)])


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("deal", ["one group each", "half frozen", "first half", "all unknown"])
def test_hopeless_cases_of_real_size_are_refused_within_seconds(deal: str, in_order: bool) -> None:
    net = bert()
    names = list(shapes(net))
    dealt = {
        "one group each": [[name] for name in names],
        "half frozen": [names[: len(names) // 2]],
        "first half": [names[: len(names) // 2], names[len(names) // 2 :]],
        "all unknown": [names[1::2], names[::2]],
    }[deal]
    held: Groups = [[None if deal == "all unknown" else shapes(net)[name] for name in group] for group in dealt]
    start = time.process_time()  # not the clock's: other processes have the cores too
    with pytest.raises(CheckpointError, match=r"ambiguous|too many orders"):
        name_parameters(held, shapes(net) if in_order else by_name(shapes(net)), in_order=in_order)
    assert time.process_time() - start < 10


def test_a_flat_module_of_many_alike_tensors_is_refused_at_once() -> None:
    names = [f"scale_{one}{other}" for one in "abcdef" for other in "abcdefghij"]
    with pytest.raises(CheckpointError, match="scale_aa and scale_ab could be swapped"):
        name_parameters([[(8,)] * 60], dict.fromkeys(names, (8,)), in_order=False)


def test_siblings_that_are_numbered_one_by_one_ascend() -> None:
    shape = (8, 8)
    names = ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert name_parameters([[shape] * 3], dict.fromkeys(names, shape), in_order=False) == [names]
    # Two that are named so, and yet are no sequence, as NeoBERT's w12 and w3.
    with pytest.raises(CheckpointError, match="w12 and w3 could be swapped"):
        name_parameters([[shape] * 2], {"w12": shape, "w3": shape}, in_order=False)
    with pytest.raises(CheckpointError, match="fit the model's tensors in no order"):
        name_parameters([[(8,), shape]], {"fc1": shape, "fc2": (8,)}, in_order=False)


# What follows goes through every order and every dealing, one by one, for networks small enough for that.

Tree = dict[str, "Shape | Tree"]


def orders(tree: Tree, path: str = "") -> Iterator[list[str]]:
    """Every order of a tree's tensors that a network built as networks are may have."""
    tensors = [name for name, value in tree.items() if isinstance(value, tuple)]
    modules = [name for name, value in tree.items() if isinstance(value, dict)]
    for order in permutations(tree):
        position = {name: number for number, name in enumerate(order)}
        ascending = [[int(name) for name in order if name in side and name.isdecimal()] for side in (tensors, modules)]
        if (
            any(position[tensor] > position[module] for tensor in tensors for module in modules)
            or any(numbers != sorted(numbers) for numbers in ascending)
            or ("bias" in tensors and "weight" in tensors and position["bias"] < position["weight"])
        ):
            continue
        inner = [list(orders(tree[n], f"{path}{n}.")) if n in modules else [[path + n]] for n in order]  # type: ignore[arg-type]
        for parts in product(*inner):
            yield [name for part in parts for name in part]


def dealings(order: list[str], tensors: dict[str, Shape], held: Groups) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Every way to deal tensors in this order to the groups, or to leave them out, that gives the shapes held."""

    def deal(rest: list[str], dealt: list[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], ...]]:
        if not rest:
            if all(len(names) == len(group) for names, group in zip(dealt, held, strict=True)):
                yield tuple(dealt)
            return
        for number, group in enumerate(held):
            place = len(dealt[number])
            if place < len(group) and group[place] in (None, tensors[rest[0]]):
                yield from deal(rest[1:], [*dealt[:number], (*dealt[number], rest[0]), *dealt[number + 1 :]])
        yield from deal(rest[1:], dealt)

    yield from deal(order, [()] * len(held))


def random_tree(chance: random.Random, depth: int = 0) -> Tree:
    names = chance.sample(["weight", "bias", "gate", "0", "1", "2", "left", "right"], chance.randint(1, 3))
    numbers_are_modules = chance.random() < 0.7
    tree: Tree = {}
    for name in names:
        module = depth < 2 and (name in ("left", "right") or (name.isdecimal() and numbers_are_modules))
        if module and chance.random() < 0.8:
            tree[name] = random_tree(chance, depth + 1)
        else:
            tree[name] = chance.choice([(2,), (3,), (2, 2), (2, 3)])
    return tree


def flat(tree: Tree, path: str = "") -> dict[str, Shape]:
    tensors: dict[str, Shape] = {}
    for name, value in tree.items():
        tensors |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return tensors


def test_one_answer_is_given_exactly_where_going_through_everything_finds_one() -> None:
    chance = random.Random(5)
    told = refused = 0
    while told + refused < 1500:
        tree = random_tree(chance)
        tensors = flat(tree)
        if not 2 <= len(tensors) <= 6:
            continue
        every = list(orders(tree))
        where = [chance.choices([0, 1, None], [6, chance.choice([0, 4]), 1])[0] for _ in tensors]
        truth = chance.choice(every)
        dealt = [[name for name, group in zip(truth, where, strict=True) if group == number] for number in (0, 1)]
        held: Groups = [[None if chance.random() < 0.1 else tensors[name] for name in group] for group in dealt]
        in_order = chance.random() < 0.3
        possible = {way for order in ([truth] if in_order else every) for way in dealings(order, tensors, held)}
        given = {name: tensors[name] for name in truth} if in_order else by_name(tensors)
        try:
            assert [tuple(group) for group in name_parameters(held, given, in_order=in_order)] == [
                *next(iter(possible))
            ]
            assert len(possible) == 1, (tree, held)
            told += 1
        except CheckpointError:
            assert len(possible) > 1, (tree, held)
            refused += 1
    assert min(told, refused) > 300
