"""Files that are whole or absent, and JSON that is one object."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lens_rnn.errors import ArtifactError, DataError
from lens_rnn.files import read_json, write_atomically, write_json, write_text

import pytest


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_there_and_others_may_read_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "text", "καφές")
    write_json(tmp_path / "new" / "object", {"kl": 1.0})
    assert (tmp_path / "new" / "text").read_text(encoding="utf-8") == "καφές"
    assert read_json(tmp_path / "new" / "object") == {"kl": 1.0}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "new").iterdir())


def test_json_without_a_finite_number_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "object", {"kl": 1.0})
    before = content(tmp_path)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "object", {"layers": [{"kl": bad}]})
    assert content(tmp_path) == before


def fails_at_once(file: BinaryIO) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fails_half_way(file: BinaryIO) -> None:
    file.write(b"x" * 2**20)
    raise OSError(errno.ENOSPC, "No space left on device")


def is_interrupted(file: BinaryIO) -> None:
    file.write(b"x" * 2**20)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("write", "error"), [(fails_at_once, OSError), (fails_half_way, OSError), (is_interrupted, KeyboardInterrupt)]
)
def test_an_error_while_writing_leaves_the_old_file_and_no_other(
    tmp_path: Path, write: Callable[[BinaryIO], None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write_atomically(tmp_path / "new", write)
    assert content(tmp_path) == {}
    (tmp_path / "old").write_bytes(b"what was there")
    with pytest.raises(error) as caught:
        write_atomically(tmp_path / "old", write)
    assert content(tmp_path) == {"old": b"what was there"}
    if error is OSError:
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "old"))


def test_an_error_of_the_writer_itself_is_not_taken_for_one_of_the_disk(tmp_path: Path) -> None:
    def cannot_read_its_source(file: BinaryIO) -> None:
        (tmp_path / "source").read_bytes()

    with pytest.raises(FileNotFoundError, match="source"):
        write_atomically(tmp_path / "copy", cannot_read_its_source)
    with pytest.raises(RuntimeError, match="of its own"):
        write_atomically(tmp_path / "copy", lambda file: (_ for _ in ()).throw(RuntimeError("of its own")))
    assert content(tmp_path) == {}


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("", "is not JSON"),
        ("{'d_model': 4}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"d_model": ' + "9" * 5_000 + "}", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        ("[1]", "does not hold a JSON object"),
        ("null", "does not hold a JSON object"),
    ],
)
def test_json_that_is_damaged_is_refused_by_name(tmp_path: Path, text: str | bytes, trouble: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for error in (ArtifactError, DataError):
        with pytest.raises(error, match=trouble) as caught:
            read_json(path, error)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
