"""What the stand-in does besides the contract: the states of a Vault that a client has to survive."""

from __future__ import annotations

from collections.abc import Iterator

import hvac
import pytest
import requests
from hvac import exceptions

from tests.vault.contract import CARD, PATTERN, ROLE, TWEAK
from tests.vault.server import Vault


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Vault(max_request=64 * 1024) as made:
        made.mount()
        yield made


@pytest.fixture
def client(vault: Vault) -> Iterator[hvac.Client]:
    made = hvac.Client(url=vault.url, token=vault.root)
    transform = made.secrets.transform
    transform.create_or_update_template("card", "regex", PATTERN, "builtin/numeric")
    transform.create_or_update_fpe_transformation("card", "card", "supplied", [ROLE])
    transform.create_or_update_role(ROLE, ["card"])
    yield made
    made.adapter.close()


def encoded(client: hvac.Client) -> str:
    token: str = client.secrets.transform.encode(ROLE, CARD, "card", TWEAK)["data"]["encoded_value"]
    return token


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (412, exceptions.UnexpectedError),
        (429, exceptions.RateLimitExceeded),
        (472, exceptions.UnexpectedError),
        (473, exceptions.UnexpectedError),
        (500, exceptions.InternalServerError),
        (503, exceptions.VaultDown),
    ],
)
def test_the_next_answer_can_be_any_error(
    vault: Vault, client: hvac.Client, status: int, error: type[Exception]
) -> None:
    vault.faults.statuses.append(status)
    with pytest.raises(error):
        encoded(client)
    assert encoded(client)


def test_a_sealed_vault_answers_503_to_all_but_health(vault: Vault, client: hvac.Client) -> None:
    vault.faults.sealed = True
    with pytest.raises(exceptions.VaultDown, match="sealed"):
        encoded(client)
    with pytest.raises(exceptions.VaultDown):
        client.auth.token.lookup_self()
    assert client.sys.read_health_status(method="GET").status_code == 503
    vault.faults.sealed = False
    assert encoded(client)


def test_a_token_ends_by_the_servers_clock_and_no_renewal_goes_beyond_its_most(
    vault: Vault, client: hvac.Client
) -> None:
    made = client.auth.token.create(ttl="60s", explicit_max_ttl="100s")["auth"]["client_token"]
    other = hvac.Client(url=vault.url, token=made)
    vault.ahead = 50
    assert other.auth.token.renew_self()["auth"]["lease_duration"] in (49, 50)
    vault.ahead = 99
    assert other.auth.token.lookup_self()["data"]["ttl"] in (0, 1)
    vault.ahead = 101
    with pytest.raises(exceptions.Forbidden):
        other.auth.token.lookup_self()
    other.adapter.close()


def test_revoked_tokens_are_forbidden(vault: Vault, client: hvac.Client) -> None:
    made = client.auth.token.create(ttl="60s", policies=["root"])["auth"]["client_token"]
    other = hvac.Client(url=vault.url, token=made)
    assert encoded(other)
    vault.revoke_all()
    with pytest.raises(exceptions.Forbidden):
        encoded(other)
    assert encoded(client)
    other.adapter.close()


def test_a_body_above_the_limit_is_refused(vault: Vault, client: hvac.Client) -> None:
    items = [{"value": CARD, "transformation": "card", "tweak": TWEAK} for _ in range(1000)]
    with pytest.raises(exceptions.UnexpectedError, match="too large"):
        client.secrets.transform.encode(ROLE, batch_input=items)


@pytest.mark.parametrize("status", [200, 400])
def test_a_batch_with_a_failed_item_has_either_status(vault: Vault, client: hvac.Client, status: int) -> None:
    vault.faults.partial_status = status
    items = [{"value": value, "transformation": "card", "tweak": TWEAK} for value in (CARD, "x")]
    headers = {"X-Vault-Token": vault.root}
    said = requests.post(
        f"{vault.url}/v1/transform/encode/{ROLE}", json={"batch_input": items}, headers=headers, timeout=10
    )
    assert said.status_code == status
    assert [sorted(each) for each in said.json()["data"]["batch_results"]] == [["encoded_value"], ["error"]]


def test_a_new_key_makes_other_tokens_and_decodes_to_other_values(vault: Vault, client: hvac.Client) -> None:
    before = encoded(client)
    vault.rekey("card")
    assert encoded(client) != before
    assert client.secrets.transform.decode(ROLE, before, "card", TWEAK)["data"]["decoded_value"] != CARD


def test_it_comes_back_on_its_port_with_what_it_knew(vault: Vault, client: hvac.Client) -> None:
    before = encoded(client)
    vault.down()
    with pytest.raises(requests.ConnectionError):
        encoded(client)
    vault.up()
    assert encoded(client) == before
