"""``grille tokens setup``: what Vault's Transform engine needs for a configuration, shown and, if wanted, made.

It makes what is missing and extends lists; it changes nothing that stored tokens depend on (alphabet, template, type,
source of the tweak): with another one they would decode to something else.  Administration goes through ``hvac``.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from grille.proxy.config import Config
from grille.proxy.providers import vault_transformations
from grille.proxy.vault_login import LoginFailed, client, log_in
from grille.tokenization.transformation import ALPHABETS
from grille.tokenization.vault import VaultTransformation

FAILED: Final = 1
USAGE: Final = 2


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not in Vault as it should be."""

    sign: str
    """``+`` missing, ``~`` to be extended, ``!`` there and wrong."""
    what: str
    make: Callable[[], object] | None = None
    """Puts it right; None if that has to be done by hand."""


class Unusable(Exception):
    """Vault, or the token for it, cannot be used; the message is for the user."""


def run(config: Config, *, apply: bool, token_file: Path | None, out: TextIO, err: TextIO) -> int:
    """Show the differences, and put right what can be; the exit status.  Blocks.  Raises `ConfigError`."""
    transformations = vault_transformations(config)
    if not transformations:
        print('grille: no transformation has provider = "vault"', file=err)
        return USAGE
    try:
        token = _token(token_file) if token_file is not None else log_in(config.vault)
        with_token = client(config.vault, token)
        try:
            return _run(Engine(with_token, config, transformations), apply, out)
        finally:
            with_token.adapter.close()
    except (Unusable, LoginFailed) as error:
        print(f"grille: {error}", file=err)
        return USAGE


def _run(engine: Engine, apply: bool, out: TextIO) -> int:
    found = list(engine.differences())
    for difference in found:
        print(f"{difference.sign} {difference.what}", file=out)
    applied = 0
    if apply and found:
        for difference in found:
            if difference.make is not None:
                engine.asked(difference.make)
                applied += 1
        found = list(engine.differences())
        for difference in found:
            print(f"left: {difference.sign} {difference.what}", file=out)
    if all(difference.sign != "+" for difference in found):
        for wrong in engine.checks(out):
            found.append(wrong)
            print(f"{wrong.sign} {wrong.what}", file=out)
    print(f"setup differences={len(found)} applied={applied}", file=out)
    return FAILED if found else 0


class Engine:
    """A Transform engine, beside what a configuration wants of it."""

    def __init__(self, hvac_client: Any, config: Config, transformations: Sequence[VaultTransformation]) -> None:
        self._transform = hvac_client.secrets.transform
        self._at = {"mount_point": config.vault.mount}
        self._role = config.vault.role
        self._wanted = transformations

    def differences(self) -> Iterator[Difference]:
        """In the order in which they can be put right.  Raises `Unusable`."""
        for alphabet in dict.fromkeys(each.alphabet for each in self._wanted):
            yield from self._alphabet(alphabet)
        for each in self._wanted:
            yield from self._template(each)
        for each in self._wanted:
            yield from self._transformation(each)
        yield from self._roles()

    def checks(self, out: TextIO) -> Iterator[Difference]:
        """Whose key is another than that of its check; of those without a check, which to write.  Raises `Unusable`."""
        from hvac.exceptions import Forbidden, InvalidRequest

        for each in self._wanted:
            item = {"value": each.example, "transformation": each.vault_name, "tweak": each.tweak}
            encode = functools.partial(self._transform.encode, self._role, batch_input=[item], **self._at)
            try:
                answer = self.asked(encode, Forbidden, InvalidRequest)
                token = answer["data"]["batch_results"][0]["encoded_value"]
            except Forbidden:
                print(f"transformation {each.vault_name}: this token may not encode, so its key was not looked at",
                      file=out)  # fmt: skip
                continue
            except (InvalidRequest, LookupError, TypeError):
                yield Difference("!", f"transformation {each.vault_name}: does not encode by the role {self._role}")
                continue
            if not each.check:
                print(f'transformation {each.vault_name}: give it check = "{token}"', file=out)
            elif token != each.check:
                yield Difference("!", f"transformation {each.vault_name}: its key is not that of its check")

    def asked(self, ask: Callable[[], object], *passed: type[Exception]) -> Any:
        """What hvac answers.  Raises `Unusable`, without Vault's own text, but for errors of the kinds in `passed`."""
        from hvac.exceptions import Forbidden, VaultError

        try:
            return ask()
        except passed:
            raise
        except Forbidden:
            raise Unusable("Vault does not let this token administer the engine (vault.mount)") from None
        except VaultError as error:
            raise Unusable(f"Vault refuses ({type(error).__name__})") from None
        except OSError as error:  # all of requests' errors are
            raise Unusable(f"Vault does not answer ({type(error).__name__})") from None

    def _read(self, read: Callable[..., object], name: str) -> dict[str, Any] | None:
        from hvac.exceptions import InvalidPath

        try:
            answer = self.asked(lambda: read(name, **self._at), InvalidPath)
        except InvalidPath:
            return None
        try:
            return dict(answer["data"])
        except (LookupError, TypeError, ValueError):
            raise Unusable("Vault's answer is not understood") from None

    def _alphabet(self, alphabet: str) -> Iterator[Difference]:
        name, characters = f"grille-{alphabet}", ALPHABETS[alphabet]
        found = self._read(self._transform.read_alphabet, name)
        if found is None:
            yield Difference(
                "+", f"alphabet {name}: {characters}",
                lambda: self._transform.create_or_update_alphabet(name, characters, **self._at),
            )  # fmt: skip
        elif found.get("alphabet") != characters:
            yield _wrong(f"alphabet {name}", found.get("alphabet"), characters)

    def _template(self, each: VaultTransformation) -> Iterator[Difference]:
        name, pattern, alphabet = f"grille-{each.vault_name}", each.template.pattern, f"grille-{each.alphabet}"
        found = self._read(self._transform.read_template, name)
        if found is None:
            yield Difference(
                "+", f"template {name}: {pattern} over {alphabet}",
                lambda: self._transform.create_or_update_template(name, "regex", pattern, alphabet, **self._at),
            )  # fmt: skip
            return
        for key, wanted in (("pattern", pattern), ("alphabet", alphabet), ("type", "regex"), ("encode_format", "")):
            if (found.get(key) or "") != wanted:
                yield _wrong(f"template {name}: {key}", found.get(key), wanted)

    def _transformation(self, each: VaultTransformation) -> Iterator[Difference]:
        name, template = each.vault_name, f"grille-{each.vault_name}"
        found = self._read(self._transform.read_transformation, name)

        def write(roles: Sequence[str]) -> Callable[[], object]:
            return lambda: self._transform.create_or_update_fpe_transformation(
                name, template, "supplied", list(roles), **self._at
            )

        if found is None:
            what = f"transformation {name}: fpe, template {template}, tweak supplied, for the role {self._role}"
            yield Difference("+", what, write([self._role]))
            return
        wrong = False
        templates = found.get("templates") or [found.get("template")]
        for key, is_there, wanted in (
            ("type", found.get("type"), "fpe"),
            ("template", ",".join(str(each) for each in templates), template),
            ("tweak_source", found.get("tweak_source"), "supplied"),
        ):
            if is_there != wanted:
                wrong = True
                yield _wrong(f"transformation {name}: {key}", is_there, wanted)
        algorithm = found.get("fpe_algorithm")
        if str(algorithm).lower() != "ff1":
            wrong = True
            said = algorithm or "FF3-1 (no fpe_algorithm: a Vault before 2.1)"
            yield Difference("!", f"transformation {name}: its algorithm is {said}, not FF1, the one that NIST keeps")
        roles = [str(role) for role in found.get("allowed_roles") or []]
        if not wrong and not any(
            role == self._role or (role.endswith("*") and self._role.startswith(role[:-1])) for role in roles
        ):
            what = f"transformation {name}: allowed_roles {', '.join(roles) or 'none'}, and {self._role}"
            yield Difference("~", what, write([*roles, self._role]))

    def _roles(self) -> Iterator[Difference]:
        names = [each.vault_name for each in self._wanted]
        found = self._read(self._transform.read_role, self._role)
        has = [str(name) for name in (found or {}).get("transformations") or []]
        missing = [name for name in names if name not in has]
        if missing:
            yield Difference(
                "+" if found is None else "~", f"role {self._role}: {', '.join([*has, *missing])}",
                lambda: self._transform.create_or_update_role(self._role, [*has, *missing], **self._at),
            )  # fmt: skip


def _wrong(what: str, found: object, wanted: str) -> Difference:
    return Difference("!", f'{what} is "{found}", not "{wanted}": stored tokens depend on it, so it is not changed')


def _token(path: Path) -> str:
    """Raises `Unusable`."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise Unusable(f"{path} can be read or changed by others (mode {mode:04o}): chmod 600 {path}")
        token = path.read_text(encoding="ascii").partition("\n")[0].strip()
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{path}: is not a token") from None
    if not token:
        raise Unusable(f"{path}: is empty")
    return token
