"""An OPA server as the engine that refuses, lies, stalls and breaks off; a real one is in ``test_node.py``."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from grille.policies.decision import Decision
from grille.policies.pdp import DecisionError, LoggedDecision, PolicyUnavailable, Unanswered
from grille.proxy.config import Policy
from grille.proxy.enforcement import answered
from grille.proxy.policy_server import PolicyServer

YES = {
    "allow": True, "control": "AC-01", "reason": "r", "passthrough": False, "filters": {}, "columns": {}, "limits": {},
    "locks": False, "isolated": False, "not_before": None, "not_after": None, "cache": {"ttl_seconds": 60},
}  # fmt: skip

DEEP = b'{"result": ' + b"[" * 100_000 + b"]" * 100_000 + b', "provenance": {}}'

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers ``YES`` under ``revision``, or as ``handler`` says."""

    def __init__(self) -> None:
        self.revision = "r1"
        self.handler: Handler | None = None
        self.inputs: list[Any] = []
        self.headers: list[Any] = []
        self.peers: set[Any] = set()
        self.hold: asyncio.Event | None = None
        self.asked, self.both = asyncio.Event(), asyncio.Event()
        """One question has arrived, and two."""
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.query == {"provenance": "true"}
        assert request.transport is not None
        self.inputs.append((await request.json())["input"])
        self.headers.append(request.headers)
        self.peers.add(request.transport.get_extra_info("peername"))
        number = len(self.inputs)
        self.asked.set()
        if number > 1:
            self.both.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.handler is not None:
            return await self.handler(request)
        return web.json_response(self.body(decision_id=f"opa-{number}"))

    def body(self, **more: Any) -> dict[str, Any]:
        return {"result": YES, "provenance": {"version": "1", "bundles": {"b": {"revision": self.revision}}}, **more}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_post("/v1/data/grille/decision", made.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/data/grille/decision"
    yield made
    await runner.cleanup()


@pytest.fixture
async def policy(server: Server) -> AsyncIterator[PolicyServer]:
    made = PolicyServer(Policy(server_url=server.url, timeout=5.0))
    yield made
    await made.close()


async def decided(policy: PolicyServer, document: bytes = b'{"n": 1}') -> Decision:
    return await answered(lambda: policy.current.decide(document))


async def test_an_answer_is_a_decision_with_the_servers_id_and_revision(server: Server, policy: PolicyServer) -> None:
    decision = await decided(policy)
    assert isinstance(decision, LoggedDecision)
    assert (decision.allow, decision.id, policy.revision) == (True, "opa-1", "b=r1")
    assert server.inputs == [{"n": 1}]
    assert policy.last_success > 0


async def test_those_who_ask_the_same_at_once_share_one_question(server: Server, policy: PolicyServer) -> None:
    server.hold = asyncio.Event()
    waiting = [asyncio.create_task(decided(policy)) for _ in range(50)]
    other = asyncio.create_task(decided(policy, b'{"n": 2}'))
    await asyncio.wait_for(server.both.wait(), 20)
    server.hold.set()
    assert len({(await each).id for each in waiting}) == 1  # type: ignore[attr-defined]
    assert (await other).id != (await waiting[0]).id  # type: ignore[attr-defined]
    assert sorted(each["n"] for each in server.inputs) == [1, 2]


async def test_connections_are_kept_open(server: Server, policy: PolicyServer) -> None:
    for number in range(20):
        await decided(policy, b'{"n": %d}' % number)
    assert len(server.peers) == 1


async def test_who_gives_up_waiting_does_not_take_the_answer_from_others(server: Server, policy: PolicyServer) -> None:
    server.hold = asyncio.Event()
    first, second = asyncio.create_task(decided(policy)), asyncio.create_task(decided(policy))
    await asyncio.wait_for(server.asked.wait(), 20)
    first.cancel()
    server.hold.set()
    assert (await second).allow
    assert len(server.inputs) == 1


async def moved(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/v1/data/grille/decision")


async def broken_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


def says(body: Any, status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body if isinstance(body, bytes) else json.dumps(body).encode(), status=status)

    return handler


@pytest.mark.parametrize(
    ("handler", "kind", "message"),
    [
        (moved, PolicyUnavailable, "answers 302"),
        (broken_off, PolicyUnavailable, "cannot be asked"),
        (endless, DecisionError, "too long"),
        (says(b"", 500), PolicyUnavailable, "answers 500"),
        (says({"result": YES, "provenance": {}}, 400), PolicyUnavailable, "answers 400"),
        (says({"provenance": {}}), PolicyUnavailable, "undefined"),
        (says({"result": YES}), DecisionError, "provenance"),
        (says({"result": True, "provenance": {}}), DecisionError, "object"),
        (says({"result": {**YES, "more": 1}, "provenance": {}}), DecisionError, "more"),
        (says({"result": {**YES, "id": "x"}, "provenance": {}}), DecisionError, "id"),
        (says({"result": {key: YES[key] for key in YES if key != "locks"}, "provenance": {}}), DecisionError, "locks"),
        (says({"result": {**YES, "allow": "yes"}, "provenance": {}}), DecisionError, "allow"),
        (says(b"<html>"), DecisionError, "answer"),
        (says(b"\xff\xff"), DecisionError, "answer"),
        (says(DEEP), DecisionError, "nested|recursion|depth|answer"),
    ],
)
async def test_what_is_no_decision_denies(
    server: Server, policy: PolicyServer, handler: Handler, kind: type[Exception], message: str
) -> None:
    server.handler = handler
    with pytest.raises(kind, match=message):
        await decided(policy)
    await policy.look()
    assert policy.problem.startswith(server.url)
    server.handler = None
    assert (await decided(policy, b'{"n": 2}')).allow
    await policy.look()
    assert policy.problem == ""


async def test_a_server_that_stalls_and_one_that_is_not_there(server: Server) -> None:
    server.hold = asyncio.Event()
    policy = PolicyServer(Policy(server_url=server.url, timeout=0.05))
    with pytest.raises(PolicyUnavailable, match=re.escape("did not answer within 0.05 s")):
        await decided(policy)
    server.hold.set()
    await policy.close()
    absent = PolicyServer(Policy(server_url="http://127.0.0.1:1/v1/data/grille/decision"))
    with pytest.raises(PolicyUnavailable, match="ClientConnectorError"):
        await decided(absent)
    await absent.close()


async def test_a_new_revision_makes_a_new_engine(server: Server) -> None:
    told: list[tuple[str, str]] = []
    policy = PolicyServer(Policy(server_url=server.url), lambda name, text: told.append((name, text)))
    await policy.look()
    first = policy.current
    await policy.look()
    assert policy.current is first
    server.revision = "r2"
    await policy.look()
    assert policy.current is not first
    assert (first.revision, policy.revision) == ("b=r1", "b=r2")
    server.handler = says(b"", 500)
    await policy.look()
    await policy.look()
    assert [name for name, _ in told] == ["bundle", "bundle", "bundle-refused"]
    assert policy.failures == 1
    assert policy.current.revision == "b=r2"
    server.handler = says({"result": YES, "provenance": {"version": "1"}})
    await policy.look()
    assert policy.revision == "unversioned"
    await policy.close()


async def test_an_engine_that_never_settles_denies() -> None:
    def ask() -> Decision:
        raise Unanswered(asyncio.sleep(0))

    with pytest.raises(PolicyUnavailable, match="ever new revisions"):
        await answered(ask)


async def test_the_token_is_sent_and_never_told(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    policy = PolicyServer(Policy(server_url=server.url, server_token_file=token))
    await policy.look()
    assert server.headers[-1]["Authorization"] == "Bearer secret-token"
    for wrong in (b"secret\xfftoken", b"secret\x00token"):
        token.write_bytes(wrong)
        await policy.look()
        assert policy.problem
        assert "secret" not in policy.problem
    await policy.close()
