"""Triton's interpreter without what it does again and again: most of its time goes into types, and
into its own functions, by which it replaces those of Triton's language at every launch.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang


def _patch_once(function: Any) -> interpreter._LangPatchScope:
    """Replace what is not replaced yet, for good: nothing else runs in this process."""
    languages = [each for each in function.__globals__.values() if each in (tl, tl.core)]
    if any(tl.core.is_builtin(language.load) for language in languages):
        _patch_lang(function)
    return interpreter._LangPatchScope()


@cache
def _extent(shape: tuple[int, ...]) -> tuple[tl.constexpr, tl.tuple]:
    """Return the number of elements and the shape as a tensor has them."""
    return tl.constexpr(math.prod(shape)), tl.tuple([tl.constexpr(size) for size in shape])


def _init_tensor(self: tl.tensor, handle: Any, type: tl.dtype) -> None:
    """Do what `tl.tensor` does, with one extent for all tensors of a shape."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _extent(type.shape if type.is_block() else ())


_numpy_type_of = cache(interpreter._get_np_dtype)


def _numpy_type(type: tl.dtype) -> np.dtype[Any]:
    """Return NumPy's type for the elements, from a table that is made once."""
    element = type.scalar
    return np.dtype(np.uint64) if element.is_ptr() else _numpy_type_of(element)


tl.tensor.__init__ = _init_tensor
interpreter._patch_lang = _patch_once
interpreter._get_np_dtype = _numpy_type
