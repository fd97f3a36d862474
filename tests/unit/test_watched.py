"""Files that are replaced while they are in use."""

import os
from pathlib import Path

import pytest

from sfumato.common import watched
from sfumato.common.certificates import checked
from sfumato.common.watched import WatchedFiles
from tests.certificates import Authority


def test_a_replaced_file_is_read_again_and_a_broken_one_leaves_the_old_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.0)
    path = tmp_path / "number"
    path.write_text("1")
    files = WatchedFiles([path], lambda contents: int(contents[0]))
    first = files.current()
    assert (first, files.current() is first) == (1, True)
    path.write_text("12")
    assert files.current() == 12
    path.write_text("no number")
    assert files.current() == 12
    path.unlink()
    assert files.current() == 12
    path.write_text("1234")
    assert files.current() == 1234


def test_a_link_that_leads_elsewhere_is_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes replaces a mounted Secret so."""
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "data").symlink_to("one")
    files = WatchedFiles([tmp_path / "data" / "file"], lambda contents: contents[0].decode())
    assert files.current() == "one"
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", tmp_path / "data")
    assert files.current() == "two"


def test_a_missing_file_fails_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        WatchedFiles([tmp_path / "nowhere"], lambda contents: contents)


def test_a_key_of_another_certificate_is_refused() -> None:
    authority = Authority.new("ca")
    (cert, key), (_, other) = authority.issue("one"), authority.issue("two")
    assert checked(cert, key, authority.pem).cert == cert
    with pytest.raises(ValueError, match="does not belong"):
        checked(cert, other, authority.pem)
    with pytest.raises(ValueError, match="PEM"):
        checked(cert, key, b"no certificate")
