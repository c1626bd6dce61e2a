"""Kernels compiled for an H100, which needs no GPU."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile


def compile_for_h100(
    kernel: Any, type_of: Callable[[str], str], constants: Mapping[str, Any]
) -> str:
    """Return the kernel's PTX; its arguments are constants or have the types that `type_of` says.

    Asserts that it assembles and has no atomics.
    """
    signature = {
        argument: "constexpr" if argument in constants else type_of(argument)
        for argument in kernel.arg_names
    }
    places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    made = compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32)).asm
    assert made["cubin"]
    ptx: str = made["ptx"]
    assert not re.search(r"\b(atom|red)\.", ptx)
    return ptx
