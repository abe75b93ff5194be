"""Files that hold secrets: whether another user could read, change or exchange one, and reading it only if not.

What a file's mode says is not enough: who owns the file can change the mode, and who can write a directory on the way
can lead a symbolic link elsewhere.  Access control lists are not looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 65536
"""Longest secret file."""
_MOST_LINKS: Final = 40


class Exposed(Exception):
    """Another user could read or change the secret; ``what`` and ``fix`` are sentences for the operator."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


def check(path: Path, *, public: bool = False) -> None:
    """Raises `Exposed`, or OSError if there is no such file.  What is public may be read by others, and not changed."""
    _check_links(path)
    _check_status(path, path.stat(), public=public)


def read(path: Path) -> bytes:
    """What the file holds, if nobody else could have put it there or can read it.

    The file that is read is the file that is checked.  Raises `Exposed`, also for what is no file or is longer than
    `MOST_BYTES`, and OSError.
    """
    _check_links(path)
    # Not blocking: opening a named pipe would wait for whoever writes it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Exposed("is not a file", "Name a file.")
        _check_status(path, status)
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise Exposed(f"is longer than {MOST_BYTES} bytes", "Name the file that holds the secret alone.")
    return found


def _check_status(path: Path, status: os.stat_result, *, public: bool = False) -> None:
    """Only this user may read or change it; its group may read it if root owns it (mounted secrets)."""
    if not _ours(status):
        raise Exposed(
            f"belongs to another user (uid {status.st_uid})",
            f"Run: chown {os.geteuid()} {path}" + ("" if public else f" && chmod 600 {path}"),
        )
    if public:
        if status.st_mode & 0o022:
            raise Exposed("can be changed by others", f"Run: chmod go-w {path}")
        return
    allowed = 0o740 if status.st_uid == 0 else 0o700
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~allowed & 0o077:
        raise Exposed(f"can be read or changed by others (mode {mode:04o})", f"Run: chmod 600 {path}")


def _check_links(path: Path) -> None:
    """Where symbolic links lead to the file, nobody else may be able to lead them elsewhere."""
    directories: list[Path] = []
    linked = False
    for step, status in _way(path):
        if stat.S_ISDIR(status.st_mode):
            directories.append(step)
        elif stat.S_ISLNK(status.st_mode):
            linked = True
            if not _ours(status):
                raise Exposed(
                    f"is reached by the link {step} of another user (uid {status.st_uid})",
                    f"Run: chown -h {os.geteuid()} {step}",
                )
    for directory in directories if linked else ():
        status = directory.stat()
        # In a sticky directory, only who owns an entry can exchange it.
        if not _ours(status) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            raise Exposed(
                f"is reached by a link through {directory}, which others can change",
                f"Run: chmod go-w {directory}, or name the file itself.",
            )


def _ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every entry from the root to the file, following links.  Raises OSError."""
    ahead = list(path.absolute().parts)
    here = Path(ahead.pop(0))
    yield here, here.lstat()
    links = 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            here = here.parent
            continue
        step = here / part
        status = step.lstat()
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            here = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = step.readlink()
        if target.is_absolute():
            here = Path(target.anchor)
        ahead = [part for part in target.parts if part != target.anchor] + ahead
