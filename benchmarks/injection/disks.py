"""Disks that are full or read-only, files that may not grow, few file handles: each command
says so and leaves nothing cut; when there is room again, it ends as if nothing had been.
"""

import ctypes
import os
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.injection.cases import Case, Outcome, finished, judged, worst
from benchmarks.injection.compare import cache_differences
from benchmarks.injection.processes import Conditions
from benchmarks.injection.results import COMPARED, RESUME
from benchmarks.injection.scene import BUILD, CACHE, EVALUATE, PREDICT, RUN, TRAIN, Scene

CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 16384, 1 << 18
INPUTS = ("encoder", "table.parquet", "columns.yaml", "small.yaml")
# a command, what it is after the fault, what it finds, pages that are free on its disk
WORKS = (
    (BUILD, BUILD, INPUTS, (0, 2, 8, 20, 40, 60)),
    (TRAIN, RESUME, CACHE, (0, 1, 4, 20, 30, 50, 70, 90, 110, 130)),
    (EVALUATE, EVALUATE, RUN, (0, 1, 4, 10, 20, 40)),
    (PREDICT, PREDICT, RUN, (0, 1, 2, 4)),
)
Words = tuple[str, ...]
LARGE_KIB = 1 << 20
FILE_SIZES = (0, 1, 100, 2_000, 8_000, 30_000, 80_000, 120_000)
HANDLES = (8, 12, 16, 20, 24, 32, 48, 64, 96)


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield commands that lack room, permission or handles."""
    for words, again, brought, _ in WORKS:
        for size in FILE_SIZES:
            under = Conditions(limits=((resource.RLIMIT_FSIZE, size),))
            label = f"{words[0]}: no file above {size:,} bytes"
            yield Case("disk full", label, partial(_limited, words, again, brought, under))
        for number in HANDLES:
            under = Conditions(limits=((resource.RLIMIT_NOFILE, number),))
            label = f"{words[0]}: {number} file handles"
            yield Case("few file handles", label, partial(_limited, words, again, brought, under))
        for everywhere in (True, False):
            label = f"{words[0]}: {'all' if everywhere else 'what it writes'} is forbidden"
            play = partial(_forbidden, words, again, brought, everywhere)
            yield Case("disk read-only", label, play)
    if os.geteuid() == 0:  # who may mount
        for words, again, brought, sizes in WORKS:
            play = partial(_read_only, words, again, brought)
            yield Case("disk read-only", f"{words[0]}: the disk is read-only", play)
            for size in sizes:
                free = 4 * size + random.randrange(16)
                label = f"{words[0]}: a disk with {free} KiB free"
                yield Case("disk full", label, partial(_small_disk, words, again, brought, free))


def _limited(
    words: Words,
    again: Words,
    brought: Words,
    under: Conditions,
    scene: Scene,
) -> Outcome:
    """Run under a limit, then without."""
    scene.bring(brought)
    return _twice(scene, words, again, under)


def _twice(scene: Scene, words: Words, again: Words, under: Conditions) -> Outcome:
    """Return the graver of two verdicts: under the fault, and after it."""
    first = judged(scene.call(*words, under=under), partial(_results, scene, words))
    return first if first.verdict == "harmless" else worst(first, _after(scene, words, again))


def _after(scene: Scene, words: Words, again: Words) -> Outcome:
    """Return the verdict on the command after the fault."""
    return finished(scene.call(*again), partial(_results, scene, words))


def _results(scene: Scene, words: Words) -> list[str]:
    """Return where a command's result is not that of the sound project."""
    if words is BUILD:
        return cache_differences(scene / "cache.zarr", scene.finished / "cache.zarr")
    return COMPARED[words[0]](scene, scene.finished)


def _small_disk(
    words: Words,
    again: Words,
    brought: Words,
    free: int,
    scene: Scene,
) -> Outcome:
    """Run on a disk with so many KiB free, which then grows."""
    _mount(scene.folder, LARGE_KIB)
    os.chdir(scene.folder)
    scene.bring(brought)
    status = os.statvfs(scene.folder)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize // 1024
    _mount(scene.folder, used + free, MS_REMOUNT)
    first = judged(scene.call(*words), partial(_results, scene, words))
    _mount(scene.folder, LARGE_KIB, MS_REMOUNT)
    return first if first.verdict == "harmless" else worst(first, _after(scene, words, again))


def _read_only(words: Words, again: Words, brought: Words, scene: Scene) -> Outcome:
    """Run on a disk that is mounted read-only, then on one that is not."""
    _mount(scene.folder, LARGE_KIB)
    os.chdir(scene.folder)
    scene.bring(brought)
    _mount(scene.folder, LARGE_KIB, MS_REMOUNT | MS_RDONLY)
    first = judged(scene.call(*words), lambda: ["it wrote on a read-only disk"])
    _mount(scene.folder, LARGE_KIB, MS_REMOUNT)
    return worst(first, _after(scene, words, again))


def _forbidden(
    words: Words,
    again: Words,
    brought: Words,
    everywhere: bool,
    scene: Scene,
) -> Outcome:
    """Run where one may not write, then where one may."""
    scene.bring(brought)
    if words is TRAIN:
        (scene / "run").mkdir()
    inside = scene / "run" if words in (TRAIN, EVALUATE) else scene.folder
    paths = [scene.folder, *scene.folder.rglob("*")] if everywhere else [inside]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    first = judged(
        scene.call(*words, under=Conditions(forbidden=True)),
        lambda: ["it wrote where it may not"],
    )
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return worst(first, _after(scene, words, again))


def _mount(place: Path, kib: int, flags: int = 0) -> None:
    """Mount a disk in memory, for this process and its children alone, or change it."""
    libc = ctypes.CDLL(None, use_errno=True)
    codes = []
    if not flags:
        codes += [
            libc.unshare(CLONE_NEWNS),
            libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        ]
    options = f"size={kib}k,mode=755".encode()
    codes.append(libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, options))
    assert not any(codes), f"mount: {os.strerror(ctypes.get_errno())}"
