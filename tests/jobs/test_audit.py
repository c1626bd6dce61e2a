"""What an installation brings is locked by hashes and has licences that are allowed; an advisory
database that could not be asked is not silence.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobs import audit
from jobs.audit import Licence, Pin


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def test_every_package_of_the_lock_has_a_hash_and_the_tested_version(
    repository: Path, project: dict[str, Any]
) -> None:
    pins = audit.read_lock(repository / audit.LOCK)
    tested = audit.read_pins(repository / audit.TESTED)
    assert list(audit.faults_of_lock(pins, project["project"], tested)) == []
    assert {pin.name for pin in pins} >= {"torch", "transformers", "deepspeed", "psutil"}
    assert not any("://" in line for line in (repository / audit.LOCK).read_text().splitlines())


def test_a_faulty_lock_is_told_by_name(tmp_path: Path, project: dict[str, Any]) -> None:
    (tmp_path / "lock.txt").write_text(
        "torch==2.13.0 ; sys_platform == 'linux' \\\n    --hash=sha256:ab \\\n"
        "    --hash=sha256:cd\n    # via peft\nnumpy==1.0\ntqdm>=4 \\\n    --hash=sha256:ef\n"
    )
    pins = audit.read_lock(tmp_path / "lock.txt")
    assert pins[:2] == [Pin("torch", "2.13.0", 2), Pin("numpy", "1.0", 0)]
    faults = "\n".join(audit.faults_of_lock(pins, project["project"], {"torch": "2.14.0"}))
    assert "torch==2.13.0, tested was 2.14.0" in faults
    assert "numpy==1.0 has no hash" in faults
    assert "tqdm>=4 has no version" in faults
    assert "zarr, a dependency, is missing" in faults


def test_every_dependency_states_a_licence_that_is_allowed(project: dict[str, Any]) -> None:
    found = list(audit.installed_licences(audit.PROJECT, (*audit.SHIPPED, "dev")))
    packages = {licence.package for licence in found}
    assert {"torch", "jinja2", "markupsafe", "pytest"} <= packages  # of dependencies, too
    assert list(audit.faults_of_licences(found, project["tool"]["audit"]["licences"])) == []


def test_other_licences_and_none_are_refused() -> None:
    stated = [
        Licence("one", "1", ("MIT", "GPL-3.0-only")),
        Licence("two", "2", ()),
        Licence("three", "3", ("MIT",)),
    ]
    assert [line.partition(":")[0] for line in audit.faults_of_licences(stated, ["MIT"])] == [
        "one==1 states GPL-3.0-only",
        "two==2 states no licence",
    ]


def test_what_pip_audit_did_not_ask_is_not_audited() -> None:
    vulnerable = {"id": "CVE-1", "fix_versions": ["2.1", "3.0"]}
    packages = [
        {"name": "one", "version": "1.0", "vulns": []},
        {"name": "two", "version": "2.0", "vulns": [vulnerable]},
        {"name": "three", "skip_reason": "three was not found"},
    ]
    answer = json.dumps({"dependencies": packages, "fixes": []})
    assert audit.judged(answer, "") == (
        ["two==2.0: CVE-1, mended in 2.1, 3.0"],
        ["three was not found"],
    )
    found, not_asked = audit.judged("", "Traceback ...\nConnectionError: no route\n")
    assert found == []
    assert not_asked == ["pip-audit could not ask: ConnectionError: no route"]


@pytest.mark.parametrize(
    ("vulnerable", "not_asked", "code"),
    [
        ([], [], 0),
        (["CVE-1"], ["two"], audit.WRONG),
        ([], [f"one {n}" for n in range(50)], audit.NOT_ASKED),
    ],
)
def test_the_exit_code_says_how_it_went(
    vulnerable: list[str],
    not_asked: list[str],
    code: int,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", ["audit"])
    monkeypatch.setattr(audit, "advisories", lambda file: (vulnerable, not_asked))
    if code:
        with pytest.raises(SystemExit) as ended:
            audit.main()
        assert ended.value.code == code
    else:
        audit.main()
    printed = capsys.readouterr()
    assert ("no known vulnerabilities" in printed.out) == (code == 0)
    assert ("NOT AUDITED for vulnerabilities (50 answers missing)" in printed.err) == (
        code == audit.NOT_ASKED
    )
    assert printed.err.count("one") <= audit.MOST_SHOWN


def test_outside_of_a_checkout_it_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["audit"])
    with pytest.raises(audit.AuditError, match="in a checkout"):
        audit.main()
