"""SoftHSM: a PKCS#11 token in files, with keys for tests.  Where it is not installed, they are skipped and say so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PIN = "7305-1906"
LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


def library() -> Path | None:
    """Where SoftHSM's library is; None if it or its tool is not installed."""
    found = next((Path(name) for name in LIBRARIES if Path(name).exists()), None)
    return found if found is not None and shutil.which("softhsm2-util") else None


def missing() -> str:
    """Why the tests cannot run; empty if they can."""
    if library() is None:
        return "SoftHSM is not installed (Debian: softhsm2)"
    try:
        import pkcs11  # noqa: F401
    except ImportError:
        return "python-pkcs11 is not installed (extra pkcs11)"
    return ""


class SoftHsm:
    """Tokens in a directory of their own.  The library finds them by the environment variable SOFTHSM2_CONF."""

    def __init__(self, directory: Path) -> None:
        found = library()
        assert found is not None
        self.module = found
        (directory / "tokens").mkdir(parents=True)
        self.configuration = directory / "softhsm2.conf"
        self.configuration.write_text(
            f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )

    def environment(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.configuration)}

    def token(self, label: str) -> None:
        """Initialize one more token with `PIN`."""
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "9" * 8],
            env={**os.environ, **self.environment()}, check=True, capture_output=True,
        )  # fmt: skip

    def key(self, token: str, label: str, value: bytes, attributes: Mapping[str, Any] | None = None) -> None:
        """Put a secret key on a token: readable, unless the attributes say otherwise.  SOFTHSM2_CONF must be set."""
        import pkcs11
        from pkcs11 import Attribute

        kind = pkcs11.KeyType.AES if len(value) == 32 else pkcs11.KeyType.GENERIC_SECRET
        chosen = {"SENSITIVE": False, "EXTRACTABLE": True, **(attributes or {})}
        made = pkcs11.lib(str(self.module))
        try:
            with made.get_token(token_label=token).open(rw=True, user_pin=PIN) as session:
                session.create_object(
                    {
                        Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: kind,
                        Attribute.LABEL: label, Attribute.TOKEN: True, Attribute.PRIVATE: True,
                        Attribute.VALUE: value, **{Attribute[name]: item for name, item in chosen.items()},
                    }
                )  # fmt: skip
        finally:
            made.finalize()
