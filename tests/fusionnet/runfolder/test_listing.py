"""A run's list names what it wrote before it is there; deleting follows it, and nothing else."""

import os
from pathlib import Path

import pytest

from embedcache.errors import RunError
from embedcache.files import atomic_write
from fusionnet.runfolder.listing import (
    LIST,
    begin_listing,
    check_own,
    clean_up,
    delete_files,
    foreign_files,
    list_files,
    new_id,
    read_listing,
    write_listed,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of a run that has written two files."""
    folder = tmp_path / "run"
    folder.mkdir()
    begin_listing(folder, "tiny", "1")
    list_files(folder, "1", ["a.pt", "plots/by_\u03b1 [x].png"])
    (folder / "plots").mkdir()
    for path in ("a.pt", "plots/by_\u03b1 [x].png"):
        (folder / path).write_text("ours")
    return folder


def test_a_list_holds_what_was_added_once(run: Path) -> None:
    list_files(run, "1", ["a.pt", "b.pt"])
    listing = read_listing(run)
    assert listing is not None
    assert (listing.name, listing.run_id) == ("tiny", "1")
    assert listing.files == {"a.pt", "b.pt", "plots/by_\u03b1 [x].png"}
    assert (run / LIST).read_bytes().count(b"a.pt") == 1
    assert foreign_files(run) == []
    assert new_id() != new_id()


def test_a_line_that_a_kill_cut_off_is_left_out_and_does_not_spoil_the_next(run: Path) -> None:
    with (run / LIST).open("ab") as stream:
        stream.write(b'\n"half')
    list_files(run, "1", ["b.pt"])
    listing = read_listing(run)
    assert listing is not None
    assert listing.files == {"a.pt", "b.pt", "plots/by_\u03b1 [x].png"}


@pytest.mark.parametrize("head", [b"", b"[]", b"{}", b"5", b"\xff", b'{"run": "tiny"}'])
def test_a_damaged_list_is_refused(run: Path, head: bytes) -> None:
    (run / LIST).write_bytes(head)
    with pytest.raises(RunError, match=f"{LIST} is damaged"):
        read_listing(run)


def test_what_is_not_listed_is_never_written_over(run: Path) -> None:
    (run / "README.md").write_text("mine")
    with pytest.raises(RunError, match=r"README\.md, which the run did not write"):
        list_files(run, "1", ["README.md"])
    (run / "adapter").mkdir()
    (run / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds adapter/, which"):
        check_own(run, "adapter")
    check_own(run, "plots")
    with pytest.raises(RunError, match="become the folder of another run"):
        list_files(run, "2", ["b.pt"])


def test_a_file_is_listed_as_it_is_written_unless_it_lies_elsewhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (run, Path("run"), Path("run/plots/..")):  # the run's folder, however it is called
        write_listed(Path("run"), "1", place / "report.html", b"page")
    write_listed(run, "1", tmp_path / "report.html", b"page")
    listing = read_listing(run)
    assert listing is not None
    assert {path for path in listing.files if "report" in path} == {"report.html"}
    assert (tmp_path / "report.html").read_bytes() == (run / "report.html").read_bytes() == b"page"


def test_what_no_run_wrote_is_found_whatever_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / "link").symlink_to(tmp_path / "elsewhere")
    (run / "dangling").symlink_to(tmp_path / "nowhere")
    (run / "theirs" / "inner").mkdir(parents=True)
    (run / "plots" / "mine.png").write_text("mine")
    (run / ".a.pt.partial").write_text("mine")
    assert foreign_files(run) == [
        ".a.pt.partial",
        "dangling",
        "link",
        "plots/mine.png",
        "theirs/",
    ]


def test_deleting_leaves_what_people_added_and_follows_no_link(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "events.1").write_text("precious")
    list_files(run, "1", ["logs/events.1", "gone.pt"])
    (run / "logs").symlink_to(outside)
    (run / "plots" / "mine.png").write_text("mine")
    (run / "empty").mkdir()
    listing = read_listing(run)
    assert listing is not None
    delete_files(run, listing.files)
    assert (outside / "events.1").read_text() == "precious"
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
    assert left == ["empty", "logs", "plots", "plots/mine.png", LIST]


def test_what_killed_writers_left_is_the_runs_own_and_goes(run: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with atomic_write(run / "a.pt") as partial:
            partial.write_text("half")
            os._exit(0)
    os.waitpid(pid, 0)
    assert [path.name for path in run.glob(".a.pt.*")] != []
    assert foreign_files(run) == []
    clean_up(run)
    assert list(run.glob(".a.pt.*")) == []
    assert (run / "a.pt").read_text() == "ours"


def test_a_new_run_takes_the_place_of_the_old_one(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    begin_listing(run, "other", "2")
    listing = read_listing(run)
    assert listing is not None
    assert (listing.name, listing.run_id, listing.files) == ("other", "2", frozenset())
    assert sorted(path.name for path in run.iterdir()) == ["notes.txt", LIST]
