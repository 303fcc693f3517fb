"""Claims: files with which processes share out work, also between machines that see one folder.

Who makes the file has the claim. Its time is kept fresh; without a sign of life for CLAIM seconds it is anybody's.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pointadapt.files import read_json

#: Seconds between signs of life of a claim, and after how many it is void.
BEAT, CLAIM = 20, 180


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Yields whether the claim is ours; while it is, the file's time is kept fresh."""
    if not take(file):
        yield False
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            file.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        stop.set()
        thread.join()
        file.unlink(missing_ok=True)


def take(file: Path) -> bool:
    """Make the claim file, or take over one that shows no sign of life."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not put_aside(file):
                return False
            continue
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        os.close(descriptor)
        return True
    return False


def put_aside(file: Path) -> bool:
    """Remove a void claim; whether the place is free. Of several that try at once, one succeeds."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        if not is_void(file):
            return False
        os.rename(file, aside)
    except FileNotFoundError:  # given up, or taken over, since we looked
        return True
    free = is_void(aside)
    if not free:  # not the claim we looked at: another process took that one over, and this is its own
        with suppress(OSError):
            os.link(aside, file)  # unlike a rename, never onto a third one's
    aside.unlink()
    return free


def is_void(file: Path) -> bool:
    """Whether the claim's owner shows no sign of life. Raises FileNotFoundError where there is no claim."""
    return time.time() - file.stat().st_mtime >= CLAIM or is_dead(file)


def is_dead(file: Path) -> bool:
    """Whether the claim's process ran on this machine and is gone."""
    import psutil

    try:
        owner = read_json(file)
    except (ValueError, OSError):
        return False
    return owner["host"] == socket.gethostname() and not psutil.pid_exists(owner["pid"])
