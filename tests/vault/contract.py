"""The contract with Vault Transform: what Grille relies on, asked of a server by ``hvac``'s own client, unchanged.

The same cases run against the stand-in (`tests.vault.server`) and, by ``make conformance SUITE=vault-contract`` with
``VAULT_ADDR`` and ``VAULT_TOKEN``, against a licensed Vault.  Everything a run makes has a name of its own and is
removed at its end.  A case passes, fails with AssertionError or hvac's error, or raises `Absent` for what the server
has not been set up for.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import hvac
import jwt
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hvac import exceptions

TWEAK: Final = base64.b64encode(b"7 bytes").decode()
ROLE: Final = "payments"
PATTERN: Final = r"(\d{4})-(\d{4})-(\d{4})-(\d{4})"
CARD: Final = "1111-2222-3333-4444"


class Absent(Exception):
    """The server is not set up for a case; the text says what is not there."""


@dataclass
class Target:
    """A server, a token that may do everything on it, and names that nobody else has."""

    url: str
    token: str
    verify: str | bool = True
    namespace: str | None = None
    certificate: tuple[str, str] | None = None
    """Files with a client certificate that the server's listener asks for, and its key."""
    ca: Path | None = None
    """The CA of that certificate."""
    tag: str = field(default_factory=lambda: f"grille-{secrets.token_hex(4)}")
    opened: list[hvac.Client] = field(default_factory=list)

    @property
    def mount(self) -> str:
        """Where the engine of this run is mounted."""
        return f"{self.tag}-transform"

    def client(self, token: str | None = "", **more: Any) -> hvac.Client:
        """A client with the token that may do everything, or another."""
        made = hvac.Client(
            url=self.url, token=self.token if token == "" else token, verify=self.verify,
            namespace=self.namespace, timeout=30, **more,
        )  # fmt: skip
        if token is None:
            made.token = None
        self.opened.append(made)
        return made

    def close(self) -> None:
        """Let go of the connections."""
        for client in self.opened:
            client.adapter.close()


@contextlib.contextmanager
def prepared(target: Target) -> Iterator[Target]:
    """Mount an engine for a run, and take everything away at its end."""
    client = target.client()
    client.sys.enable_secrets_engine("transform", path=target.mount)
    try:
        transform = client.secrets.transform
        at = {"mount_point": target.mount}
        transform.create_or_update_alphabet("decimal", "0123456789", **at)
        transform.create_or_update_template("card", "regex", PATTERN, "decimal", **at)
        for name, source in (("card", "supplied"), ("inside", "internal"), ("made", "generated")):
            transform.create_or_update_fpe_transformation(name, "card", source, [ROLE, "single"], **at)
        transform.create_or_update_role(ROLE, ["card", "inside", "made"], **at)
        transform.create_or_update_role("single", ["card"], **at)
        yield target
    finally:
        client.sys.disable_secrets_engine(target.mount)
        target.close()


CASES: Final[dict[str, Callable[[Target], None]]] = {}


def case(function: Callable[[Target], None]) -> Callable[[Target], None]:
    """Add to the contract."""
    CASES[function.__name__.replace("_", "-")] = function
    return function


def refused(status: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object]) -> Any:
    """The error with which a call must end."""
    try:
        call()
    except status as error:
        return error
    raise AssertionError("was not refused")


def post(target: Target, path: str, body: dict[str, Any]) -> requests.Response:
    """A request as it is, for what hvac hides."""
    headers = {"X-Vault-Token": target.token}
    if target.namespace:
        headers["X-Vault-Namespace"] = target.namespace
    return requests.post(
        f"{target.url}/v1/{target.mount}/{path}", json=body, headers=headers, verify=target.verify, timeout=30
    )


# values


@case
def encode_and_decode_keep_the_form(target: Target) -> None:
    transform = target.client().secrets.transform
    token = transform.encode(ROLE, CARD, "card", TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    assert [len(part) for part in token.split("-")] == [4, 4, 4, 4]
    assert token != CARD
    again = transform.encode(ROLE, CARD, "card", TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    assert again == token
    decoded = transform.decode(ROLE, token, "card", TWEAK, mount_point=target.mount)
    assert decoded["data"]["decoded_value"] == CARD


@case
def the_transformation_may_be_left_out_where_the_role_has_one(target: Target) -> None:
    transform = target.client().secrets.transform
    token = transform.encode("single", CARD, tweak=TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    assert token == transform.encode(ROLE, CARD, "card", TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    refused(exceptions.InvalidRequest, lambda: transform.encode(ROLE, CARD, tweak=TWEAK, mount_point=target.mount))


@case
def another_tweak_makes_another_token(target: Target) -> None:
    transform = target.client().secrets.transform
    other = base64.b64encode(b"another").decode()
    tokens = {
        transform.encode(ROLE, CARD, "card", tweak, mount_point=target.mount)["data"]["encoded_value"]
        for tweak in (TWEAK, other)
    }
    assert len(tokens) == 2


@case
def a_supplied_tweak_has_seven_bytes(target: Target) -> None:
    transform = target.client().secrets.transform
    for tweak in (None, base64.b64encode(b"six by").decode(), base64.b64encode(b"8 bytes!").decode(), "not base64"):
        refused(
            exceptions.InvalidRequest,
            lambda tweak=tweak: transform.encode(ROLE, CARD, "card", tweak, mount_point=target.mount),
        )


@case
def a_generated_tweak_comes_with_the_token(target: Target) -> None:
    transform = target.client().secrets.transform
    made = transform.encode(ROLE, CARD, "made", mount_point=target.mount)["data"]
    assert len(base64.b64decode(made["tweak"])) == 7
    decoded = transform.decode(ROLE, made["encoded_value"], "made", made["tweak"], mount_point=target.mount)
    assert decoded["data"]["decoded_value"] == CARD


@case
def an_internal_tweak_is_not_given(target: Target) -> None:
    transform = target.client().secrets.transform
    token = transform.encode(ROLE, CARD, "inside", mount_point=target.mount)["data"]["encoded_value"]
    assert transform.decode(ROLE, token, "inside", mount_point=target.mount)["data"]["decoded_value"] == CARD


@case
def a_value_that_does_not_fit_is_a_bad_request(target: Target) -> None:
    transform = target.client().secrets.transform
    for value in ("1111-2222-3333", "1111-2222-3333-444x", "nothing"):
        error = refused(
            exceptions.InvalidRequest,
            lambda value=value: transform.encode(ROLE, value, "card", TWEAK, mount_point=target.mount),
        )
        assert error.errors


# batches


@case
def a_batch_is_answered_in_order_with_references(target: Target) -> None:
    transform = target.client().secrets.transform
    values = [f"{number:04d}-2222-3333-4444" for number in range(20)]
    items = [
        {"value": value, "transformation": "card", "tweak": TWEAK, "reference": f"r{number}"}
        for number, value in enumerate(values)
    ]
    results = transform.encode(ROLE, batch_input=items, mount_point=target.mount)["data"]["batch_results"]
    assert [result["reference"] for result in results] == [item["reference"] for item in items]
    single = transform.encode(ROLE, values[3], "card", TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    assert results[3]["encoded_value"] == single
    back = [{**item, "value": result["encoded_value"]} for item, result in zip(items, results, strict=True)]
    decoded = transform.decode(ROLE, batch_input=back, mount_point=target.mount)["data"]["batch_results"]
    # the documentation's sample has encoded_value here
    assert [each.get("decoded_value", each.get("encoded_value")) for each in decoded] == values


@case
def what_stands_beside_a_batch_is_ignored(target: Target) -> None:
    items = [{"value": CARD, "transformation": "card", "tweak": TWEAK}]
    said = post(target, f"encode/{ROLE}", {"value": "x", "transformation": "none", "batch_input": items})
    assert said.status_code == 200
    assert len(said.json()["data"]["batch_results"]) == 1


@case
def an_item_that_fails_leaves_the_others(target: Target) -> None:
    items = [
        {"value": CARD, "transformation": "card", "tweak": TWEAK, "reference": "good"},
        {"value": "short", "transformation": "card", "tweak": TWEAK, "reference": "bad"},
        {"value": CARD, "transformation": "none", "tweak": TWEAK, "reference": "none"},
        {"value": CARD, "transformation": "card", "reference": "no tweak"},
    ]
    said = post(target, f"encode/{ROLE}", {"batch_input": items})
    assert said.status_code in (200, 400)
    results = said.json()["data"]["batch_results"]
    assert len(results) == 4
    assert results[0]["encoded_value"]
    assert not results[0].get("error")
    assert all(result["error"] for result in results[1:])


@case
def an_unknown_role_fails_as_a_whole(target: Target) -> None:
    items = [{"value": CARD, "transformation": "card", "tweak": TWEAK}]
    said = post(target, "encode/nobody", {"batch_input": items})
    assert said.status_code in (400, 404)


@case
def five_hundred_values_are_one_request(target: Target) -> None:
    transform = target.client().secrets.transform
    items = [
        {"value": f"{number:04d}-0000-0000-0000", "transformation": "card", "tweak": TWEAK} for number in range(500)
    ]
    results = transform.encode(ROLE, batch_input=items, mount_point=target.mount)["data"]["batch_results"]
    assert len({result["encoded_value"] for result in results}) == 500


@case
def more_than_the_largest_request_is_refused(target: Target) -> None:
    items = [{"value": "x" * 1024 * 1024} for _ in range(33)]
    try:
        said = post(target, f"encode/{ROLE}", {"batch_input": items})
    except requests.ConnectionError:
        return  # it stopped reading
    assert said.status_code in (400, 413, 500), said.status_code


@case
def rewrap_makes_a_token_of_a_token(target: Target) -> None:
    transform = target.client().secrets.transform
    token = transform.encode(ROLE, CARD, "card", TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    body = {"value": token, "transformation": "inside", "decode_transformation": "card", "decode_tweak": TWEAK}
    said = post(target, f"rewrap/{ROLE}", body)
    if said.status_code in (404, 405):
        raise Absent("rewrap (Vault 2.1.0)")
    expected = transform.encode(ROLE, CARD, "inside", mount_point=target.mount)["data"]["encoded_value"]
    assert said.json()["data"]["encoded_value"] == expected


# configuration


@case
def what_was_written_is_read_back(target: Target) -> None:
    transform = target.client().secrets.transform
    at = {"mount_point": target.mount}
    assert transform.read_alphabet("decimal", **at)["data"]["alphabet"] == "0123456789"
    template = transform.read_template("card", **at)["data"]
    assert (template["type"], template["pattern"], template["alphabet"]) == ("regex", PATTERN, "decimal")
    found = transform.read_transformation("card", **at)["data"]
    assert (found["type"], found["tweak_source"], found["templates"]) == ("fpe", "supplied", ["card"])
    assert set(found["allowed_roles"]) == {ROLE, "single"}
    assert set(transform.read_role(ROLE, **at)["data"]["transformations"]) == {"card", "inside", "made"}


@case
def everything_is_listed(target: Target) -> None:
    transform = target.client().secrets.transform
    at = {"mount_point": target.mount}
    assert {ROLE, "single"} <= set(transform.list_roles(**at)["data"]["keys"])
    assert {"card", "inside", "made"} <= set(transform.list_transformations(**at)["data"]["keys"])
    assert {"card", "builtin/creditcardnumber"} <= set(transform.list_templates(**at)["data"]["keys"])
    assert {"decimal", "builtin/numeric"} <= set(transform.list_alphabets(**at)["data"]["keys"])


@case
def what_was_deleted_is_not_found(target: Target) -> None:
    transform = target.client().secrets.transform
    at = {"mount_point": target.mount}
    transform.create_or_update_alphabet("brief", "abc", **at)
    transform.create_or_update_template("brief", "regex", "([a-c]{20})", "brief", **at)
    transform.create_or_update_fpe_transformation("brief", "brief", "supplied", ["brief"], **at)
    transform.create_or_update_role("brief", ["brief"], **at)
    for read, delete in (
        (transform.read_role, transform.delete_role),
        (transform.read_transformation, transform.delete_transformation),
        (transform.read_template, transform.delete_template),
        (transform.read_alphabet, transform.delete_alphabet),
    ):
        assert read("brief", **at)["data"]
        delete("brief", **at)
        refused(exceptions.InvalidPath, lambda read=read: read("brief", **at))


@case
def an_alphabet_has_no_character_twice(target: Target) -> None:
    transform = target.client().secrets.transform
    for characters in ("a", "aba"):
        refused(
            exceptions.InvalidRequest,
            lambda characters=characters: transform.create_or_update_alphabet(
                "twice", characters, mount_point=target.mount
            ),
        )


@case
def new_transformations_are_ff1(target: Target) -> None:
    found = target.client().secrets.transform.read_transformation("card", mount_point=target.mount)["data"]
    if "fpe_algorithm" not in found:
        raise Absent("fpe_algorithm (Vault 2.1.0)")
    assert found["fpe_algorithm"].lower() == "ff1"


@case
def a_masking_transformation_only_encodes(target: Target) -> None:
    transform = target.client().secrets.transform
    at = {"mount_point": target.mount}
    transform.create_or_update_masking_transformation("hidden", "card", "#", ["masker"], **at)
    transform.create_or_update_role("masker", ["hidden"], **at)
    assert transform.encode("masker", CARD, **at)["data"]["encoded_value"] == "####-####-####-####"
    refused(exceptions.InvalidRequest, lambda: transform.decode("masker", CARD, **at))


@case
def a_tokenization_transformation_knows_its_tokens(target: Target) -> None:
    transform = target.client().secrets.transform
    at = {"mount_point": target.mount}
    transform.create_or_update_tokenization_transformation("vaulted", allowed_roles=["keeper"], **at)
    transform.create_or_update_role("keeper", ["vaulted"], **at)
    token = transform.encode("keeper", "a text", "vaulted", **at)["data"]["encoded_value"]
    assert transform.decode("keeper", token, "vaulted", **at)["data"]["decoded_value"] == "a text"
    assert transform.validate_token("keeper", token, "vaulted", **at)["data"]["valid"]


# tokens


@contextlib.contextmanager
def method(target: Target, kind: str) -> Iterator[tuple[hvac.Client, str, str]]:
    """An authentication method of this run, and a policy that lets encode only: client, mount point, policy."""
    client = target.client()
    path, policy = f"{target.tag}-{kind}", f"{target.tag}-{kind}"
    client.sys.create_or_update_policy(
        policy, {"path": {f"{target.mount}/encode/{ROLE}": {"capabilities": ["update"]}}}
    )
    client.sys.enable_auth_method(kind, path=path)
    try:
        yield client, path, policy
    finally:
        client.sys.disable_auth_method(path)
        client.sys.delete_policy(policy)


def used(target: Target, client: hvac.Client) -> None:
    """A token that was logged in for may encode, and neither decode nor administer."""
    transform = client.secrets.transform
    token = transform.encode(ROLE, CARD, "card", TWEAK, mount_point=target.mount)["data"]["encoded_value"]
    refused(exceptions.Forbidden, lambda: transform.decode(ROLE, token, "card", TWEAK, mount_point=target.mount))
    refused(exceptions.Forbidden, lambda: transform.list_roles(mount_point=target.mount))


@case
def approle_logs_in(target: Target) -> None:
    with method(target, "approle") as (admin, path, policy):
        approle = admin.auth.approle
        approle.create_or_update_approle("app", token_policies=[policy], token_ttl="60s", mount_point=path)
        role_id = approle.read_role_id("app", mount_point=path)["data"]["role_id"]
        secret_id = approle.generate_secret_id("app", mount_point=path)["data"]["secret_id"]
        client = target.client(None)
        said = client.auth.approle.login(role_id, secret_id, mount_point=path)
        assert 0 < said["auth"]["lease_duration"] <= 60
        assert said["auth"]["renewable"]
        used(target, client)
        refused(
            exceptions.InvalidRequest, lambda: target.client(None).auth.approle.login(role_id, "x", mount_point=path)
        )


@case
def a_token_is_looked_up_renewed_and_revoked(target: Target) -> None:
    made = target.client().auth.token.create(ttl="60s", renewable=True)
    client = target.client(made["auth"]["client_token"])
    assert 0 < client.auth.token.lookup_self()["data"]["ttl"] <= 60
    renewed = client.auth.token.renew_self()
    assert 0 < renewed["auth"]["lease_duration"] <= 60
    assert renewed["auth"]["client_token"] == client.token
    client.auth.token.revoke_self()
    refused(exceptions.Forbidden, client.auth.token.lookup_self)


@case
def a_token_that_cannot_be_renewed_says_so(target: Target) -> None:
    made = target.client().auth.token.create(ttl="60s", renewable=False)
    client = target.client(made["auth"]["client_token"])
    assert not made["auth"]["renewable"]
    refused(exceptions.InvalidRequest, client.auth.token.renew_self)


@case
def an_unknown_token_is_forbidden(target: Target) -> None:
    transform = target.client("hvs.unknown").secrets.transform
    refused(exceptions.Forbidden, lambda: transform.encode(ROLE, CARD, "card", TWEAK, mount_point=target.mount))


def _signed(claims: dict[str, Any]) -> tuple[str, str]:
    """A JWT, and the public key that verifies it."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return jwt.encode(claims, key, algorithm="ES256"), public.decode().strip()


@case
def jwt_logs_in(target: Target) -> None:
    subject = "spiffe://bank.example/grille"
    now = int(time.time())
    token, public = _signed({"sub": subject, "aud": ["vault"], "iat": now, "exp": now + 300})
    with method(target, "jwt") as (admin, path, policy):
        admin.auth.jwt.configure(jwt_validation_pubkeys=[public], path=path)
        admin.auth.jwt.create_role(
            "grille", "sub", [], bound_audiences=["vault"], bound_subject=subject, token_policies=[policy],
            token_ttl="60s", role_type="jwt", path=path,
        )  # fmt: skip
        client = target.client(None)
        assert client.auth.jwt.jwt_login("grille", token, path=path)["auth"]["lease_duration"] <= 60
        used(target, client)
        other, _ = _signed({"sub": subject, "aud": ["vault"], "iat": now, "exp": now + 300})
        refused(
            (exceptions.InvalidRequest, exceptions.Forbidden),
            lambda: target.client(None).auth.jwt.jwt_login("grille", other, path=path),
        )


@case
def kubernetes_logs_in(target: Target) -> None:
    """Only where the server verifies service accounts' tokens by itself: a real Vault asks the cluster."""
    if "127.0.0.1" not in target.url or target.token != "root":
        raise Absent("a Kubernetes cluster that reviews tokens")
    token, public = _signed({"sub": "system:serviceaccount:grille:proxy", "iat": int(time.time())})
    with method(target, "kubernetes") as (admin, path, policy):
        # hvac's own call takes certificates only
        admin.write_data(
            f"auth/{path}/config", data={"kubernetes_host": "https://kubernetes.invalid", "pem_keys": [public]}
        )
        admin.auth.kubernetes.create_role(
            "grille", bound_service_account_names=["proxy"], bound_service_account_namespaces=["grille"],
            policies=[policy], ttl="60s", mount_point=path,
        )  # fmt: skip
        client = target.client(None)
        client.auth.kubernetes.login("grille", token, mount_point=path)
        used(target, client)


@case
def a_certificate_logs_in(target: Target) -> None:
    if target.certificate is None or target.ca is None:
        raise Absent("TLS with a client certificate (VAULT_CLIENT_CERT, VAULT_CLIENT_KEY, VAULT_CLIENT_CA)")
    with method(target, "cert") as (admin, path, policy):
        admin.auth.cert.create_ca_certificate_role(
            "grille", certificate_file=str(target.ca), token_policies=[policy], token_ttl="60s", mount_point=path
        )
        client = target.client(None, cert=target.certificate)
        client.auth.cert.login("grille", mount_point=path)
        used(target, client)


@case
def a_namespace_has_engines_of_its_own(target: Target) -> None:
    client = target.client()
    try:
        client.sys.create_namespace(target.tag)
    except (exceptions.InvalidPath, exceptions.Forbidden, exceptions.InvalidRequest):
        raise Absent("namespaces") from None
    try:
        inside = hvac.Client(
            url=target.url, token=target.token, verify=target.verify,
            namespace=f"{target.namespace or ''}/{target.tag}".strip("/"),
        )  # fmt: skip
        target.opened.append(inside)
        refused(
            (exceptions.InvalidPath, exceptions.Forbidden), lambda: inside.secrets.transform.list_roles(target.mount)
        )
        inside.sys.enable_secrets_engine("transform", path=target.mount)
        transform = inside.secrets.transform
        transform.create_or_update_alphabet("only-here", "0123456789", mount_point=target.mount)
        refused(
            exceptions.InvalidPath,
            lambda: client.secrets.transform.read_alphabet("only-here", mount_point=target.mount),
        )
    finally:
        client.sys.delete_namespace(target.tag)


def outcome(name: str, target: Target) -> str:
    """``ok``, ``absent: ..`` or what went wrong."""
    try:
        CASES[name](target)
    except Absent as absent:
        return f"absent: {absent}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"
