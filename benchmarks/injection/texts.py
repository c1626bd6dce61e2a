"""Odd values, and where they can be put in nested mappings and lists."""

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 10**30, -(10**30), 0.5, -0.5, 1e300, 1e-300),
    *("", "x", " ", "0", "a/b", "../x", "\0", "$5^$", "<script>alert(1)</script>", "é", "x" * 5000),
    *([], {}, [[]], {"a": 1}, [None], ["x"], [1, 2, 3], {"": None}),
)
UNKNOWN_KEY = "misspelled"


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield where values lie inside nested mappings and lists, whole ones included."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def put(value: Any, path: Path, new: Any) -> Any:
    """Return a copy with another value at a place."""
    if not path:
        return copy.deepcopy(new)
    copied = list(value) if isinstance(value, list | tuple) else dict(value)
    copied[path[0]] = put(value[path[0]], path[1:], new)
    return copied


def taken(value: Any, path: Path) -> Any:
    """Return a copy without the value at a place."""
    copied = list(value) if isinstance(value, list | tuple) else dict(value)
    if len(path) == 1:
        del copied[path[0]]
    else:
        copied[path[0]] = taken(value[path[0]], path[1:])
    return copied


def _nested_aliases(deep: int) -> bytes:
    """Return a few hundred bytes of YAML that mean nine to the power of `deep` items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, deep):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines).encode()


ODD_TEXTS: tuple[bytes, ...] = (
    *(b"", b" ", b"\n", b"null", b"5", b"{}", b"[]", b"[{}]", b'"text"', b"true", b"- x", b"{"),
    *(b"[", b"\0" * 50, b"\xff\xfe", "ä: ö".encode("latin-1"), b"\xef\xbb\xbf[]"),
    *("[]".encode("utf-16"), b"[" * 3000, b"{" * 3000, b"a: " * 3000, b"NaN", b"[NaN]"),
    *(b"Infinity", b"9" * 5000, b"a: &a [*a]", b"*a", b"? ", b"2020-99-99", b"a: 2020-99-99"),
    *(b"!!python/object/apply:os.system ['touch executed']", b"\t- x", b"--- 1\n--- 2"),
    *(b"%YAML 9.9\n---\nx: 1", _nested_aliases(8), b"<<: 5", b"<<: [1]", b"a: 1\na: 2"),
    *(b"? [a]\n: 1", b"\x07", b"a: \xc2\x85"),
)
