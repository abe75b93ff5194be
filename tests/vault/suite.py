"""``python -m tests.conformance vault-contract``: the contract, asked of the stand-in and of a real Vault by ``hvac``.

The last line is ``suite=vault-contract standin=P/T vault=P/T``, or ``vault=absent`` without VAULT_ADDR and VAULT_TOKEN.
Of a real Vault cases that it is not set up for are not counted; each is named with what is not there.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from grille.proxy.authority import Authority
from tests.vault.contract import CASES, Target, outcome, prepared
from tests.vault.server import Vault

SUITE: Final = "vault-contract"


def tls(directory: Path) -> tuple[ssl.SSLContext, Path, tuple[str, str]]:
    """A server's context that asks for certificates, its CA, and a client's certificate and key."""
    authority = Authority("vault.example")
    authority.write_bundle(directory / "ca.pem")
    server = authority.issue_server().write(directory, "server")
    client = authority.issue("grille").write(directory, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server, server.with_suffix(".key"))
    context.load_verify_locations(directory / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context, directory / "ca.pem", (str(client), str(client.with_suffix(".key")))


@contextlib.contextmanager
def standing_in(directory: Path) -> Iterator[Target]:
    """The stand-in, with TLS, ready for the cases."""
    context, ca, certificate = tls(directory)
    with Vault(tls=context) as vault:
        target = Target(vault.url, vault.root, verify=str(ca), certificate=certificate, ca=ca)
        with prepared(target):
            yield target


@contextlib.contextmanager
def real() -> Iterator[Target]:
    """The Vault that the environment names."""
    shown = os.environ.get("VAULT_CLIENT_CERT"), os.environ.get("VAULT_CLIENT_KEY")
    ca = os.environ.get("VAULT_CLIENT_CA")
    target = Target(
        os.environ["VAULT_ADDR"].rstrip("/"),
        os.environ["VAULT_TOKEN"],
        verify=os.environ.get("VAULT_CACERT") or True,
        namespace=os.environ.get("VAULT_NAMESPACE"),
        certificate=(shown[0], shown[1]) if shown[0] and shown[1] else None,
        ca=Path(ca) if ca else None,
    )
    with prepared(target):
        yield target


def run(where: str, target: Target) -> tuple[int, int]:
    """All cases: passed, and run."""
    passed = total = 0
    for name in CASES:
        said = outcome(name, target)
        if said.startswith("absent: "):
            print(f"{where}: not run, {said}: {name}")
            continue
        total += 1
        passed += said == "ok"
        if said != "ok":
            print(f"{where}: {name}: {said}")
    return passed, total


def main(scratch: Path) -> int:
    """Run, and print the last line; 1 if a case failed, 2 if a server cannot be used."""
    with standing_in(scratch) as target:
        passed, total = run("standin", target)
    wrong = passed != total
    vault = "absent"
    if os.environ.get("VAULT_ADDR") and os.environ.get("VAULT_TOKEN"):
        try:
            with real() as target:
                good, count = run("vault", target)
        except Exception as error:
            print(f"the Vault at VAULT_ADDR cannot be prepared: {type(error).__name__}: {error}", file=sys.stderr)
            return 2
        wrong |= good != count
        vault = f"{good}/{count}"
    print(f"suite={SUITE} standin={passed}/{total} vault={vault}")
    return 1 if wrong else 0
