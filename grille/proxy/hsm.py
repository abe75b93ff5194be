"""Keys that a PKCS#11 token (an HSM, or SoftHSM) holds, read or used to unwrap others while Grille starts.

FF1 takes ten AES calls a value, one after the other, too many to ask a token for each: so the material is needed in
this process, and what a token can give is that it is nowhere on disk.  A session lives within one ``with`` and the
library is finalized at its end.  PKCS#11 forbids a child to use what its parent initialized; after the ``with`` there
is nothing that a process forked from this one could share.

The library is python-pkcs11 (extra ``pkcs11``), imported only here.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from pkcs11 import Key as Pkcs11Key
    from pkcs11 import Session, Token

WRAPPED_BYTES: Final = (40, 72)
"""Lengths of wrapped keys: 32 or 64 bytes and RFC 3394's 8."""


class HsmError(Exception):
    """A key could not be had.  Names token and key by their labels; never the PIN or material.

    ``part`` is what to look at: ``module``, ``token``, ``pin_file`` of the configuration, or the ``key``.
    """

    def __init__(self, part: Literal["module", "token", "pin_file", "key"], what: str, fix: str) -> None:
        super().__init__(what)
        self.part = part
        self.what = what
        self.fix = fix


class Hsm:
    """One token, by the label that it was initialized with; a context manager that logs in and out.

    Entering raises `HsmError`.  A wrong PIN counts on the token, which locks itself after a few: so the PIN is tried
    once, and not at all where the token says that one try is left.
    """

    def __init__(self, module: Path, token: str, pin: str) -> None:
        self._module = module
        self._token = token
        self._pin = pin
        self._library: Any = None
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"Hsm(module={str(self._module)!r}, token={self._token!r})"

    def __enter__(self) -> Hsm:
        try:
            import pkcs11
        except ImportError:
            what = "needs the package python-pkcs11, which is not installed"
            raise HsmError("module", what, "Install Grille with its extra pkcs11.") from None
        try:
            self._library = pkcs11.lib(str(self._module))
        except pkcs11.PKCS11Error as error:
            # A library that cannot be loaded has no class of its own; the loader's words hold nothing but the path.
            what = "is not a PKCS#11 library that can be loaded"
            reason = "" if type(error) is pkcs11.PKCS11Error else f" ({type(error).__name__})"
            raise HsmError("module", what + reason, "Name the library of your token.") from None
        try:
            self._session = self._open(self._find())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def read(self, label: str) -> bytes:
        """The material of the secret key with this label.  Raises `HsmError`."""
        import pkcs11

        key = self._key(label)
        try:
            return bytes(key[pkcs11.Attribute.VALUE])
        except (pkcs11.AttributeSensitive, pkcs11.AttributeTypeInvalid):
            raise HsmError(
                "key", f"does not leave the token {self._token!r}: it is sensitive or not extractable",
                "Keep it there and let it unwrap: give the wrapped key in file.",
            ) from None  # fmt: skip
        except pkcs11.PKCS11Error as error:
            raise self._failed(error) from None

    def unwrap(self, label: str, wrapped: bytes) -> bytes:
        """What the AES key with this label unwraps (RFC 3394); that key stays in the token.  Raises `HsmError`."""
        import pkcs11
        from pkcs11 import Attribute

        if len(wrapped) not in WRAPPED_BYTES:
            raise HsmError(
                "key", f"is given {len(wrapped)} bytes to unwrap instead of {' or '.join(map(str, WRAPPED_BYTES))}",
                "Wrap 32 (fpe) or 64 bytes (siv) with AES key wrap (RFC 3394).",
            )  # fmt: skip
        key = self._key(label)
        if not isinstance(key, pkcs11.UnwrapMixin):
            raise HsmError(
                "key", f"may not unwrap on the token {self._token!r}", "Make an AES key with the attribute CKA_UNWRAP."
            )
        try:
            # An object of this session, gone with it.
            made = key.unwrap_key(
                pkcs11.ObjectClass.SECRET_KEY, pkcs11.KeyType.GENERIC_SECRET, wrapped,
                mechanism=pkcs11.Mechanism.AES_KEY_WRAP, capabilities=pkcs11.MechanismFlag(0),
                template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
            )  # fmt: skip
            return bytes(made[Attribute.VALUE])
        except pkcs11.PKCS11Error as error:
            raise HsmError(
                "key", f"does not unwrap the file on the token {self._token!r} ({type(error).__name__})",
                "Wrap the key under this one, with AES key wrap (RFC 3394).",
            ) from None  # fmt: skip

    def _find(self) -> Token:
        import pkcs11

        try:
            return self._library.get_token(token_label=self._token)  # type: ignore[no-any-return]
        except pkcs11.NoSuchToken:
            raise HsmError("token", "is the label of no token here", "Name a token that is initialized.") from None
        except pkcs11.MultipleTokensReturned:
            raise HsmError("token", "is the label of more than one token", "Give each a label of its own.") from None
        except pkcs11.PKCS11Error as error:
            raise self._failed(error) from None

    def _open(self, token: Token) -> Session:
        import pkcs11

        if pkcs11.TokenFlag.USER_PIN_LOCKED & token.flags:
            raise HsmError("token", "has a locked PIN", "Have its security officer set a new one.")
        if pkcs11.TokenFlag.USER_PIN_FINAL_TRY & token.flags:
            what = "has one try of its PIN left, which is not taken"
            raise HsmError("token", what, "Log in once by hand, with the right PIN.")
        try:
            return token.open(user_pin=self._pin)
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            what = f"does not hold the PIN of the token {self._token!r}"
            raise HsmError("pin_file", what, "Correct it; a token locks itself after a few wrong ones.") from None
        except pkcs11.PKCS11Error as error:
            raise self._failed(error) from None

    def _key(self, label: str) -> Pkcs11Key:
        import pkcs11
        from pkcs11 import Attribute

        assert self._session is not None  # noqa: S101 (only within the with)
        try:
            found = list(
                self._session.get_objects({Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY, Attribute.LABEL: label})
            )
        except pkcs11.PKCS11Error as error:
            raise self._failed(error) from None
        if len(found) != 1:
            many = "more than one secret key" if found else "no secret key"
            raise HsmError("key", f"is the label of {many} on the token {self._token!r}", "Correct the label.")
        return found[0]  # type: ignore[return-value]

    def _failed(self, error: Exception) -> HsmError:
        return HsmError("token", f"does not answer as it should ({type(error).__name__})", "Look at the token.")

    def _end(self) -> None:
        import pkcs11

        session, self._session = self._session, None
        library, self._library = self._library, None
        self._pin = ""
        try:
            if session is not None:
                session.close()
        except pkcs11.PKCS11Error:
            pass  # the library is finalized all the same, which ends every session
        finally:
            if library is not None:
                library.finalize()
