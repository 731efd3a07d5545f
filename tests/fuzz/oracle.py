"""What must hold for every fold of every random network; each broken promise is a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.fuzz.cases import Case
from tests.fuzz.judge import foldable_left, norms_left
from tests.random_norms import has_statistics

Fold = Callable[[nn.Module, tuple[Tensor, ...]], nn.Module]
FLOAT64_LIMIT = 1e-9
# a fold rounds each weight once; so does this many times moving every weight by its last bit
ROUNDINGS = 20.0
DRAWS = 3


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs, on copies, so that train-mode norms and in-place ops leave no trace."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(copy.deepcopy(model)(x.clone())) if isinstance(leaf, Tensor)]


def distance(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference over the largest value of its output; infinite if the structure differs."""
    if [(x.shape, x.dtype) for x in got] != [(x.shape, x.dtype) for x in want]:
        return float("inf")
    errors = [
        float((a.double() - b.double()).abs().max() / (1e-6 + b.double().abs().max()))
        for a, b in zip(got, want, strict=True)
    ]
    return max((e if e == e else float("inf") for e in errors), default=0.0)


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """A copy with every weight, and what every norm gives, moved by up to one unit of its last place.

    (A norm may give less digits than the network around it has: a fold does not round there any more.)
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)

    def moved(_: nn.Module, given: object, value: Tensor) -> Tensor:
        noise = torch.rand(value.shape, generator=generator).to(value.dtype) * 2 - 1
        return value + value * noise * torch.finfo(value.dtype).eps

    for norm in filter(has_statistics, model.modules()):
        norm.register_forward_hook(moved)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
                tensor.add_(tensor * noise * torch.finfo(tensor.dtype).eps)
    return model


def limit(case: Case, x: Tensor, want: list[Tensor]) -> float:
    """How far rounding alone may move the outputs, measured on the original."""
    noise = max(distance(run(perturbed(case.model, seed), x), want) for seed in range(DRAWS))
    floor = FLOAT64_LIMIT if case.exact else 8 * torch.finfo(case.dtype).eps
    return max(floor, ROUNDINGS * noise)


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a model that a fold must leave alone."""
    state: dict[str, object] = {f"tensor {n}": t.clone() for n, t in model.state_dict().items()}
    for name, module in model.named_modules():
        state[f"class {name}"] = type(module)
        state[f"mode {name}"] = module.training
    for name, p in model.named_parameters():
        state[f"gradient {name}"] = (p.requires_grad, p.grad is None)
    return state


def differs(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return not torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    return a != b


def changes(before: dict[str, object], model: nn.Module) -> Iterator[str]:
    now = snapshot(model)
    for key in before.keys() | now.keys():
        if key not in now or key not in before or differs(before[key], now[key]):
            yield f"the model passed in was changed: {key}"


def wrong_outputs(case: Case, folded: nn.Module) -> Iterator[str]:
    for number, x in enumerate(case.inputs):
        want = run(case.model, x)
        allowed = limit(case, x, want)
        error = distance(run(folded, x), want)
        if error > allowed:
            yield f"outputs differ on input {number}: {error:.1e}, rounding explains {allowed:.1e}"


def folds_again(case: Case, folded: nn.Module, fold: Fold) -> Iterator[str]:
    again = fold(folded, (case.inputs[0],))
    if sorted(norms_left(again)) != sorted(norms_left(folded)):
        yield f"a second fold finds more: {norms_left(folded)} -> {norms_left(again)}"
    if any(
        differs(a, b) for a, b in zip(run(again, case.inputs[0]), run(folded, case.inputs[0]), strict=True)
    ):
        yield "a second fold changes the outputs"


def complaints(case: Case, fold: Fold, *, thorough: bool = True) -> list[str]:
    """What is wrong with `fold` on this case. `thorough` also looks for norms that could have been folded."""
    before = snapshot(case.model)
    try:
        folded = fold(case.model, (case.inputs[0],))
        found = list(changes(before, case.model))
        found += wrong_outputs(case, folded)
        found += folds_again(case, folded, fold)
    except Exception as error:  # a crash is a finding like any other
        return [f"crashed: {type(error).__name__}: {error}"]
    if type(folded) is not type(case.model):
        found.append(f"the class became {type(folded).__name__}")
    if thorough and case.exact and not case.cuts_batches and not found:
        found += foldable_left(folded, case.inputs[0])
    return found
