"""Claims: files with which processes share out work, also between machines that see one folder.

Who makes the file has the claim, while its process runs. Where that cannot be seen, on another machine or in another
container, the file's time tells, which is kept fresh: without a sign of life for CLAIM seconds it is anybody's.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

#: Seconds between signs of life of a claim, and after how many it is void.
BEAT, CLAIM = 20, 180
#: Seconds by which the start of one process may seem to differ when the clock is set.
DRIFT = 60


@dataclass(frozen=True)
class Claim:
    """A claim that this process made."""

    file: Path
    token: str

    def held(self) -> bool:
        """Whether it still is ours: a process that was asleep for long may have lost it."""
        with suppress(OSError, ValueError, LookupError, TypeError):  # gone; being written; of another version
            return json.loads(self.file.read_text())["token"] == self.token
        return False


@contextmanager
def claimed(file: Path) -> Iterator[Claim | None]:
    """Yields the claim, None where it is another's; while it is ours, the file's time is kept fresh."""
    claim = take(file)
    if claim is None:
        yield None
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):  # a network's folder comes back
                if claim.held():
                    os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        stop.set()
        thread.join()
        if claim.held():
            file.unlink(missing_ok=True)


def take(file: Path) -> Claim | None:
    """Make the claim file, or take over one that is void; None where it is another's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    claim = Claim(file, secrets.token_hex(8))
    for _ in range(2):
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not put_aside(file):
                return None
            continue
        owner = {"pid": os.getpid(), "place": place(), "started": psutil.Process().create_time(), "token": claim.token}
        os.write(descriptor, json.dumps(owner).encode())
        os.close(descriptor)
        return claim
    return None


def put_aside(file: Path) -> bool:
    """Remove a void claim; whether the place is free. Of several that try at once, one succeeds."""
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
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
    """Whether the claim's owner is gone, or shows no sign of life. Raises FileNotFoundError where there is no claim."""
    lives = owner_lives(file)
    return time.time() - file.stat().st_mtime >= CLAIM if lives is None else not lives


def owner_lives(file: Path) -> bool | None:
    """Whether the process that made the claim runs, asleep or not; None where that cannot be seen from here."""
    try:
        owner = json.loads(file.read_text())
        if owner["place"] != place():
            return None
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < DRIFT
    except psutil.NoSuchProcess:
        return False
    except (ValueError, LookupError, TypeError, psutil.Error):  # being written; of another version
        return None


@cache
def place() -> str:
    """Where the number of a process means one process: the machine since it was started, and the container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
