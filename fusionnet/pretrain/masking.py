"""Which tokens a masked language model is to guess (Devlin et al. 2019, section 3.1).

Of the tokens that are no marks of the tokenizer's own a share is chosen, each by itself. Of those
four fifths are shown as [MASK], a tenth as another token, and a tenth as they are.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

MASK_SHARE = 0.15
_AS_MASK, _AS_OTHER = 0.8, 0.1


class Masked(NamedTuple):
    """P tokens as the model sees them, and the M of them that it is to guess."""

    values: Int[Tensor, " P"]
    places: Int[Tensor, " M"]
    targets: Int[Tensor, " M"]


class Vocabulary(NamedTuple):
    """What masking must know of a tokenizer with V ids."""

    special: Bool[Tensor, " V"]  # never chosen, and never shown instead of another
    mask_id: int


def masked(
    values: Int[Tensor, " P"],
    vocabulary: Vocabulary,
    generator: torch.Generator,
    share: float = MASK_SHARE,
) -> Masked:
    """Return the tokens with some of them masked, by the generator alone; on the CPU."""
    num = len(values)
    is_chosen = (torch.rand(num, generator=generator) < share) & ~vocabulary.special[values]
    shown = torch.rand(num, generator=generator)
    usual = (~vocabulary.special).nonzero().squeeze(1)
    others = usual[torch.randint(len(usual), (num,), generator=generator)]
    seen = torch.where(is_chosen & (shown < _AS_MASK), vocabulary.mask_id, values)
    is_other = is_chosen & (shown >= _AS_MASK) & (shown < _AS_MASK + _AS_OTHER)
    places = is_chosen.nonzero().squeeze(1)
    return Masked(torch.where(is_other, others, seen), places, values[places])
