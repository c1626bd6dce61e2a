"""Audit what an installation brings: a hash for every file, licences, and known vulnerabilities.

It exits with 1 where something is wrong, and with 3 where the advisory database could not be asked:
pip-audit alone skips what it cannot look up, says that it found nothing, and exits with 0.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from embedcache.errors import UserError
from embedcache.text import count_of
from fusionnet.commands.command import run_job

PROJECT = "embedcache-fusionnet"
SHIPPED = ("gpu", "cohort")  # the extras that the lock holds; dev has tested versions only
LOCK, TESTED = Path("configs/lock.txt"), Path("configs/constraints.txt")
WRONG, NOT_ASKED = 1, 3
MOST_SHOWN = 3  # of the packages that could not be asked about, which are all where one is
_STATES_NO_LICENCE = ("OSI Approved", "DFSG approved")


class AuditError(UserError):
    """The audit cannot start: not a checkout, or a tool is missing."""


class Pin(NamedTuple):
    """A package of the lock with the number of its files' hashes."""

    name: str
    version: str
    num_hashes: int


class Licence(NamedTuple):
    """What an installed package states."""

    package: str
    version: str
    names: tuple[str, ...]


def main() -> None:
    """Print licences, faults of the lock and advisories; exit with 0 if there is nothing to do."""
    description = str(__doc__).partition("\n")[0]
    argparse.ArgumentParser(prog="python -m jobs.audit", description=description).parse_args()
    if not LOCK.is_file():
        raise AuditError(f"{LOCK} is not here: run `make audit` in a checkout")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    pins, licences = read_lock(LOCK), sorted(installed_licences(PROJECT, (*SHIPPED, "dev")))
    for package, version, names in licences:
        print(f"{package:28} {version:16} {', '.join(names)}")
    faults = [*faults_of_lock(pins, project["project"], read_pins(TESTED))]
    faults += faults_of_licences(licences, project["tool"]["audit"]["licences"])
    known = {licence.package for licence in licences}
    if absent := sorted({pin.name for pin in pins} - known):
        print(f"not installed here, licences not read: {', '.join(absent)}")
    # one by one: pip-audit wants hashes for all of its packages or for none
    answers = [advisories(file) for file in (LOCK, TESTED)]
    vulnerable, not_asked = (sorted({*one, *other}) for one, other in zip(*answers, strict=True))
    print(f"{len(pins)} packages in {LOCK}, {len(licences)} licences, {len(faults)} faults")
    for line in (*faults, *vulnerable, *not_asked[:MOST_SHOWN]):
        print(line, file=sys.stderr)
    if faults or vulnerable:
        sys.exit(WRONG)
    if not_asked:
        num = count_of(len(not_asked), "answer")
        print(
            f"NOT AUDITED for vulnerabilities ({num} missing): the rest is right", file=sys.stderr
        )
        sys.exit(NOT_ASKED)
    print("no known vulnerabilities")


def read_lock(path: Path) -> list[Pin]:
    """Return the packages of a lock file, one for each version of each."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        Pin(name, version, line.count("--hash=sha256:"))
        for line in lines
        for name, _, version in [re.split(r"[\s;]", line, maxsplit=1)[0].partition("==")]
    ]


def read_pins(path: Path) -> dict[str, str]:
    """Return name -> version of a file of constraints."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pinned = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, _, version in pinned}


def faults_of_lock(
    pins: list[Pin], project: dict[str, Any], tested: dict[str, str]
) -> Iterator[str]:
    """Yield what is wrong with the lock: no version, no hash, a dependency left out, or a version
    that the tests were not run with.
    """
    for name, version, num_hashes in pins:
        if not version:
            yield f"{LOCK}: {name} has no version"
        elif not num_hashes:
            yield f"{LOCK}: {name}=={version} has no hash"
        elif tested.get(name, version) != version:
            yield f"{LOCK}: {name}=={version}, tested was {tested[name]}: run `make lock`"
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *(name for extra in SHIPPED for name in extras[extra])]
    wanted = {canonicalize_name(Requirement(line).name) for line in direct}
    for name in sorted(wanted - {pin.name for pin in pins}):
        yield f"{LOCK}: {name}, a dependency, is missing: run `make lock`"


def installed_licences(project: str, extras: tuple[str, ...]) -> Iterator[Licence]:
    """Yield what the project's dependencies state, as far as they are installed, of theirs too."""
    seen, waiting = {canonicalize_name(project)}, [(project, extras)]
    while waiting:
        name, asked = waiting.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != project:
            yield Licence(canonicalize_name(name), found.version, stated_licences(found))
        for needed in map(Requirement, found.requires or ()):
            marker, key = needed.marker, canonicalize_name(needed.name)
            applies = marker is None or any(marker.evaluate({"extra": e}) for e in ("", *asked))
            if applies and key not in seen:
                seen.add(key)
                waiting.append((needed.name, tuple(needed.extras)))


def stated_licences(package: metadata.Distribution) -> tuple[str, ...]:
    """Return the names of all licences of a package: all of an expression, as the stricter way."""
    stated = package.metadata.json
    if expression := stated.get("license_expression"):
        return _names(str(expression))
    classifiers = [each.split(" :: ") for each in stated.get("classifier", [])]
    names = [each[-1] for each in classifiers if each[0] == "License"]
    if kept := [name for name in names if name not in _STATES_NO_LICENCE]:
        return tuple(kept)
    return _names(str(stated.get("license", "")).partition("\n")[0])


def _names(expression: str) -> tuple[str, ...]:
    """Return the licences that an SPDX expression joins."""
    parts = re.split(r"\s+(?:AND|OR)\s+", expression.strip("() "))
    return tuple(part.strip("() ") for part in parts if part)


def faults_of_licences(licences: list[Licence], allowed: list[str]) -> Iterator[str]:
    """Yield the packages that state no licence or one that is not allowed."""
    for package, version, names in licences:
        refused = sorted(set(names) - set(allowed))
        if refused or not names:
            stated = ", ".join(refused) or "no licence"
            yield f"{package}=={version} states {stated}: see tool.audit in pyproject.toml"


def advisories(file: Path) -> tuple[list[str], list[str]]:
    """Return the vulnerabilities known of the packages in a file, and what was not asked."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off"]
    command += ["--disable-pip", "--no-deps", "-r", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip_audit" in done.stderr:
        raise AuditError("pip-audit is not installed: run `make audit`, or pip install '.[audit]'")
    return judged(done.stdout, done.stderr)


def judged(answer: str, said: str) -> tuple[list[str], list[str]]:
    """Return what pip-audit found, and what it did not ask, from its two streams."""
    try:
        packages = json.loads(answer)["dependencies"]
    except json.JSONDecodeError:
        reason = said.strip().splitlines()[-1:] or ["no answer"]
        return [], [f"pip-audit could not ask: {reason[0]}"]
    found = [
        f"{package['name']}=={package['version']}: {each['id']}, mended in "
        f"{', '.join(each['fix_versions']) or 'no version'}"
        for package in packages
        for each in package.get("vulns", ())
    ]
    return found, [package["skip_reason"] for package in packages if "skip_reason" in package]


if __name__ == "__main__":
    run_job(main)
