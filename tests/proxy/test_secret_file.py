"""Files that hold secrets: what another user could do to them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from grille.proxy import secret_file
from grille.proxy.secret_file import Exposed

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
OTHER = 65534
both = pytest.mark.parametrize("look", [secret_file.read, secret_file.check])
Look = Callable[[Path], object]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "kept" / "key.hex"
    path.parent.mkdir(mode=0o700)
    path.write_text("hunter2")
    path.chmod(0o600)
    return path


def refused(look: Look, path: Path, what: str, fix: str = "") -> None:
    with pytest.raises(Exposed, match=re.escape(what)) as caught:
        look(path)
    assert fix in caught.value.fix
    assert "hunter2" not in f"{caught.value!r} {caught.value.what} {caught.value.fix}"


@both
def test_a_file_of_our_own(secret: Path, look: Look) -> None:
    assert look(secret) in (b"hunter2", None)


@both
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o601, 0o666])
def test_a_file_that_others_can_reach(secret: Path, look: Look, mode: int) -> None:
    secret.chmod(mode)
    refused(look, secret, f"can be read or changed by others (mode {mode:04o})", f"chmod 600 {secret}")


@root
@both
def test_a_file_of_somebody_else(secret: Path, look: Look) -> None:
    os.chown(secret, OTHER, OTHER)
    refused(look, secret, f"belongs to another user (uid {OTHER})", f"chown {os.geteuid()} {secret}")


@root
@both
def test_a_group_may_read_what_root_owns(secret: Path, look: Look) -> None:
    secret.chmod(0o640)
    look(secret)
    secret.chmod(0o660)
    refused(look, secret, "mode 0660")


@both
def test_links_as_kubernetes_mounts_secrets(secret: Path, tmp_path: Path, look: Look) -> None:
    mount = tmp_path / "mount"
    (mount / "..2026_11_27").mkdir(parents=True)
    mount.chmod(0o1777)
    real = mount / "..2026_11_27" / "key.hex"
    real.write_text("mounted")
    real.chmod(0o600)
    (mount / "..data").symlink_to("..2026_11_27")
    (mount / "key.hex").symlink_to("..data/key.hex")
    assert look(mount / "key.hex") in (b"mounted", None)


@both
def test_a_link_in_a_directory_that_others_can_write(secret: Path, tmp_path: Path, look: Look) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    (loose / "key.hex").symlink_to(secret)
    refused(look, loose / "key.hex", f"through {loose}, which others can change", f"chmod go-w {loose}")
    loose.chmod(0o775)
    refused(look, loose / "key.hex", f"through {loose}, which others can change")


@both
def test_a_link_into_a_directory_that_others_can_write(secret: Path, tmp_path: Path, look: Look) -> None:
    secret.parent.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(secret)
    refused(look, link, f"through {secret.parent}, which others can change")
    above = tmp_path / "above"
    above.symlink_to("kept")
    refused(look, above / ".." / "kept" / "key.hex", f"through {secret.parent}")
    assert look(secret) in (b"hunter2", None)  # without a link, owner and mode of the file are what counts


@root
@both
def test_a_link_of_somebody_else(secret: Path, tmp_path: Path, look: Look) -> None:
    link = tmp_path / "link"
    link.symlink_to(secret)
    os.lchown(link, OTHER, OTHER)
    refused(look, link, f"link {link} of another user (uid {OTHER})", "chown -h")


@both
def test_links_in_a_circle_and_links_to_nothing(tmp_path: Path, look: Look) -> None:
    for name, target in (("a", "b"), ("b", "a"), ("c", "nothing")):
        (tmp_path / name).symlink_to(target)
    for name in ("a", "c", "nothing"):
        with pytest.raises(OSError):
            look(tmp_path / name)


def test_what_is_no_file_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(secret_file.read, tmp_path / "pipe", "is not a file")
    tmp_path.chmod(0o700)
    with pytest.raises((Exposed, OSError)):
        secret_file.read(tmp_path)


def test_a_long_file_is_not_read_whole(secret: Path) -> None:
    secret.write_bytes(b"x" * (secret_file.MOST_BYTES + 1))
    refused(secret_file.read, secret, "longer than 65536 bytes")
    secret.write_bytes(b"x" * secret_file.MOST_BYTES)
    assert len(secret_file.read(secret)) == secret_file.MOST_BYTES
