"""Finds the tensor of a model that each numbered parameter of an optimizer is.

torch's optimizers keep their state by number. The numbers follow `model.named_parameters()`: through all modules in the
order in which they were registered, a module's own parameters before those of the modules within it. If that order was
lost (safetensors sorts names), the orders that remain possible are tried: shapes must match number by number, and the
order must follow the conventions of networks (`_before`). If one naming remains, it is the answer; two are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from azneobert.errors import CheckpointError

Shape = tuple[int, ...]
Groups = Sequence[Sequence[Shape | None]]

_REMEDY = (
    "use --parameter-names FILE, with the optimizer's parameters, one name a line in the order of "
    "model.named_parameters()"
)
_NAMED_REMEDY = "name only what the optimizer holds, in the model's order, or build it from named parameters"
_MOST_STEPS = 50_000  # about a second; real networks take a thousand, or have too many orders in any case
# What torch.nn.MultiheadAttention registers, in its order; the projection that follows is a module of its own.
_ATTENTION = (
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v"),
)

_Key = TypeVar("_Key")
_State = tuple[int, ...]  # how many of each group's parameters are named, and how many tensors may yet be left out


@dataclass(frozen=True)
class _Naming:
    """Names by group and place, and two tensors that could stand for the same parameter, if there are such."""

    names: dict[tuple[int, int], str]
    rivals: tuple[str, str] | None = None


_Namings = dict[_State, _Naming]


@dataclass
class _Module:
    """A module of the model: its own tensors by name, with name in the model and shape, and its modules."""

    tensors: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    modules: dict[str, _Module] = field(default_factory=dict)

    def inner(self) -> Iterator[tuple[str, str, Shape]]:
        """Name within this module, name in the model, and shape of every tensor."""
        for name, (full, shape) in sorted(self.tensors.items()):
            yield name, full, shape
        for child, module in sorted(self.modules.items()):
            for name, full, shape in module.inner():
                yield f"{child}.{name}", full, shape


# An optimizer holds parameters of the shapes (2, 3), (2) and (2, 2), in this order and without names. The model's
# tensors, which safetensors has sorted, are down.weight (2, 2), norm.weight (2) and up.weight (2, 3): by the shapes the
# optimizer has up, norm, down. If up.weight were (2, 2) as well, it could as well be down, norm, up, and both would
# fit: refused as ambiguous. If the model's order is known, from a .bin or --parameter-names, there is one answer
# again: of up.weight, up.bias, down.weight and down.bias in two groups, (2, 2) twice and (2) twice, the weights are one
# group and the biases the other.
def name_parameters(groups: Groups, tensors: Mapping[str, Shape], *, in_order: bool) -> list[list[str]]:
    """The name of each parameter in each group of an optimizer.

    `groups` holds the shape of each parameter, None if it is not known; `tensors` the shapes of what may be a
    parameter, with `in_order` in the order of the model's state dict. Tensors may be left over, as frozen ones are. The
    optimizer must have been given the parameters in the model's order, in one group or dealt out to several.

    Raises:
        CheckpointError: the shapes fit no order, or more than one.
    """
    search = _Search(groups, tensors, _REMEDY)
    return search.result(search.in_order() if in_order else search.any_order())


def match_names(groups: Groups, tensors: Mapping[str, Shape], names: Sequence[str]) -> list[list[str]]:
    """The same, with names given in the model's order; some may be of tensors that the optimizer does not hold.

    Raises:
        CheckpointError: a name is unknown or twice there, or the shapes fit the names in no way, or in several.
    """
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise CheckpointError(f"{unknown[0]} is not in the model; expected its parameters, one name a line")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise CheckpointError(f"{repeated[0]} is named twice; name it once")
    search = _Search(groups, {name: tensors[name] for name in names}, _NAMED_REMEDY)
    return search.result(search.in_order())


def check_names(groups: Groups, tensors: Mapping[str, Shape], names: Sequence[Sequence[str]]) -> None:
    """Check names that came with the optimizer.

    Raises:
        CheckpointError: there are too few or too many, one is unknown or twice there, or has another shape.
    """
    repeated = [name for name, times in Counter(name for each in names for name in each).items() if times > 1]
    if repeated:
        raise CheckpointError(f"{repeated[0]} is named twice: files of two models; use those of one")
    for group, of_group in zip(groups, names, strict=True):
        if len(group) != len(of_group):
            raise CheckpointError(
                f"a group of {len(group)} parameters has {len(of_group)} names; expected a name for each"
            )
        for shape, name in zip(group, of_group, strict=True):
            if name not in tensors:
                raise CheckpointError(f"{name} is not in the model: files of two models; use those of one")
            if shape not in (None, tensors[name]):
                raise CheckpointError(
                    f"{name} is {shape}, in the model {tensors[name]}: files of two models; use those of one"
                )


class _Search:
    """All namings of the parameters, found once for each state of the search and not once for each order."""

    def __init__(self, groups: Groups, tensors: Mapping[str, Shape], remedy: str):
        self.groups = groups
        self.remedy = remedy
        shapes = [shape for group in groups for shape in group]
        wanted = Counter(shape for shape in shapes if shape is not None)
        self.all_known = None not in shapes
        if self.all_known:  # a tensor with the shape of no parameter is none
            tensors = {name: shape for name, shape in tensors.items() if shape in wanted}
        self.tensors = tensors
        self.surplus = Counter(tensors.values())
        self.surplus.subtract(wanted)
        short = [shape for shape, count in self.surplus.items() if count < 0]
        self.spare = len(tensors) - len(shapes)
        if short or self.spare < 0:
            of_shape = f" of shape {short[0]}" if short else ""
            there = wanted[short[0]] if short else len(shapes)
            here = there + (self.surplus[short[0]] if short else self.spare)
            raise CheckpointError(
                f"{there} parameters{of_shape}, the model has {here}: files of two models; use those of one"
            )
        self.steps = 0
        self._memory: dict[tuple[int, _State], _Namings] = {}

    @property
    def start(self) -> _State:
        """The state in which nothing is named."""
        return (*(0 for _ in self.groups), self.spare)

    def result(self, namings: _Namings) -> list[list[str]]:
        """The names, if there is exactly one way to give them."""
        found = namings.get((*(len(group) for group in self.groups), 0))
        if found is None:
            raise CheckpointError(f"its parameters fit the model's tensors in no order; {self.remedy}")
        if found.rivals:
            one, other = found.rivals
            raise CheckpointError(f"ambiguous: {one} and {other} could be swapped; {self.remedy}")
        return [[found.names[number, place] for place in range(len(group))] for number, group in enumerate(self.groups)]

    def in_order(self) -> _Namings:
        """Namings that follow the order of the tensors."""
        namings: _Namings = {self.start: _Naming({})}
        for name, shape in self.tensors.items():
            following: _Namings = {}
            self._count(len(namings))
            for state, naming in namings.items():
                for end, more in self._place(name, shape, state).items():
                    _add(following, end, _joined(naming, more))
            namings = following
        return namings

    def any_order(self) -> _Namings:
        """Namings that follow any order in which the modules may have been registered."""
        return self._namings(_tree(self.tensors), self.start)

    def _place(self, name: str, shape: Shape, state: _State) -> _Namings:
        """Namings in which the next parameter of a group gets this name, or the tensor is left out."""
        placed: _Namings = {}
        for number, group in enumerate(self.groups):
            place = state[number]
            if place < len(group) and group[place] in (None, shape):
                end = (*state[:number], place + 1, *state[number + 1 :])
                placed[end] = _Naming({(number, place): name})
        if state[-1] and (not self.all_known or self.surplus[shape]):
            placed[*state[:-1], state[-1] - 1] = _Naming({})
        return placed

    def _namings(self, module: _Module, state: _State) -> _Namings:
        """Namings of a module's tensors, which stand together, by the state that they lead to."""
        remembered = self._memory.get((id(module), state))
        if remembered is not None:
            return remembered
        parts = _parts(module)
        before = {part: _before(part, module) for part in parts}
        twins = _twins(module) if not self.spare else {}
        frontier = {(frozenset(parts), state): _Naming({})}
        for _ in parts:
            following: dict[tuple[frozenset[str], _State], _Naming] = {}
            self._count(len(frontier))
            for (left, at), naming in frontier.items():
                for part, rivals in _next(left, before, twins):
                    for end, more in self._part(module, part, at).items():
                        _add(following, (left - {part}, end), _joined(naming, more, rivals))
            frontier = following
        self._memory[id(module), state] = {end: naming for (_, end), naming in frontier.items()}
        return self._memory[id(module), state]

    def _part(self, module: _Module, part: str, state: _State) -> _Namings:
        if part.endswith("."):
            return self._namings(module.modules[part[:-1]], state)
        return self._place(*module.tensors[part], state)

    def _count(self, steps: int) -> None:
        self.steps += steps * len(self.groups)
        if self.steps > _MOST_STEPS:
            raise CheckpointError(f"too many orders are possible; {self.remedy}")


def _joined(one: _Naming, other: _Naming, rivals: tuple[str, str] | None = None) -> _Naming:
    return _Naming({**one.names, **other.names}, one.rivals or other.rivals or rivals)


def _add(namings: dict[_Key, _Naming], key: _Key, naming: _Naming) -> None:
    """Keep one naming for each state, since what follows is the same; keep, too, that there was another."""
    known = namings.get(key)
    if known is None:
        namings[key] = naming
    elif known.rivals is None:
        differing = ((name, naming.names[place]) for place, name in known.names.items() if naming.names[place] != name)
        rivals = naming.rivals or next(differing, None)
        namings[key] = _Naming(known.names, rivals)


def _tree(tensors: Mapping[str, Shape]) -> _Module:
    root = _Module()
    for full, shape in tensors.items():
        *path, name = full.split(".")
        module = root
        for child in path:
            module = module.modules.setdefault(child, _Module())
        module.tensors[name] = (full, shape)
    return root


def _parts(module: _Module) -> list[str]:
    """The module's own tensors by name, and its modules, marked with a dot."""
    return [*sorted(module.tensors), *(f"{child}." for child in sorted(module.modules))]


def _before(part: str, module: _Module) -> set[str]:
    """The parts that were registered before this one.

    A module's own parameters come before those of its modules: torch ensures that. The rest is convention:
    numbered parts (0, 1, 2 or fc1, fc2) ascend, a weight comes before its bias, and MultiheadAttention has an order of
    its own.
    """
    own = set(module.tensors)
    if part.endswith("."):
        return own | {f"{child}." for child in _earlier(part[:-1], module.modules)}
    if part == "bias":
        return own & {"weight"}
    if part in _ATTENTION and "out_proj" in module.modules:
        return own & set(_ATTENTION[: _ATTENTION.index(part)])
    return _earlier(part, own)


def _earlier(name: str, siblings: Iterable[str]) -> set[str]:
    """The siblings with a lower number, as in a list's 0, 1, 2 or fc1, fc2, fc3, but not in w12 and w3."""
    stem, number = _numbered(name)
    if number is None:
        return set()
    numbers = {
        sibling: theirs for sibling in siblings for their_stem, theirs in [_numbered(sibling)] if their_stem == stem
    }
    known = sorted(theirs for theirs in numbers.values() if theirs is not None)
    if stem and known not in (list(range(len(known))), list(range(1, len(known) + 1))):
        return set()
    return {sibling for sibling, theirs in numbers.items() if theirs is not None and theirs < number}


def _numbered(name: str) -> tuple[str, int | None]:
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return stem, int(digits) if digits.isdecimal() else None


def _twins(module: _Module) -> dict[str, dict[str, tuple[str, str]]]:
    """For each part, the parts that can take its place in any order, and a pair of tensors that would be swapped.

    Swapping twins turns a naming into another one. So only one order of them needs to be tried.
    """
    alike: dict[object, list[tuple[str, str]]] = {}
    for name, (full, shape) in module.tensors.items():
        if _numbered(name)[1] is None and name not in (*_ATTENTION, "weight", "bias"):
            alike.setdefault(shape, []).append((name, full))
    for name, child in module.modules.items():
        if _numbered(name)[1] is None:
            inner = list(child.inner())
            key = tuple((within, shape) for within, _, shape in inner)
            alike.setdefault(key, []).append((f"{name}.", inner[0][1]))
    return {
        part: {other: (full, other_full) for other, other_full in members if other != part}
        for members in alike.values()
        for part, full in members
    }


def _next(
    left: frozenset[str], before: dict[str, set[str]], twins: dict[str, dict[str, tuple[str, str]]]
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """The parts that can come next, each with what could be swapped if it does."""
    for part in sorted(left):
        if before[part] & left:
            continue
        others = [other for other in twins.get(part, ()) if other in left]
        if not others or part < min(others):
            yield part, twins[part][min(others)] if others else None
