"""Files that are written whole or not at all (to a temporary name in the same folder, then renamed); text in UTF-8."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pointadapt.errors import UserError


def beside(file: Path) -> Path:
    """A hidden name in its folder, with its ending, for one process alone: their numbers repeat in containers."""
    return file.with_name(f".{secrets.token_hex(6)}.{file.name}")


@contextmanager
def written(file: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside ``file``, with its ending; what is there at the end takes the file's place.

    The folder is made where it is missing. After an error nothing is left behind and an earlier file is untouched.
    Raises UserError when the system refuses (a full disk, no permission).
    """
    file = Path(file)
    temporary = beside(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the error above tells: a name too long, a folder that is a file
            temporary.unlink()


def write_text(file: Path | str, text: str) -> None:
    """``text`` in UTF-8. Raises UserError when it cannot be written."""
    write_bytes(file, text.encode())


def write_bytes(file: Path | str, content: bytes) -> None:
    """Raises UserError when it cannot be written."""
    with written(file) as temporary:
        temporary.write_bytes(content)


def read_text(file: Path | str) -> str:
    """The text of a UTF-8 file, without the mark that some editors put first. Raises UserError for other encodings."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: no text in UTF-8 ({error.reason}, byte {error.start}); save it in UTF-8") from error


def read_json(file: Path | str, cure: str = "write or download it again") -> Any:
    """What a JSON file holds. Raises UserError when it is damaged, with what to do about it."""
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: no valid JSON, so damaged ({error}); {cure}") from error
