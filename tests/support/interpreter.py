"""Triton's interpreter without what it does twice.

It replaces the functions of Triton's language by its own when a kernel is launched, and again at
every call of a function inside the kernel: a fifth of the time of the kernels' tests.
"""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang


def _patch_once(function: Any) -> interpreter._LangPatchScope:
    """Replace what is not replaced yet."""
    languages = [each for each in function.__globals__.values() if each in (tl, tl.core)]
    if any(tl.core.is_builtin(language.load) for language in languages):
        return _patch_lang(function)
    return interpreter._LangPatchScope()


interpreter._patch_lang = _patch_once
