"""What the operating system refuses: a full or read-only disk, too many open files, a long name.

Libraries say it in their own ways: torch's writer trips over its position in a file that a full
disk has cut, Rust's and gloo's errors quote the system's text. `naming` makes one OSError of all,
with its number and the file's name, and `explained` says what to do about it.
"""

import errno
import os
import resource
import shutil
from pathlib import Path
from types import TracebackType

from embedcache.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_HANDLES = (errno.EMFILE, errno.ENFILE)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
QUOTED = (*NO_SPACE, *NO_HANDLES, *FORBIDDEN, errno.ENAMETOOLONG, errno.EIO)


FEWEST_HANDLES = 32  # with 24, gloo fails to set up; with 12, it ends the process


class naming:
    """A context in which the system's errors, in whatever form, become OSErrors of this file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise the system's error with the file's name, unless it names one elsewhere."""
        found = None if error is None else system_error(error)
        if found is None:
            return
        if found.filename is not None:
            named = Path(os.fsdecode(found.filename))
            if named == self.target or not named.is_relative_to(self.target.parent):
                return
        raise OSError(found.errno, found.strerror, str(self.target)) from error


def check_handles() -> None:
    """Raise OSError where this process may open fewer files than a training needs.

    What torch's rendezvous and gloo meet later is an abort, or an error that names nothing.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < FEWEST_HANDLES:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error that an exception is, quotes, or hides."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, UserError | AssertionError):
        return None
    if not isinstance(error, Exception) and not is_panic(error):
        return None
    for number in QUOTED:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    hidden = error.__context__  # torch.save's, whose end of the file is not where it should be
    if isinstance(error, RuntimeError) and isinstance(hidden, OSError) and hidden.errno in QUOTED:
        return hidden
    return None


def is_panic(error: BaseException) -> bool:
    """Return whether Rust code gave up, as polars' does, in what is no Exception."""
    return type(error).__name__ == "PanicException"


def is_explained(error: OSError) -> bool:
    """Return whether a person can do something about it: it names a file, or what is lacking."""
    return error.filename is not None or error.errno in QUOTED


def explained(error: OSError) -> str:
    """Return what is wrong, where, and how to mend it."""
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    where = "" if path is None else f"{str(path)[:200]}: "
    return f"{where}{error.strerror}{_remedy(error.errno, path)}"


def _remedy(number: int | None, path: Path | None) -> str:
    if number in NO_SPACE:
        free = "" if path is None else f" ({_free_bytes(path) / 1e6:,.1f} MB free)"
        return f"{free}; free some space, or choose a place elsewhere"
    if number in NO_HANDLES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f" (a process may have {limit}); allow more: ulimit -n 4096"
    if number in FORBIDDEN and path is not None and is_closed(path):
        return "; this user may not read it: change its permissions, or ask its owner"
    if number in FORBIDDEN:
        return "; choose a place where this user may write, or change its permissions"
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "; a file is where a folder is to be: choose a place elsewhere"
    if number == errno.ENAMETOOLONG:
        return "; choose a shorter name"
    return ""


def is_closed(path: Path) -> bool:
    """Return whether a path, or the folder below which it would be, is closed to this user."""
    place = next((each for each in (path, *path.parents) if os.path.lexists(each)), Path())
    return not os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0))


def _free_bytes(path: Path) -> int:
    """Return what is free where a path is, or is to be."""
    place = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    return shutil.disk_usage(place).free
