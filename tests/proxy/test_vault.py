"""Vault Transform as the provider: against a server that seals, stalls, lies, revokes and goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from grille.proxy.authority import write_private
from grille.proxy.config import Vault as Settings
from grille.proxy.vault import VaultTransform
from grille.proxy.vault_login import LoginFailed, VaultLogin
from grille.tokenization.provider import TokenizationError, TokenizationRefused, TokenRequest, Unfit
from tests.vault.server import Vault
from tests.vault.setting import ROLE, admin, approle, set_up, transformation
from tests.vault.suite import tls

DEADLINE = 20.0
VALUE = "123-45-6789"


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Vault() as made:
        set_up(made, [transformation(), transformation("card", (r"(\d{16})", "digits"))])
        yield made


@pytest.fixture
def settings(vault: Vault, tmp_path: Path) -> Settings:
    return approle(vault, tmp_path)


@contextlib.asynccontextmanager
async def provider(settings: Settings, *made: Any, **changes: Any) -> AsyncIterator[VaultTransform]:
    """A provider that has logged in, or tried to."""
    events: list[tuple[str, str]] = []
    provider = VaultTransform(
        msgspec.structs.replace(settings, **changes),
        made or (transformation(), transformation("card", (r"(\d{16})", "digits"))),
        lambda name, text: events.append((name, text)),
    )
    provider.events = events  # type: ignore[attr-defined]
    login = asyncio.create_task(provider.watch())
    with contextlib.suppress(TokenizationError):
        await provider.login.token()
    yield provider
    login.cancel()
    await asyncio.gather(login, return_exceptions=True)
    await provider.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  (what happens is in other threads)
            await asyncio.sleep(0.005)


async def encoded(provider: VaultTransform, *values: str, name: str = "ssn") -> Any:
    return await provider.encode([TokenRequest(name, value) for value in values])


async def test_values_become_tokens_and_values_again_in_order(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        batch = [TokenRequest("ssn", VALUE), TokenRequest("card", "4111111111111111"), TokenRequest("ssn", "x"),
                 TokenRequest("ssn", VALUE)]  # fmt: skip
        tokens = await made.encode(batch)
        assert tokens[0] == tokens[3] != VALUE
        assert isinstance(tokens[2], Unfit)
        back = await made.decode([TokenRequest("ssn", tokens[0]), TokenRequest("card", tokens[1])])  # type: ignore[arg-type]
        assert list(back) == [VALUE, "4111111111111111"]
        # one request a transformation, each with its check; equal values go once, what cannot fit does not go
        assert [(seen.path, seen.items) for seen in vault.seen] == [
            ("encode/grille", 2), ("encode/grille", 2), ("decode/grille", 2), ("decode/grille", 2),
        ]  # fmt: skip
        assert len({seen.peer for seen in vault.seen}) <= 2


async def test_a_transformation_that_is_not_configured_is_an_error(settings: Settings) -> None:
    async with provider(settings) as made:
        with pytest.raises(TokenizationError, match="not configured"):
            await encoded(made, VALUE, name="other")


async def test_what_comes_while_a_request_is_in_flight_goes_together_with_the_next(
    vault: Vault, settings: Settings
) -> None:
    async with provider(settings) as made:
        vault.faults.held = True
        first = asyncio.create_task(encoded(made, VALUE))
        await until(lambda: vault.seen)
        others = [asyncio.create_task(encoded(made, f"{number:03d}-45-6789")) for number in range(100)]
        await asyncio.sleep(0)
        vault.release()
        results = await asyncio.gather(first, *others)
        assert len({token for (token,) in results}) == 101
        assert [seen.items for seen in vault.seen] == [2, 101]
        assert vault.most_in_flight == 1


async def test_directions_and_transformations_do_not_wait_for_each_other(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        vault.faults.held = True
        waiting = [
            asyncio.create_task(encoded(made, VALUE)),
            asyncio.create_task(encoded(made, "4111111111111111", name="card")),
            asyncio.create_task(made.decode([TokenRequest("ssn", VALUE)])),
        ]
        await until(lambda: len(vault.seen) == 3)
        vault.release()
        await asyncio.gather(*waiting)
        assert vault.most_in_flight == 3


async def test_large_calls_are_split_by_number_and_by_bytes(vault: Vault, settings: Settings) -> None:
    values = [f"{number:03d}-45-6789" for number in range(250)]
    async with provider(settings, batch_values=100) as made:
        assert len(set(await encoded(made, *values))) == 250
    assert [seen.items for seen in vault.seen] == [101, 101, 51]
    vault.seen.clear()
    async with provider(settings, batch_bytes=4096) as made:
        assert len(set(await encoded(made, *values))) == 250
    assert max(seen.bytes for seen in vault.seen) <= 4096
    assert len(vault.seen) > 5


async def test_a_value_that_vault_cannot_do_is_unfit_and_no_other(vault: Vault, settings: Settings) -> None:
    vault.engine().templates["grille-ssn"]["pattern"] = r"([0-8]{3})-(\d{2})-(\d{4})"
    for status in (200, 400):
        vault.faults.partial_status = status
        async with provider(settings) as made:
            found = await encoded(made, VALUE, "999-45-6789")
            assert isinstance(found[0], str)
            assert isinstance(found[1], Unfit)
            assert "999" not in found[1].reason


@pytest.mark.parametrize("status", [412, 429, 472, 473, 500, 502, 503])
async def test_passing_errors_are_tried_again(vault: Vault, settings: Settings, status: int) -> None:
    async with provider(settings) as made:
        vault.faults.statuses.extend([status, status])
        (token,) = await encoded(made, VALUE)
        assert isinstance(token, str)
        assert len(vault.seen) == 3


@pytest.mark.parametrize(
    ("status", "problem"), [(503, "answers 503"), (429, "answers 429"), (473, "answers 473"), (412, "not up to date")]
)
async def test_errors_that_stay_are_an_outage(vault: Vault, settings: Settings, status: int, problem: str) -> None:
    vault.faults.status = status
    async with provider(settings, timeout=1.0) as made:
        with pytest.raises(TokenizationError, match=problem) as caught:
            await encoded(made, VALUE)
        assert not isinstance(caught.value, TokenizationRefused)


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_errors_that_no_repetition_mends_are_refusals(vault: Vault, settings: Settings, status: int) -> None:
    vault.faults.status = status
    async with provider(settings) as made:
        with pytest.raises(TokenizationRefused, match=f"answers {status}"):
            await encoded(made, VALUE)
        assert len(vault.seen) == 1


async def test_a_wish_to_be_left_alone_is_heard(vault: Vault, settings: Settings) -> None:
    vault.faults.retry_after = "60"
    vault.faults.statuses.append(429)
    async with provider(settings) as made:
        began = time.monotonic()
        with pytest.raises(TokenizationError, match="answers 429"):
            await encoded(made, VALUE)
        assert time.monotonic() - began < 5  # it would not be in time, so it is not waited for
        assert len(vault.seen) == 1


async def test_a_slow_vault_is_waited_for_no_longer_than_configured(vault: Vault, settings: Settings) -> None:
    vault.faults.held = True
    async with provider(settings, timeout=0.2) as made:
        with pytest.raises(TokenizationError, match=r"within 0\.2 s"):
            await encoded(made, VALUE)
        vault.release()
        await until(lambda: not any(lane.task for lane in made._lanes.values()))
        assert isinstance((await encoded(made, VALUE))[0], str)


async def test_the_breaker_stops_asking_and_closes_with_the_first_answer(vault: Vault, settings: Settings) -> None:
    vault.down()
    async with provider(settings, timeout=0.5, breaker_failures=2, breaker_seconds=1.0) as made:
        with pytest.raises(LoginFailed):
            await encoded(made, VALUE)
        vault.up()
        await until(lambda: not made.login.problem)
        vault.faults.drop = True
        with pytest.raises(TokenizationError):
            await encoded(made, VALUE)
        asked = len(vault.seen)
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(TokenizationError, match="not asked for a while"):
                await encoded(made, VALUE)
        assert len(vault.seen) == asked
        assert time.monotonic() - began < 0.5
        vault.faults.drop = False

        async def answered() -> bool:
            try:
                return isinstance((await encoded(made, VALUE))[0], str)
            except TokenizationError:
                return False

        async with asyncio.timeout(DEADLINE):
            while not await answered():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert len(vault.seen) == asked + 1
        assert [name for name, _ in made.events][-2:] == ["vault-away", "vault"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"", b"<html>a proxy's page</html>", b'{"data": {"batch_results": []}}'])
async def test_a_reply_that_is_none_is_an_outage(vault: Vault, settings: Settings, body: bytes) -> None:
    vault.faults.body = body
    async with provider(settings) as made:
        with pytest.raises(TokenizationError):
            await encoded(made, VALUE)


async def test_another_key_is_noticed_with_every_request(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        (check,) = await encoded(made, transformation().example)
    async with provider(settings, transformation(check=check), cache_entries=100) as made:
        (token,) = await encoded(made, VALUE)
        assert isinstance(token, str)
        vault.rekey("ssn")
        for ask in (made.encode, made.decode):
            with pytest.raises(TokenizationRefused, match="key"):
                await ask([TokenRequest("ssn", "987-65-4321")])
        assert len(made.cache) == 0


async def test_a_role_without_the_transformation_is_no_misfit(vault: Vault, settings: Settings) -> None:
    vault.engine().roles[ROLE]["transformations"] = ["card"]
    async with provider(settings) as made:
        with pytest.raises(TokenizationRefused, match="cannot encode by"):
            await encoded(made, VALUE)


async def test_who_tries_without_waiting_and_gives_up_sends_nothing(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        work = made.encode([TokenRequest("ssn", VALUE)])
        work.send(None)  # type: ignore[attr-defined]
        work.close()  # type: ignore[attr-defined]
        assert isinstance((await encoded(made, "987-65-4321"))[0], str)
        assert [seen.items for seen in vault.seen] == [2]


async def test_who_is_cancelled_does_not_take_the_answer_from_others(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        vault.faults.held = True
        first, second = asyncio.create_task(encoded(made, VALUE)), asyncio.create_task(encoded(made, VALUE))
        await until(lambda: vault.seen)
        first.cancel()
        vault.release()
        assert isinstance((await second)[0], str)


# what is remembered


async def test_nothing_is_remembered_by_default(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        await encoded(made, VALUE)
        await encoded(made, VALUE)
        assert len(vault.seen) == 2


async def test_what_is_remembered_needs_no_vault_until_its_lease_ends(vault: Vault, settings: Settings) -> None:
    async with provider(settings, cache_entries=10, timeout=0.3) as made:
        (token,) = await encoded(made, VALUE)
        assert list(await made.decode([TokenRequest("ssn", token)])) == [VALUE]
        vault.down()
        assert list(await encoded(made, VALUE)) == [token]
        assert list(await made.decode([TokenRequest("ssn", token)])) == [VALUE]
        with pytest.raises(TokenizationError):
            await encoded(made, "987-65-4321")
        assert len(vault.seen) == 2
        vault.up()


async def test_what_is_remembered_ends_with_the_login(vault: Vault, tmp_path: Path) -> None:
    settings = approle(vault, tmp_path, ttl="1s", max_ttl="1s")
    async with provider(settings, cache_entries=10, cache_seconds=3600.0, timeout=0.2) as made:
        (token,) = await encoded(made, VALUE)
        vault.down()
        assert list(await encoded(made, VALUE)) == [token]
        end = made.login.lease_end
        assert end - asyncio.get_running_loop().time() <= 1.0
        await until(lambda: asyncio.get_running_loop().time() > end)
        with pytest.raises(TokenizationError):
            await encoded(made, VALUE)
        vault.up()


async def test_a_refused_token_empties_what_is_remembered(vault: Vault, settings: Settings) -> None:
    async with provider(settings, cache_entries=10) as made:
        await encoded(made, VALUE)
        vault.revoke_all()
        vault.engine().roles[ROLE]["transformations"] = ["ssn"]
        with contextlib.suppress(TokenizationRefused):
            await encoded(made, "987-65-4321")
        assert made.cache.get("encode", "ssn", VALUE, asyncio.get_running_loop().time()) is None


# logging in


async def test_a_token_is_renewed_before_its_end_and_replaced_when_it_cannot_be(vault: Vault, tmp_path: Path) -> None:
    settings = approle(vault, tmp_path, ttl="1s", max_ttl="2s")
    async with provider(settings) as made:
        await until(lambda: vault.renewals >= 1)
        assert len(vault.logins) == 1
        await until(lambda: len(vault.logins) >= 2)
        assert isinstance((await encoded(made, VALUE))[0], str)


async def test_a_revoked_token_is_replaced_and_the_request_made_again(vault: Vault, settings: Settings) -> None:
    async with provider(settings) as made:
        await encoded(made, VALUE)
        assert made.login._token is not None
        made.login._token.got -= 10  # it is not fresh any more
        vault.revoke_all()
        assert isinstance((await encoded(made, VALUE))[0], str)
        assert vault.logins == ["approle"] * 2


async def test_a_revoked_token_that_cannot_be_replaced_is_an_outage(
    vault: Vault, settings: Settings, tmp_path: Path
) -> None:
    async with provider(settings, cache_entries=10) as made:
        (token,) = await encoded(made, VALUE)
        assert made.login._token is not None
        made.login._token.got -= 10
        vault.revoke_all()
        write_private(tmp_path / "secret-id", b"another")
        with pytest.raises(LoginFailed, match="refuses the login"):
            await encoded(made, "987-65-4321")
        with pytest.raises(LoginFailed):
            await made.decode([TokenRequest("ssn", token)])


async def test_a_policy_that_forbids_does_not_cause_a_login_for_every_statement(vault: Vault, tmp_path: Path) -> None:
    settings = approle(vault, tmp_path, policy={"transform/encode/grille": {"capabilities": ["update"]}})
    async with provider(settings) as made:
        (token,) = await encoded(made, VALUE)
        for _ in range(20):
            with pytest.raises(TokenizationRefused, match="just logged in"):
                await made.decode([TokenRequest("ssn", token)])
        assert len(vault.logins) <= 3


def service_token(claims: dict[str, Any]) -> tuple[bytes, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return jwt.encode(claims, key, algorithm="ES256").encode(), public.decode()


@pytest.mark.parametrize("kind", ["jwt", "kubernetes"])
async def test_a_signed_token_logs_in(vault: Vault, settings: Settings, tmp_path: Path, kind: str) -> None:
    subject = {"jwt": "spiffe://bank.example/grille", "kubernetes": "system:serviceaccount:bank:grille"}[kind]
    token, public = service_token({"sub": subject, "aud": ["vault"], "exp": int(time.time()) + 300})
    write_private(tmp_path / "svid", token + b"\n")
    with admin(vault) as client:
        client.sys.enable_auth_method(kind, path=f"{kind}/one")
        keys = {"jwt": "jwt_validation_pubkeys", "kubernetes": "pem_keys"}[kind]
        client.write_data(f"auth/{kind}/one/config", data={keys: [public], "kubernetes_host": "https://k"})
        client.write_data(
            f"auth/{kind}/one/role/proxy",
            data={"bound_audiences": ["vault"], "bound_subject": subject, "bound_service_account_names": ["grille"],
                  "bound_service_account_namespaces": ["bank"], "token_policies": ["grille"], "token_ttl": "1h"},
        )  # fmt: skip
    async with provider(
        settings, auth=kind, auth_mount=f"{kind}/one", auth_role="proxy", jwt_file=tmp_path / "svid",
        role_id_file=None, secret_id_file=None,
    ) as made:  # fmt: skip
        assert isinstance((await encoded(made, VALUE))[0], str)
        assert vault.logins == [f"{kind}/one"]


async def test_a_certificate_logs_in_and_goes_with_every_request(tmp_path: Path) -> None:
    context, ca, (certificate, key) = tls(tmp_path)
    context.verify_mode = ssl.CERT_REQUIRED
    with Vault(tls=context) as vault:
        set_up(vault, [transformation()])
        vault._spaces[""].methods["cert"] = ("cert", {"certs/grille": {
            "certificate": ca.read_text(), "allowed_uri_sans": ["spiffe://vault.example/grille"], "policies": ["root"],
        }})  # fmt: skip
        settings = Settings(
            address=vault.url, auth="cert", auth_role="grille", ca=ca, client_certificate=Path(certificate),
            client_key=Path(key), timeout=10.0,
        )  # fmt: skip
        async with provider(settings, transformation()) as made:
            assert isinstance((await encoded(made, VALUE))[0], str)
            assert vault.logins == ["cert"]
        async with provider(settings, transformation(), ca=None) as made:
            with pytest.raises(LoginFailed):
                await encoded(made, VALUE)


async def test_a_replaced_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    context, ca, (certificate, key) = tls(tmp_path)
    context.verify_mode = ssl.CERT_REQUIRED
    with Vault(tls=context) as vault:
        set_up(vault, [transformation()])
        settings = msgspec.structs.replace(
            approle_over_tls(vault, tmp_path, ca, certificate, key),
            ca=ca, client_certificate=Path(certificate), client_key=Path(key),
        )  # fmt: skip
        async with provider(settings, transformation(), timeout=1.0) as made:
            await encoded(made, VALUE)
            await encoded(made, VALUE)
            assert len({seen.peer for seen in vault.seen}) == 1
            good = swapped(certificate, b"half of a certi")
            await encoded(made, VALUE)
            assert len({seen.peer for seen in vault.seen}) == 1
            swapped(certificate, good)
            await encoded(made, VALUE)
            assert len({seen.peer for seen in vault.seen}) == 2
            await until(lambda: not made._leaving and not made._closing)


def swapped(file: str, content: bytes) -> bytes:
    """Write a file; what was in it."""
    before = Path(file).read_bytes()
    Path(file).write_bytes(content)
    return before


def approle_over_tls(vault: Vault, directory: Path, ca: Path, certificate: str, key: str) -> Settings:
    client = hvac.Client(url=vault.url, token=vault.root, verify=str(ca), cert=(certificate, key))
    client.sys.enable_auth_method("approle")
    client.auth.approle.create_or_update_approle("grille", token_policies=["root"], token_ttl="1h")
    write_private(directory / "role-id", client.auth.approle.read_role_id("grille")["data"]["role_id"].encode())
    secret_id = client.auth.approle.generate_secret_id("grille")["data"]["secret_id"]
    write_private(directory / "secret-id", secret_id.encode())
    client.adapter.close()
    return Settings(
        address=vault.url, role_id_file=directory / "role-id", secret_id_file=directory / "secret-id", timeout=10.0
    )


async def test_a_namespace_goes_with_every_request(vault: Vault, settings: Settings) -> None:
    set_up(vault, [transformation()], "fpe/pii", "bank/cards")
    vault._spaces["bank/cards"].methods = vault._spaces[""].methods
    vault._spaces["bank/cards"].policies = {"grille": {"path": {"*": {"capabilities": ["update"]}}}}
    async with provider(settings, namespace="bank/cards", mount="fpe/pii") as made:
        assert isinstance((await encoded(made, VALUE))[0], str)
        assert {seen.namespace for seen in vault.seen} == {"bank/cards"}


# secrets


async def test_no_secret_is_in_a_log_line_an_error_an_event_or_a_repr(
    vault: Vault, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with provider(settings, cache_entries=10, timeout=0.3) as made:
        token = await made.login.token()
        await encoded(made, VALUE)
        for change in ("sealed", "drop", "status"):
            setattr(vault.faults, change, 403 if change == "status" else True)
            with pytest.raises(TokenizationError) as caught:
                await encoded(made, "987-65-4321")
            said.append(repr(caught.value))
            setattr(vault.faults, change, 0 if change == "status" else False)
            made.breaker.succeeded()
        said += [repr(made), repr(made.login._token), repr(made.cache), repr(made.events)]  # type: ignore[attr-defined]
    text = "\n".join([*said, *(record.getMessage() + repr(record.__dict__) for record in caplog.records)])
    secrets = [(tmp_path / name).read_text().strip() for name in ("role-id", "secret-id")]
    for secret in (token, VALUE, "987-65-4321", *secrets):
        assert secret not in text


async def test_nothing_is_taken_from_the_environment(
    vault: Vault, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "from-the-environment")
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with provider(settings) as made:
        assert isinstance((await encoded(made, VALUE))[0], str)
        assert vault.seen[0].token not in ("from-the-environment", vault.root)


async def test_the_login_is_not_made_in_the_event_loop(vault: Vault, settings: Settings) -> None:
    names: set[str] = set()
    import grille.proxy.vault_login as module

    made = module.client

    def client(*arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return made(*arguments)

    module.client = client
    try:
        login = VaultLogin(settings)
        task = asyncio.create_task(login.watch())
        await login.token()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    finally:
        module.client = made
    assert names
    assert "MainThread" not in names
