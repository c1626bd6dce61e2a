"""Commands called in this process."""

from collections.abc import Callable

import pytest

from fusionnet.commands.command import run_job

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command's `main` as its command line would; return exit code, stdout and stderr."""

    def run(main: Callable[[], None], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            run_job(main)
        printed = capsys.readouterr()
        return int(str(done.value.code)), printed.out, printed.err

    return run
