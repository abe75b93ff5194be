"""A node of Grille in front of the stand-in for a queue manager."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grille.proxy.authority import Authority, write_signing_key
from tests.bundles import replace, with_data
from tests.catalogue.world import section
from tests.e2e.served import Served
from tests.mq.manager import CHANNEL, NAME

TRUST_DOMAIN = "mq.example"
ACCESSES = ("put", "get", "browse", "inquire")
_POLICY = Path(__file__).parent / "policy.tar.gz"
"""Made of `policy/`: opa build -b policy -t wasm -e grille/decision --revision 0 -o policy.tar.gz"""


def spiffe_id(agent: str) -> str:
    """The identity of an agent of these tests."""
    return f"spiffe://{TRUST_DOMAIN}/{agent}"


EVERYTHING = {access: ["*"] for access in ACCESSES}
"""Grants of an agent that may do what it likes with every queue."""


def write_policy(
    path: Path,
    agents: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    denied: Sequence[str] = (),
    revision: str = "0",
    rules: Mapping[str, Mapping[str, object]] | None = None,
    **more: object,
) -> None:
    """The bundle that grants agents their accesses, each to ``manager/queue`` or to what begins with a text and ``*``.

    ``rules``: filters by access and queue, true for all others.  ``more`` is put into every decision that allows.
    """
    base: dict[str, object] = {
        "allow": False, "control": "AC-01", "reason": "the policy of the MQ tests", "passthrough": False,
        "filters": {}, "columns": {}, "limits": {}, "locks": False, "isolated": False, "not_before": None,
        "not_after": None, "cache": {"ttl_seconds": 3600},
    }  # fmt: skip
    data = {
        "base": base | more,
        "agents": {spiffe_id(name): grants for name, grants in agents.items()},
        "denied": list(denied),
        "rules": rules or {},
    }
    replace(path, with_data(_POLICY.read_bytes(), data, revision))


def write_config(
    directory: Path,
    port: int,
    authority: Authority,
    agents: Sequence[str],
    *,
    mq: Mapping[str, Any] | None = None,
    manager: Mapping[str, Any] | None = None,
    listener: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
    more: Sequence[str] = (),
    workers: int = 2,
) -> Path:
    """A configuration beside its certificates, for a queue manager on a port of this machine.

    ``more``: further sections.
    """
    authority.write_bundle(directory / "agents.pem")
    authority.issue_server().write(directory, "grille")
    write_signing_key(directory / "signing.pem")
    path = directory / "grille.toml"
    sections = [
        section("[listener]", {"port": 0, "certificate": "grille.pem", "key": "grille.key", **(listener or {})}),
        section("[admin]", {"port": 0}),
        section("[process]", {"workers": workers, "drain_seconds": 5.0}),
        section("[[trust_domains]]", {"name": TRUST_DOMAIN, "bundle": "agents.pem"}),
        section("[mq]", {"port": 0, "channel": CHANNEL, **(mq or {})}),
        section("[[queue_managers]]", {"name": NAME, "host": "127.0.0.1", "port": port, "channel": CHANNEL,
                                       "tls": "off", **(manager or {})}),
        *(section("[[identities]]", {"spiffe_id": spiffe_id(name), "queue_manager": NAME,
                                     "queue_manager_user": name[:12]}) for name in agents),
        section("[policy]", {"bundle": "policy.tar.gz"}),
        section("[audit]", {"directory": "audit", "signing_key": "signing.pem", **(audit or {})}),
        *more,
    ]  # fmt: skip
    path.write_text("\n".join(sections))
    return path


class Window(Served):
    """The node; its agents connect to `mq_port`."""

    def __init__(self, config: Path) -> None:
        super().__init__(config)
        (serving,) = self.said("serving", 1)
        self.mq_port = serving["mq_port"]

    def sessions(self) -> float:
        """Sessions that are open, on all workers."""
        _, text = self.get("/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("grille_sessions{"))
