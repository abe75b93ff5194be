"""IBM MQ through Grille: who may do what with which queue, what is recorded of it, and how a channel ends."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grille.audit.event import Event
from grille.protocols.mq import calls, requests
from grille.protocols.mq.requests import BROWSE, INPUT_SHARED, INQUIRE, OUTPUT, Described
from grille.protocols.mq.segments import MULTIPLEXED, WHOLE, Segment, Type
from grille.proxy.mq_client import Client, Connection, MqError
from tests.mq.lab import DEADLINE, Lab, eventually
from tests.mq.manager import CHANNEL, NAME, Peer
from tests.mq.queues import Queue
from tests.mq.window import EVERYTHING
from tests.mq.wire import WireError
from tests.protocols.mq import build

BOTH = INPUT_SHARED | OUTPUT
CANARY = b"4929-CANARY-0007"


@contextlib.contextmanager
def fails(reason: int) -> Any:
    with pytest.raises(MqError) as raised:
        yield
    assert raised.value.reason == reason


def grants(**accesses: str) -> dict[str, list[str]]:
    return {access: [f"{NAME}/{name}" for name in names.split()] for access, names in accesses.items()}


def shown(event: Event) -> tuple[str, str, str, int]:
    assert event.outcome is not None
    return event.action, event.template, event.outcome.status, event.outcome.reason


QUEUES = (
    "A.QUEUE", "B.QUEUE", "HIDDEN", Queue("ALIAS", target="A.QUEUE"), Queue("SIDE.DOOR", target="HIDDEN"),
    Queue("FAR", target="THERE", remote="QM2"),
)  # fmt: skip


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    names = "A.QUEUE B.QUEUE ALIAS SIDE.DOOR FAR SYSTEM.DEFAULT.MODEL.QUEUE"
    allowed = grants(put=names, get=names, browse=names, inquire=names)
    async with Lab(tmp_path, QUEUES, {"client": allowed, "reader": grants(browse="A.QUEUE")}) as lab:
        yield lab


# what passes


async def test_messages_pass_both_ways(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH | BROWSE | INQUIRE)
    put = await connection.put(handle, CANARY, Described(format="MQSTR", persistent=True, correlation_id=b"c" * 24))
    numbers, _ = await connection.inquire(handle, 3)
    assert numbers == [1]
    seen = await connection.get(handle, requests.BROWSE_FIRST)
    got = await connection.get(handle, wait=1.0)
    assert seen is not None and got is not None and seen.data == got.data == CANARY
    assert got.descriptor.message_id == put.message_id != bytes(24)
    assert await connection.get(handle) is None
    await connection.close(handle)
    await connection.disconnect()
    assert [shown(event) for event in lab.events(kind="statement") if event.action != "inquire"][-8:] == [
        ("open", "MQOPEN QM1/A.QUEUE", "ok", 0),
        ("put", "MQPUT QM1/A.QUEUE", "intent", 0),
        ("put", "MQPUT QM1/A.QUEUE", "ok", 0),
        ("browse", "MQGET QM1/A.QUEUE", "ok", 0),
        ("get", "MQGET QM1/A.QUEUE", "ok", 0),
        ("get", "MQGET QM1/A.QUEUE", "ok", 2033),
        ("disconnect", "MQDISC", "intent", 0),
        ("disconnect", "MQDISC", "ok", 0),
    ]


async def test_what_an_event_has(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", OUTPUT)
    put = await connection.put(
        handle, CANARY, Described("MQSTR", 37, 0x311, True, b"k" * 24, "B.QUEUE"), requests.NO_SYNCPOINT
    )
    intent, outcome = lab.events(action="put")
    assert intent.outcome is not None and outcome.outcome is not None and outcome.message is not None
    assert intent.outcome.status == "intent" and outcome.intent == intent.id and outcome.level == "strict"
    assert (outcome.protocol, outcome.database, outcome.application) == ("mq", NAME, "grille")
    assert outcome.spiffe_id == "spiffe://mq.example/client" and outcome.certificate_sha256
    assert msgspec.to_builtins(outcome.message) == {
        "id": put.message_id.hex(), "correlation": (b"k" * 24).hex(), "bytes": len(CANARY), "format": "MQSTR",
        "ccsid": 37, "encoding": 0x311, "persistent": True, "reply_to": "B.QUEUE",
    }  # fmt: skip
    assert [(used.name, used.access) for used in outcome.relations] == [("QM1/A.QUEUE", "put")]
    assert outcome.verdict is not None and outcome.verdict.allow and outcome.verdict.revision.startswith("1")
    assert (outcome.outcome.rows, outcome.outcome.bytes) == (1, len(CANARY))
    assert outcome.stages["total"] > 0
    for path in (lab.directory / "audit").rglob("*"):
        assert not path.is_file() or CANARY not in path.read_bytes()


async def test_units_of_work(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    await connection.put(handle, b"one", options=requests.SYNCPOINT)
    await connection.backout()
    assert await connection.get(handle) is None
    await connection.put(handle, b"two", options=requests.SYNCPOINT)
    await connection.commit()
    got = await connection.get(handle, requests.SYNCPOINT)
    assert got is not None and got.data == b"two"
    await connection.backout()
    again = await connection.get(handle)
    assert again is not None and again.descriptor.backout_count == 1
    actions = [event.action for event in lab.events(level="strict") if event.intent]
    assert actions == ["put", "backout", "put", "commit", "backout"]


async def test_a_message_of_many_segments(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    data = bytes(range(256)) * 12_000
    await connection.put(handle, data)
    got = await connection.get(handle)
    assert got is not None and got.data == data


async def test_conversations_do_not_wait_for_each_other(lab: Lab) -> None:
    client = await lab.client()
    waiting, busy = await client.connect(), await client.connect()
    theirs, own = await waiting.open("B.QUEUE", INPUT_SHARED), await busy.open("B.QUEUE", OUTPUT)
    slow = asyncio.create_task(waiting.get(theirs, wait=DEADLINE))
    for number in range(20):
        await busy.put(own, b"%d" % number)
    got = await slow
    assert got is not None and got.data == b"0"


async def test_the_queue_manager_hears_of_the_configured_user_only(lab: Lab) -> None:
    client = await lab.client()
    plain = requests.connect(NAME, "app")
    connection = Connection(client, 1)
    client._connections[1] = connection
    user = Segment(Type.USERID_DATA, b"UID " + b"mqm".ljust(12) + bytes(12) + b"mqm".ljust(64) + bytes(40))
    connection._send(user, "")
    words = struct.pack("<4s7I", b"CAUT", 1, 12, 12, 3, 6, 0, 0) + b"mqmsecret"
    connection._send(Segment(Type.CONAUTH_INFO, words), "")
    assert (await connection._next("")).type is Type.STATUS
    await connection.call(plain, "MQCONN")
    (connected,) = lab.manager.connected
    assert (connected.user, connected.credentials) == ("client", False)


# what does not


@pytest.mark.parametrize(
    ("options", "reason"),
    [(INPUT_SHARED, 2035), (OUTPUT, 2035), (INQUIRE, 2035), (BROWSE | OUTPUT, 2035), (BROWSE, None)],
)
async def test_each_access_is_asked_about(lab: Lab, options: int, reason: int | None) -> None:
    connection = await lab.connection("reader")
    if reason is None:
        await connection.open("A.QUEUE", options)
        return
    with fails(reason):
        await connection.open("A.QUEUE", options)
    denied = await lab.event(action="open", spiffe_id="spiffe://mq.example/reader")
    assert denied.verdict is not None and not denied.verdict.allow
    assert denied.verdict.control == "AC-01" and denied.verdict.id and "is not yours to" in denied.verdict.reason
    assert denied.outcome is not None and (denied.outcome.status, denied.outcome.reason) == ("denied", 2035)
    assert await connection.open("A.QUEUE", BROWSE)


async def test_the_same_answer_for_a_hidden_queue_and_for_none(lab: Lab) -> None:
    connection = await lab.connection()
    for name in ("HIDDEN", "NO.SUCH"):
        with fails(2035):
            await connection.open(name, BROWSE)
        with fails(2035):
            await connection.put1(name, b"x")


@pytest.mark.parametrize("name", ["SIDE.DOOR", "FAR"])
async def test_a_name_that_leads_elsewhere_is_asked_about_again(lab: Lab, name: str) -> None:
    connection = await lab.connection()
    with fails(2035):
        await connection.open(name, OUTPUT)
    with fails(2035):
        await connection.put1(name, b"x")
    assert all(queue.outputs == 0 and not queue.messages for queue in lab.manager.queues.named.values())
    target = {"SIDE.DOOR": f"{NAME}/HIDDEN", "FAR": "QM2/THERE"}[name]
    denied = [event for event in lab.events(kind="statement") if event.outcome and event.outcome.status == "denied"]
    assert len(denied) == 2
    assert all(event.verdict is not None and target in event.verdict.reason for event in denied)
    more = {access: [f"{NAME}/*", "QM2/THERE"] for access in ("put", "get")}
    lab.grant({"client": more})
    assert await connection.open(name, OUTPUT)
    await connection.put1(name, b"x")


async def test_an_alias_of_what_is_allowed(lab: Lab) -> None:
    connection = await lab.connection()
    await connection.put1("ALIAS", b"x")
    handle = await connection.open("ALIAS", INPUT_SHARED)
    got = await connection.get(handle)
    assert got is not None and got.data == b"x"


@pytest.mark.parametrize(
    ("build", "reason", "control"),
    [
        (lambda: requests.open_("A.QUEUE", OUTPUT | 0x1000), 2035, "MQ-01"),  # ALTERNATE_USER_AUTHORITY
        (lambda: requests.open_("A.QUEUE", OUTPUT | 0x400), 2035, "MQ-01"),  # SET_IDENTITY_CONTEXT
        (lambda: requests.open_("A.QUEUE", OUTPUT | 0x800), 2035, "MQ-01"),  # SET_ALL_CONTEXT
        (lambda: requests.open_("A.QUEUE", 0x40), 2035, "MQ-01"),  # SET
        (lambda: requests.open_("A.QUEUE", OUTPUT | 1 << 30), 2035, "MQ-01"),
        (lambda: requests.open_("A.QUEUE", 0), 2035, "MQ-01"),
        (lambda: requests.open_("", OUTPUT), 2035, "MQ-01"),  # the queue manager itself
        (lambda: kind_of(requests.open_("A.TOPIC", OUTPUT), 8), 2035, "MQ-02"),
        (lambda: kind_of(requests.open_("A.LIST", INQUIRE), 2), 2035, "MQ-02"),
        (lambda: recorded(requests.open_("A.QUEUE", OUTPUT)), 2035, "MQ-02"),
        (lambda: requests.open_("A.QUEUE", OUTPUT, "QM9"), 2035, "AC-01"),
        (lambda: requests.open_("SYSTEM.PROTECTION.POLICY.QUEUE", BROWSE), 2085, "MQ-02"),
        (lambda: requests.put(2, b"x", Described(), 0x400), 2035, "MQ-01"),
        (lambda: requests.put(2, b"x", Described(), 0x800), 2035, "MQ-01"),
        (lambda: requests.put(2, b"x", Described(), 0x1000), 2035, "MQ-01"),
        (lambda: requests.put(9, b"x", Described()), 2019, "WP-01"),
        (lambda: requests.put(2, b"x", Described(reply_queue="HIDDEN")), 2035, "MQ-03"),
        (lambda: requests.put(2, b"x", Described(reply_queue="A.QUEUE", reply_manager="QM9")), 2035, "MQ-03"),
        (lambda: requests.put1("A.QUEUE", b"x", Described(reply_queue="NO.SUCH")), 2035, "MQ-03"),
        (lambda: requests.put1("HIDDEN", b"x", Described()), 2035, "AC-01"),
        (lambda: requests.put1("SYSTEM.DEFAULT.MODEL.QUEUE", b"x", Described()), 2011, "UP-02"),
        (lambda: call(Type.MQSET, 2, bytes(12)), 2035, "MQ-01"),
        (lambda: call(Type.MQSUB, 0, bytes(400)), 2298, "WP-02"),
        (lambda: call(Type.MQSUBRQ, 0, bytes(40)), 2298, "WP-02"),
        (lambda: call(Type.SPI, 0, struct.pack("<III", 2, 1, 256)), 2298, "WP-02"),
        (lambda: requests.inquire(9, (3,)), 2019, "WP-01"),
        (lambda: requests.simple(Type.MQCLOSE, 9), 2019, "WP-01"),
    ],
)  # fmt: skip
async def test_what_is_refused_leaves_the_connection_usable(
    lab: Lab, build: Callable[[], Segment], reason: int, control: str
) -> None:
    connection = await lab.connection()
    assert await connection.open("A.QUEUE", OUTPUT) == 2
    with fails(reason):
        await connection.call(build(), "call")
    await connection.put(2, b"after")
    (queue,) = (queue for name, queue in lab.manager.queues.named.items() if name == "A.QUEUE")
    assert [message.data for message in queue.messages] == [b"after"]
    assert lab.manager.complaints == []
    denied = [event for event in lab.events(kind="statement") if event.outcome and event.outcome.reason == reason]
    if control != "UP-02":
        assert [event.verdict.control for event in denied if event.verdict] == [control]


def call(kind: Type, handle: int, rest: bytes) -> Segment:
    head = (52 + len(rest)).to_bytes(4, "big") + struct.pack("<IIi", 0, 0, handle)
    return Segment(kind, head + rest, eyecatcher=MULTIPLEXED)


def changed(segment: Segment, at: int, value: int) -> Segment:
    body = bytearray(segment.body)
    struct.pack_into("<I", body, at, value)
    return msgspec.structs.replace(segment, body=bytes(body))


def kind_of(segment: Segment, kind: int) -> Segment:
    return changed(segment, calls.API + 8, kind)


def recorded(segment: Segment) -> Segment:
    return changed(segment, calls.API + 168, 1)


@pytest.mark.parametrize("options", [0x0800_0000, 0x8])
async def test_a_get_that_is_not_carried(lab: Lab, options: int) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    await connection.put(handle, b"x")
    with fails(2298):
        await connection.get(handle, options)
    with fails(2298):
        await connection.get(handle, options, wait=1.0)
    assert (await connection.get(handle)) is not None


async def test_a_get_of_a_handle_that_is_not_open(lab: Lab) -> None:
    connection = await lab.connection()
    with fails(2019):
        await connection.get(4)


@pytest.mark.parametrize("selectors", [(2029,), (15, 31), (3,)])
async def test_of_a_queue_manager_little_is_told(lab: Lab, selectors: tuple[int, ...]) -> None:
    connection = await lab.connection()
    handle = await connection.open("", INQUIRE)
    with fails(2035):
        await connection.inquire(handle, *selectors, characters=48)
    _, name = await connection.inquire(handle, 2015, characters=48)
    assert name.rstrip() == NAME.encode()


async def test_a_policy_that_changes_binds_open_handles(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    await connection.put(handle, b"1")
    lab.grant({"client": grants(browse="A.QUEUE")})
    with fails(2035):
        await connection.put(handle, b"2")
    with fails(2035):
        await connection.get(handle)
    with fails(2035):
        await connection.get(handle, wait=1.0)
    lab.grant({"client": EVERYTHING})
    got = await connection.get(handle)
    assert got is not None and got.data == b"1"
    assert await connection.get(handle) is None


async def test_obligations_that_nobody_would_keep_deny(lab: Lab) -> None:
    connection = await lab.connection()
    for more in (
        {"limits": {"rows": 5}}, {"limits": {"seconds": 5}}, {"limits": {"concurrent": 5}},
        {"limits": {"distinct_keys_per_hour": 5}}, {"isolated": True}, {"passthrough": True},
        {"columns": {"QM1/A.QUEUE.x": {"read": "clear"}}},
    ):  # fmt: skip
        lab.grant({"client": EVERYTHING}, **more)
        with fails(2035):
            await connection.open("A.QUEUE", OUTPUT)
        assert lab.events(kind="statement")[-1].verdict.control == "AC-05"  # type: ignore[union-attr]
    lab.grant({"client": EVERYTHING}, not_after="2020-01-01T00:00:00Z")
    with fails(2035):
        await connection.open("A.QUEUE", OUTPUT)
    assert lab.events(kind="statement")[-1].verdict.control == "AC-04"  # type: ignore[union-attr]


async def test_limits_of_bytes_and_of_a_minute(lab: Lab) -> None:
    connection = await lab.connection()
    lab.grant({"client": EVERYTHING}, limits={"bytes": 10})
    handle = await connection.open("A.QUEUE", OUTPUT)
    await connection.put(handle, bytes(10))
    with fails(2030):
        await connection.put(handle, bytes(11))
    with fails(2035):
        await connection.open("A.QUEUE", INPUT_SHARED)
    lab.grant({"client": EVERYTHING}, limits={"statements_per_minute": 3})
    for _ in range(3):
        await connection.put(handle, b"x")
    with fails(2035):
        await connection.put(handle, b"x")
    assert (await lab.event(name="alert")).protocol == "mq"


# queues that a client makes


async def test_a_dynamic_queue_is_its_makers(lab: Lab) -> None:
    client = await lab.client()
    connection, other = await client.connect(), await client.connect()
    await connection.open("SYSTEM.DEFAULT.MODEL.QUEUE", INPUT_SHARED, dynamic="OWN.*")
    (name,) = (name for name in lab.manager.queues.named if name.startswith("OWN."))
    handle = await connection.open("A.QUEUE", OUTPUT)
    await connection.put(handle, b"x", Described(reply_queue=name))
    await other.put1(name, b"reply")
    theirs = await other.open(name, INPUT_SHARED)
    got = await other.get(theirs)
    assert got is not None and got.data == b"reply"
    stranger = await lab.connection()
    with fails(2035):
        await stranger.open(name, INPUT_SHARED)


# puts that nobody answers


async def test_asynchronous_puts_are_recorded_and_counted(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", OUTPUT)
    for number in range(5):
        reply_to = "HIDDEN" if number == 3 else ""
        call_ = requests.put(handle, b"%d" % number, Described(reply_queue=reply_to), calls.ASYNC_RESPONSE)
        connection._send(call_, "MQPUT")
    status = call(Type.MQSTAT, 0, struct.pack("<I4sI", 0, b"STAT", 1) + bytes(216))
    reply = await connection.call(status, "MQSTAT")
    code, reason, well, _, failed = struct.unpack_from("<5I", reply.body, calls.API + 12)
    assert (code, reason, well, failed) == (2, 2035, 4, 1)
    again = await connection.call(status, "MQSTAT")
    assert struct.unpack_from("<5I", again.body, calls.API + 12) == (0, 0, 0, 0, 0)
    queue = lab.manager.queues.named["A.QUEUE"]
    assert [message.data for message in queue.messages] == [b"0", b"1", b"2", b"4"]
    outcomes = [event.outcome.status for event in lab.events(action="put") if event.outcome]
    assert outcomes == ["intent", "ok"] * 3 + ["denied"] + ["intent", "ok"]


# who may connect


async def test_an_agent_without_a_queue_manager(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        with pytest.raises(MqError) as raised:
            await (await lab.client("stranger")).connect()
        assert raised.value.reason == 2035
        refused = await lab.event(name="refused")
        assert refused.verdict is not None and refused.verdict.control == "ID-05" and refused.protocol == "mq"
        assert lab.manager.connected == []


async def test_a_queue_manager_of_another_name(lab: Lab) -> None:
    client = await lab.client(manager="QM9")
    with fails(2058):
        await client.connect()
    for name in ("", "*"):
        await (await lab.client(manager=name)).connect()


async def test_a_channel_of_another_name(lab: Lab) -> None:
    with fails(2540):
        await lab.client(channel="SYSTEM.DEF.SVRCONN")
    refused = await lab.event(name="refused")
    assert refused.verdict is not None and refused.verdict.control == "ID-04"


async def test_a_queue_manager_that_is_down(lab: Lab) -> None:
    await lab.manager.close()
    with fails(2009):
        await lab.client()
    refused = await lab.event(name="refused")
    assert refused.verdict is not None and refused.verdict.control == "UP-01"


async def test_a_revoked_agent(tmp_path: Path) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    async with Lab(tmp_path, listener={"revocations": "revoked"}) as lab:
        connection = await lab.connection()
        revoked.write_text("spiffe://mq.example/client\n")
        lab.worker.reload()
        with fails(2009):
            await connection.open("A.QUEUE", OUTPUT)
        with fails(2035):
            await lab.connection()
        assert [event.verdict.control for event in lab.events(name="refused") if event.verdict] == ["ID-07"] * 2


# how a channel ends


async def gone(work: Awaitable[object]) -> None:
    async with asyncio.timeout(DEADLINE):
        with fails(2009):
            await work


def ends(*_: object) -> None:
    raise WireError("the queue manager ends")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        Segment(Type.MQCMIT, bytes(16), conversation=5).encode(),
        Segment(Type.MQPUT_REPLY, bytes(16), conversation=1).encode(),
        Segment(Type.MQPUT, bytes(16), conversation=1).encode(),
        Segment(Type.MQPUT, bytes(16), 0, conversation=1).encode(),
        Segment(Type.ASYNC_MESSAGE, bytes(60), conversation=1, request=1).encode(),
        Segment(Type.INITIAL_DATA, bytes(240), conversation=1).encode(),
        Segment(Type.REQUEST_MSGS, bytes(8), conversation=1, request=1).encode(),
        Segment(Type.SOCKET_ACTION, struct.pack("<5I", 2, 0, 1, 0, 0), WHOLE, eyecatcher=b"TSHC").encode(),
        b"TSHM" + (1 << 20).to_bytes(4, "big"),
    ],
    ids=range(10),
)
async def test_what_is_not_understood_ends_the_channel(lab: Lab, said: bytes) -> None:
    client = await lab.client()
    connection = await client.connect()
    await connection.open("A.QUEUE", OUTPUT)
    client._stream.send(said)
    await gone(connection._next(""))
    refused = await lab.event(name="refused")
    assert refused.verdict is not None and refused.verdict.control == "WP-01"
    assert refused.outcome is not None and refused.outcome.error
    await lab.event(name="disconnect")
    await eventually(lambda: lab.manager.queues.named["A.QUEUE"].outputs == 0)


async def test_half_a_segment_times_out(tmp_path: Path) -> None:
    async with Lab(tmp_path, listener={"idle_message_timeout": 0.2}) as lab:
        client = await lab.client()
        connection = await client.connect()
        client._stream.send(requests.simple(Type.MQCMIT).encode()[:20])
        await gone(connection._next(""))
        refused = await lab.event(name="refused")
        assert refused.verdict is not None and refused.verdict.control == "WP-04"


async def test_a_queue_manager_that_ends_in_a_call(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", OUTPUT)
    monkeypatch.setattr(Peer, "_put", ends)
    await gone(connection.put(handle, CANARY))
    await lab.event(name="disconnect")
    unknown = [event for event in lab.events(action="put") if event.outcome and event.outcome.status == "unknown"]
    assert [event.template for event in unknown] == ["MQPUT QM1/A.QUEUE"]


async def test_a_client_that_vanishes_undoes_its_unit(lab: Lab) -> None:
    client = await lab.client()
    connection = await client.connect()
    handle = await connection.open("A.QUEUE", OUTPUT)
    await connection.put(handle, b"x", options=requests.SYNCPOINT)
    await client.close()
    await lab.event(name="disconnect")
    await eventually(lambda: lab.manager.queues.named["A.QUEUE"].outputs == 0)
    assert lab.manager.queues.named["A.QUEUE"].messages == []


async def test_draining_waits_for_units_of_work(lab: Lab) -> None:
    idle, busy = await lab.client(), await lab.client()
    quiet, connection = await idle.connect(), await busy.connect()
    handle = await connection.open("A.QUEUE", OUTPUT)
    await connection.put(handle, b"x", options=requests.SYNCPOINT)
    draining = asyncio.create_task(lab.worker.drain(DEADLINE))
    await gone(quiet._next(""))
    await connection.put(handle, b"y", options=requests.SYNCPOINT)
    with fails(2161):
        await busy.connect()
    await connection.commit()
    await gone(connection._next(""))
    await draining
    assert len(lab.manager.queues.named["A.QUEUE"].messages) == 2


async def test_without_evidence_nothing_is_done(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    await connection.put(handle, b"x")
    recorder = lab.worker._recorder
    assert recorder is not None
    directory = lab.directory / "audit"
    recorder._fail(OSError("no disk"))
    for work in (connection.put(handle, b"y"), connection.get(handle), connection.commit()):
        with fails(2102):
            await work
    with fails(2102):
        await connection.open("B.QUEUE", OUTPUT)
    assert len(lab.manager.queues.named["A.QUEUE"].messages) == 1
    await eventually(lambda: recorder.healthy)
    got = await connection.get(handle)
    assert got is not None and got.data == b"x" and directory.exists()


# messages that the policy hides


def spi_open(queue: str, options: int, selected: str = "", version: int = 4) -> Segment:
    return msgspec.structs.replace(
        build.spi_open(queue, options, version=version, selection=selected.encode()), conversation=0
    )


async def put_all(lab: Lab, *branches: str) -> None:
    """Messages with a property, put around Grille."""
    client = await Client.open("127.0.0.1", lab.upstream, CHANNEL, NAME)
    connection = await client.connect()
    for number, branch in enumerate(branches):
        folder = f"<usr><branch>{branch}</branch><n dt='i4'>{number}</n></usr>".encode()
        folder += b" " * (-len(folder) % 4)
        rfh = struct.pack(">4sIIIi8sIII", b"RFH ", 2, 40 + len(folder), 273, 1208, b"MQSTR   ", 0, 1208, len(folder))
        await connection.put1("A.QUEUE", rfh + folder + branch.encode(), Described("MQHRF2", 1208, 273))
    await client.close()


OWN = {"type": "field", "operator": "eq", "field": "branch", "value": "0042"}


async def filtered(lab: Lab, condition: object, access: tuple[str, ...] = ("get", "browse")) -> None:
    filters = {f"{NAME}/{name}": condition for name in ("A.QUEUE", "ALIAS")}
    lab.grant({"client": EVERYTHING}, rules=dict.fromkeys(access, filters))


@pytest.mark.parametrize(
    ("condition", "seen"),
    [
        (OWN, ["0042"]),
        ({**OWN, "field": "QM1/A.QUEUE.branch"}, ["0042"]),
        ({**OWN, "operator": "ne"}, ["0001", "o'x", "0001"]),
        ({**OWN, "value": "o'x"}, ["o'x"]),
        ({**OWN, "value": "x' OR 'a'='a"}, []),
        ({**OWN, "operator": "in", "value": ["0001", "o'x"]}, ["0001", "o'x", "0001"]),
        ({**OWN, "operator": "ge", "field": "n", "value": 2}, ["o'x", "0001"]),
        ({"type": "compound", "operator": "not", "value": [OWN]}, ["0001", "o'x", "0001"]),
        (
            {
                "type": "compound",
                "operator": "and",
                "value": [{**OWN, "value": "0001"}, {**OWN, "operator": "gt", "field": "n", "value": 0}],
            },
            ["0001"],
        ),
        ({"type": "compound", "operator": "or", "value": [OWN, {**OWN, "value": "o'x"}]}, ["0042", "o'x"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [2, 4])
async def test_hidden_messages_stay_on_the_queue(lab: Lab, condition: object, seen: list[str], version: int) -> None:
    await put_all(lab, "0001", "0042", "o'x", "0001")
    await filtered(lab, condition)
    connection = await lab.connection()
    reply = await connection.call(spi_open("A.QUEUE", INPUT_SHARED | BROWSE, version=version), "MQOPEN")
    assert calls.opened(reply).version == version
    handle = calls.handle(reply)
    found = []
    while (got := await connection.get(handle)) is not None:
        found.append(got.data.rpartition(b" ")[2].rpartition(b">")[2].decode())
    assert found == seen
    left = [message.data[-4:].decode().lstrip(" >") for message in lab.manager.queues.named["A.QUEUE"].messages]
    assert len(left) == 4 - len(seen)


async def test_a_client_selects_within_what_it_may_see(lab: Lab) -> None:
    await put_all(lab, "0042", "0001", "0042")
    await filtered(lab, OWN)
    connection = await lab.connection()
    reply = await connection.call(spi_open("A.QUEUE", BROWSE, "n > 0 OR branch = '0001'"), "MQOPEN")
    assert calls.opened(reply).selection == b"n > 0 OR branch = '0001'"
    got = await connection.get(calls.handle(reply), requests.BROWSE_FIRST)
    assert got is not None and got.data.endswith(b"0042")
    assert await connection.get(calls.handle(reply), requests.BROWSE_NEXT) is None
    for text in ("n = 0) OR (n = 1", "n = 0 OR branch = 'x", "n = 0)", "(n = 0"):
        with fails(2035):
            await connection.call(spi_open("A.QUEUE", BROWSE, text), "MQOPEN")


async def test_a_filter_that_cannot_be_pushed_denies(lab: Lab) -> None:
    connection = await lab.connection()
    for condition in (
        {**OWN, "field": "x y"}, {**OWN, "field": "not"}, {**OWN, "value": None}, {**OWN, "value": "a\nb"},
        {**OWN, "operator": "in", "value": []}, {"type": "compound", "operator": "and", "value": []},
        {"type": "compound", "operator": "not", "value": [OWN, OWN]}, {**OWN, "value": "x" * 11_000},
    ):  # fmt: skip
        await filtered(lab, condition)
        with fails(2035):
            await connection.call(spi_open("A.QUEUE", BROWSE), "MQOPEN")
        assert lab.events(kind="statement")[-1].verdict.control == "AC-05"  # type: ignore[union-attr]
    await filtered(lab, OWN)
    with fails(2298):
        await connection.open("A.QUEUE", BROWSE)
    await filtered(lab, OWN, ("put",))
    with fails(2035):
        await connection.open("A.QUEUE", OUTPUT)


async def test_a_filter_that_changes_takes_a_new_open(lab: Lab) -> None:
    await put_all(lab, "0001", "0042")
    connection = await lab.connection()
    handle = calls.handle(await connection.call(spi_open("A.QUEUE", BROWSE), "MQOPEN"))
    assert await connection.get(handle, requests.BROWSE_FIRST) is not None
    await filtered(lab, OWN)
    with fails(2035):
        await connection.get(handle, requests.BROWSE_FIRST)
    handle = calls.handle(await connection.call(spi_open("A.QUEUE", BROWSE), "MQOPEN"))
    got = await connection.get(handle, requests.BROWSE_FIRST)
    assert got is not None and got.data.endswith(b"0042")


async def test_an_alias_does_not_lead_around_a_filter(lab: Lab) -> None:
    connection = await lab.connection()
    alias = calls.handle(await connection.call(spi_open("ALIAS", BROWSE), "MQOPEN"))
    lab.grant({"client": EVERYTHING}, rules={"browse": {f"{NAME}/A.QUEUE": OWN}})
    with fails(2035):
        await connection.call(spi_open("ALIAS", BROWSE), "MQOPEN")
    with fails(2035):
        await connection.get(alias, requests.BROWSE_FIRST)
    await filtered(lab, OWN)
    await connection.call(spi_open("ALIAS", BROWSE), "MQOPEN")


async def test_what_an_open_leads_to_is_asked_about_at_each_call(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("ALIAS", BOTH)
    await connection.put(handle, b"x")
    lab.grant({"client": EVERYTHING}, denied=[f"{NAME}/A.QUEUE"])
    with fails(2035):
        await connection.put(handle, b"y")
    with fails(2035):
        await connection.get(handle)
    assert len(lab.manager.queues.named["A.QUEUE"].messages) == 1


# what changes while a get waits


async def waits(
    lab: Lab, connection: Connection, handle: int, options: int = requests.NO_SYNCPOINT
) -> asyncio.Task[Any]:
    """A get under way, of which the queue manager knows."""
    waiting = asyncio.create_task(connection.get(handle, options, wait=DEADLINE))
    await eventually(lambda: bool(lab.manager.queues.named["A.QUEUE"].waiting))
    return waiting


async def put_around(lab: Lab, data: bytes) -> None:
    client = await Client.open("127.0.0.1", lab.upstream, CHANNEL, NAME)
    await (await client.connect()).put1("A.QUEUE", data)
    await client.close()


@pytest.mark.parametrize("level", ["strict", "power", "process"])
async def test_a_message_that_comes_under_another_policy_stays(tmp_path: Path, level: str) -> None:
    async with Lab(tmp_path, QUEUES, audit={"writes": level, "reads": "process"}) as lab:
        connection = await lab.connection()
        handle = await connection.open("A.QUEUE", BOTH | BROWSE)
        waiting = await waits(lab, connection, handle)
        lab.grant({"client": grants(put="A.QUEUE")})
        await put_around(lab, b"late")
        with fails(2035):
            await waiting
        queue = lab.manager.queues.named["A.QUEUE"]
        assert [message.data for message in queue.messages] == [b"late"]
        denied = lab.events(action="get")[-1] if level != "process" else lab.events(kind="statement")[-1]
        assert denied.verdict is not None and not denied.verdict.allow
        lab.grant({"client": EVERYTHING})
        got = await connection.get(handle)
        assert got is not None and got.data == b"late"


async def test_in_a_unit_of_work_that_ends_the_channel(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    waiting = await waits(lab, connection, handle, requests.SYNCPOINT)
    lab.grant({"client": grants(put="A.QUEUE")})
    await put_around(lab, b"late")
    await gone(waiting)
    await eventually(lambda: len(lab.manager.queues.named["A.QUEUE"].messages) == 1)


async def test_a_get_that_waits_outside_of_an_open_unit_of_work(lab: Lab) -> None:
    connection = await lab.connection()
    handle = await connection.open("A.QUEUE", BOTH)
    other = await connection.open("B.QUEUE", BOTH)
    await connection.put(other, b"x", options=requests.SYNCPOINT)
    with fails(2035):
        await connection.get(handle, wait=1.0)
    assert await connection.get(handle) is None
    await connection.backout()
    assert lab.manager.queues.named["B.QUEUE"].messages == []


# whose queues may be deleted


async def test_only_queues_that_were_made_for_a_client_are_deleted(lab: Lab) -> None:
    connection = await lab.connection()
    model = "SYSTEM.DEFAULT.MODEL.QUEUE"
    handle = await connection.open(model, INPUT_SHARED, dynamic="OWN.*")
    (name,) = (name for name in lab.manager.queues.named if name.startswith("OWN."))
    other = await connection.open("A.QUEUE", INPUT_SHARED)
    with fails(2035):
        await connection.call(call(Type.MQCLOSE, other, struct.pack("<I", 1)), "MQCLOSE")
    await connection.call(call(Type.MQCLOSE, handle, struct.pack("<I", 2)), "MQCLOSE")
    assert name not in lab.manager.queues.named
    with fails(2035):  # not its own any more, should there be one of that name again
        await connection.open(name, INPUT_SHARED)


async def test_a_name_that_leads_nobody_knows_where(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Peer, call: Any, at: int, what: Any, queue: Queue | None) -> bytes:
        return bytes(call.raw(at, what.total))

    monkeypatch.setattr(Peer, "_described", silent)
    connection = await lab.connection()
    for work in (connection.open("A.QUEUE", OUTPUT), connection.put1("A.QUEUE", b"x")):
        with fails(2035):
            await work
    assert await connection.open("A.QUEUE", INQUIRE)
    with fails(2035):
        await connection.put1("A.QUEUE", b"x")
