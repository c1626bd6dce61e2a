"""How far the gradients that training uses are from plain ones, and how far they may be.

In fp32 each part of the model (an encoder's adapters, a head, a stack of layers) is off by at most
`LIMIT` of its gradient's norm. A part whose gradient is small beside the model's is measured by a
thousandth of the model's: it is what is left of sums that cancel, and so is its rounding. That of
a log-variance s, 1 - exp(-s) L times the task's weight, cancels by itself as s settles: it is
measured by the weights at least. Where a part is further off, what is computed plainly is computed
in float64 too, and tells how far rounding takes fp32: some networks multiply their encoder's
rounding, and a loss that is nearly zero has few right digits. Of a part of one number plain fp32
may be right by luck, so it is measured again with weights off in their last place. Twice as
far is allowed as the worst part of the same half of the model. The norm that clipping divides by,
which torch sums in fp32 number by number, may be off by `NORM_LIMIT`.

In a narrower type the rule is the same, between plain results in it and in fp32, for LoRA's
gradient and for the network's. Where plain PyTorch is off by more than `JUDGED`, the size of an
error is luck, and what the narrow type gives is written down and not judged: the same step is, in
fp32.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

LIMIT = 1e-5
NORM_LIMIT = 1e-4
ALLOWED = 2.0  # times plain PyTorch's own error
JITTERED = 3  # how often that is measured again: of a part of one number it may be small by luck
JUDGED = 0.1  # as far off plain PyTorch may be for its error to measure another
_SMALL = 1e-3  # of the gradient of all encoders, or of network and loss
NORM = "norm before clipping"  # of the whole gradient, beside the parameters' names
Gradients = Mapping[str, Tensor]
NOTHING: Mapping[str, float] = MappingProxyType({})


class Verdict(NamedTuple):
    """Relative errors of the gradients used, and their limits, by part or group of the model."""

    errors: dict[str, float]
    limits: dict[str, float]
    plain: dict[str, float]  # plain PyTorch's own errors in the same type, where it was asked for
    not_judged: dict[str, float]  # errors where those are too large to measure others

    @property
    def passed(self) -> bool:
        """Whether nothing is further off than it may be; what is not a number is."""
        return all(error <= self.limits[name] for name, error in self.errors.items())


def in_fp32(
    used: Gradients,
    plain: Gradients,
    in_fp64: Callable[[], Gradients],
    least: Mapping[str, float] = NOTHING,
    jittered: Callable[[int], Gradients] | None = None,
) -> Verdict:
    """Return the verdict on a step in fp32; `in_fp64` gives the plain gradients in float64.

    `jittered` gives plain ones again, of weights that are off in their last place, by a seed.
    `least` has by part the least size that its error is measured by.
    """
    errors = errors_of(used, plain, part_of, least)
    verdict = Verdict(errors, {name: _least_limit(name) for name in errors}, {}, {})
    if verdict.passed or not max(errors.values()) <= JUDGED:  # no rounding of fp32 is as large
        return verdict
    others = [] if jittered is None else [jittered(seed) for seed in range(JITTERED)]
    return _beside_plain(used, [plain, *others], in_fp64(), torch.float32, part_of, least)


def in_narrow_type(
    used: Gradients, plain: Gradients, exact: Gradients, dtype: torch.dtype
) -> Verdict:
    """Return the verdict on a step in this type; `plain` is in it too, `exact` in fp32.

    The norm, a single number, may be off by as much as luck will have it.
    """
    used, plain, exact = (
        {name: value for name, value in each.items() if name != NORM}
        for each in (used, plain, exact)
    )
    return _beside_plain(used, [plain], exact, dtype, group_of)


def _beside_plain(
    used: Gradients,
    plain: Sequence[Gradients],
    exact: Gradients,
    dtype: torch.dtype,
    key: Callable[[str], str],
    least: Mapping[str, float] = NOTHING,
) -> Verdict:
    """Return the verdict by how far plain gradients in the same type are from exact ones.

    The type's rounding is granted to both, or one lucky plain sum would decide.
    """
    errors = errors_of(used, exact, key, least)
    of_plain = [errors_of(each, exact, key, least) for each in plain]
    own = {name: max(each[name] for each in of_plain) for name in errors}
    half = {key(name): group_of(name) for name in exact}
    worst = {
        name: max(own[other] for other in own if name == NORM or half[other] == half[name])
        for name in own
    }
    limits = {
        name: max(_least_limit(name), ALLOWED * max(error, torch.finfo(dtype).eps / 4))
        for name, error in worst.items()
        if error <= JUDGED
    }
    judged = {name: error for name, error in errors.items() if name in limits}
    rest = {name: error for name, error in errors.items() if name not in limits}
    return Verdict(judged, limits, own, rest)


def _least_limit(name: str) -> float:
    """Return how far a part may be off whatever plain PyTorch is."""
    return NORM_LIMIT if name == NORM else LIMIT


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    words = name.split(".")
    if name == NORM:
        return NORM
    if words[0] != "encoders":
        return ".".join(words[:3])
    return f"encoders.{words[1]}.{next(word for word in words if word.startswith('lora_'))}"


def group_of(name: str) -> str:
    """Return which half of the model a parameter belongs to; the norm is a group for itself."""
    if name == NORM:
        return NORM
    return "LoRA" if name.startswith("encoders.") else "network"


def errors_of(
    used: Gradients,
    exact: Gradients,
    key: Callable[[str], str],
    least: Mapping[str, float] = NOTHING,
) -> dict[str, float]:
    """Return the relative error of all parameters that share a key, by that key.

    `least` has by key the least size that an error is measured by.
    """
    assert used.keys() == exact.keys()
    sizes = {name: float(_norm(value)) for name, value in exact.items()}
    distances = {name: float(_norm(used[name] - value)) for name, value in exact.items()}
    errors = {}
    for name in dict.fromkeys(map(key, exact)):
        members = [each for each in exact if key(each) == name]
        group = [sizes[each] for each in exact if group_of(each) == group_of(members[0])]
        own, all_of_group = math.hypot(*(sizes[each] for each in members)), math.hypot(*group)
        size = max(own, _SMALL * all_of_group, least.get(name, 0.0))
        distance = math.hypot(*(distances[each] for each in members))
        errors[name] = 0.0 if distance == 0 else distance / size if size > 0 else math.inf
    return errors


def _norm(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, dtype=torch.float64)
