"""What befalls files on a disk: bytes flipped, cut, zeroed, gone, exchanged, of an earlier time."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

Damage = Callable[[Path], None]  # to a folder like the one it was drawn for


def damages(
    random: Random, folder: Path, names: list[str], num: int
) -> Iterator[tuple[str, Damage]]:
    """Yield so many ways to damage one of the named files of a folder, in words and to do."""
    kinds = (_flip, _flip, _cut, _zero, _append, _delete, _empty, _exchange, _to_folder, _dangle)
    for number in range(num):
        name = random.choice(names)
        yield kinds[number % len(kinds)](random, folder, name, names)


def _flip(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    size = (folder / name).stat().st_size
    at, bit = random.randrange(max(size, 1)), random.randrange(8)
    return f"{name}: bit {bit} of byte {at} flipped", partial(_flip_bit, name, at, bit)


def _cut(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    size = random.randrange(max((folder / name).stat().st_size, 1))
    return f"{name}: cut to {size} bytes", lambda root: os.truncate(root / name, size)


def _zero(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    size = (folder / name).stat().st_size
    at = random.randrange(max(size, 1))
    length = random.randrange(1, 512)
    return f"{name}: zeros from byte {at} on, {length}", partial(_write_at, name, at, bytes(length))


def _append(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    more = random.randbytes(random.randrange(1, 64))
    size = (folder / name).stat().st_size
    return f"{name}: {len(more)} bytes behind its end", partial(_write_at, name, size, more)


def _delete(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    return f"{name}: deleted", lambda root: (root / name).unlink()


def _empty(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    return f"{name}: emptied", lambda root: os.truncate(root / name, 0)


def _exchange(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    other = random.choice(names)
    return f"{name}: exchanged with {other}", partial(exchange, name, other)


def _to_folder(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    return f"{name}: a folder in its place", partial(_make_folder, name)


def _dangle(random: Random, folder: Path, name: str, names: list[str]) -> tuple[str, Damage]:
    return f"{name}: a link to nothing in its place", partial(_make_link, name)


def replaced_by(other: Path, name: str) -> Damage:
    """Return the damage that a file of another folder takes the place of one."""
    return lambda root: _copy(other / name, root / name)


def _flip_bit(name: str, at: int, bit: int, root: Path) -> None:
    content = bytearray((root / name).read_bytes() or b"\0")
    content[at] ^= 1 << bit
    (root / name).write_bytes(content)


def _write_at(name: str, at: int, content: bytes, root: Path) -> None:
    with (root / name).open("r+b") as stream:
        stream.seek(at)
        stream.write(content)


def exchange(name: str, other: str, root: Path) -> None:
    """Let two files take each other's names."""
    aside = root / "aside"
    if name != other:
        (root / name).rename(aside)
        (root / other).rename(root / name)
        aside.rename(root / other)


def _make_folder(name: str, root: Path) -> None:
    (root / name).unlink()
    (root / name).mkdir()


def _make_link(name: str, root: Path) -> None:
    (root / name).unlink()
    (root / name).symlink_to("nowhere")


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copy2(source, target)
