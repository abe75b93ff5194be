import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.protocols.postgres.framing import ProtocolViolation, backend_limits
from grille.protocols.postgres.pipeline import Expectation, Pipeline, Request, UnexpectedReply

SCRIPT = {
    Request.PARSE: ["1"],
    Request.BIND: ["2"],
    Request.CLOSE: ["3"],
    Request.DESCRIBE_STATEMENT: ["tT", "tn"],
    Request.DESCRIBE_PORTAL: ["T", "n"],
    Request.EXECUTE: ["C", "s", "I", "DC", "DDDs"],
    Request.SYNC: ["Z"],
}
ROOMY = {
    Request.EXECUTE_ANY: {
        "": "DCsIGH", "DD": "DCsIGH", "G": "C", "H": "dc", "Hdd": "dc", "Hc": "C",
    },
    Request.QUERY: {
        "": "TCIGHZ", "I": "TCIGHZ", "T": "DTC", "TDD": "DTC", "TDTD": "DTC", "TDCC": "TCIGHZ", "G": "C",
        "GC": "TCIGHZ", "H": "dc", "Hdd": "dc", "Hdc": "C", "HcC": "TCIGHZ", "E": "Z", "TDE": "Z", "GE": "Z",
    },
}  # fmt: skip
"""Requests with more than one way: what may follow what has come."""
REPLIES = [chr(kind) for kind in backend_limits(1000)]
ANY_TIME = "NS"


def expectations(*requests: Request) -> list[Expectation]:
    return [Expectation(request) for request in requests]


def play(pipeline: Pipeline, replies: str, status: bytes = b"I") -> list[Expectation | None]:
    return [pipeline.received(ord(reply), status if reply == "Z" else b"") for reply in replies]


UNIT = (Request.PARSE, Request.BIND, Request.DESCRIBE_PORTAL, Request.EXECUTE, Request.SYNC)


def test_each_reply_belongs_to_the_request_it_answers() -> None:
    pipeline = Pipeline()
    unit = expectations(*UNIT)
    parse, bind, describe, execute, sync = unit
    pipeline.sent(unit)
    assert pipeline.in_flight == 5
    assert play(pipeline, "1N2TDDSDCZ") == [
        parse, None, bind, describe, execute, execute, None, execute, execute, sync,
    ]  # fmt: skip
    assert pipeline.in_flight == 0


@pytest.mark.parametrize(("request_", "come"), [(request, come) for request in ROOMY for come in ROOMY[request]])
def test_a_copy_or_a_query_takes_what_may_follow_and_no_other(request_: Request, come: str) -> None:
    for reply in REPLIES:
        if reply in ANY_TIME:
            continue
        pipeline = Pipeline()
        sent = expectations(request_)
        pipeline.sent(sent)
        play(pipeline, come)
        if reply in ROOMY[request_][come] or (reply == "E" and "E" not in come):
            assert play(pipeline, reply) == sent
        else:
            with pytest.raises(UnexpectedReply):
                play(pipeline, reply)


def test_a_sync_behind_a_copy_from_the_client_is_void() -> None:
    """The server reads it as a part of the COPY; the client sends another when its data has ended."""
    pipeline = Pipeline()
    execute, first = expectations(Request.EXECUTE_ANY, Request.SYNC)
    pipeline.sent([execute, first])
    assert play(pipeline, "G") == [execute]
    assert pipeline.in_flight == 1
    (second,) = expectations(Request.SYNC)
    pipeline.sent([second])
    assert play(pipeline, "CZ") == [execute, second]
    assert pipeline.in_flight == 0


def test_a_query_that_failed_ends_by_itself() -> None:
    pipeline = Pipeline()
    sent = expectations(Request.QUERY)
    pipeline.sent(sent)
    play(pipeline, "GE")
    pipeline.sent([])  # data that was under way
    assert play(pipeline, "Z") == sent


def test_a_query_behind_an_error_is_skipped() -> None:
    pipeline = Pipeline()
    pipeline.sent(expectations(Request.PARSE, Request.QUERY))
    play(pipeline, "E")
    assert pipeline.in_flight == 0


@pytest.mark.parametrize("request_", list(SCRIPT))
def test_each_request_takes_its_own_replies_and_no_other(request_: Request) -> None:
    for script in SCRIPT[request_]:
        for length in range(len(script)):
            for wrong in REPLIES:
                legal = {s[length] for s in SCRIPT[request_] if s.startswith(script[:length]) and len(s) > length}
                if "D" in script[:length] or request_ is Request.EXECUTE:
                    legal = set("DCsI")
                if wrong in legal or wrong in ANY_TIME or wrong == "E":
                    continue
                pipeline = Pipeline()
                pipeline.sent(expectations(request_, Request.SYNC))
                play(pipeline, script[:length])
                with pytest.raises(UnexpectedReply, match=f"unexpected message '{wrong}'"):
                    play(pipeline, wrong)


@pytest.mark.parametrize("reply", [reply for reply in REPLIES if reply not in ANY_TIME])
def test_nothing_may_come_when_nothing_was_asked(reply: str) -> None:
    with pytest.raises(UnexpectedReply, match="nothing was asked"):
        play(Pipeline(), reply)


@pytest.mark.parametrize("failing", range(4))
def test_an_error_drops_the_rest_of_its_unit_only(failing: int) -> None:
    pipeline = Pipeline()
    first, second = expectations(*UNIT), expectations(*UNIT)
    pipeline.sent(first)
    pipeline.sent(second)
    good = ["1", "2", "T", "DDC"]
    play(pipeline, "".join(good[:failing]))
    assert play(pipeline, "E") == [first[failing]]
    assert pipeline.requests[0] is first[4]
    assert play(pipeline, "NZ") == [None, first[4]]
    assert play(pipeline, "12TDCZ") == [*second[:3], second[3], second[3], second[4]]


@pytest.mark.parametrize("reply", [reply for reply in REPLIES if reply not in "NSZ"])
def test_after_an_error_only_the_end_of_the_unit_may_come(reply: str) -> None:
    pipeline = Pipeline()
    pipeline.sent(expectations(*UNIT))
    play(pipeline, "1E")
    with pytest.raises(UnexpectedReply):
        play(pipeline, reply)


def test_sync_itself_may_fail_once() -> None:
    """A deferred constraint fails after CommandComplete."""
    pipeline = Pipeline()
    unit = expectations(Request.EXECUTE, Request.SYNC)
    pipeline.sent(unit)
    assert play(pipeline, "CEZ") == [unit[0], unit[1], unit[1]]
    pipeline.sent(expectations(Request.EXECUTE, Request.SYNC))
    with pytest.raises(UnexpectedReply):
        play(pipeline, "CEE")


def test_an_error_before_a_flush_leaves_nothing_expected_until_sync_is_sent() -> None:
    pipeline = Pipeline()
    pipeline.sent(expectations(Request.PARSE))
    play(pipeline, "E")
    assert pipeline.in_flight == 0
    sync = expectations(Request.SYNC)
    pipeline.sent(sync)
    assert play(pipeline, "Z") == sync


def test_what_is_sent_behind_an_error_but_before_sync_is_skipped_too() -> None:
    """The server ignores it, whether it arrived before or after the error was sent."""
    pipeline = Pipeline()
    pipeline.sent(expectations(Request.PARSE))
    play(pipeline, "E")
    late = expectations(Request.BIND, Request.EXECUTE, Request.SYNC)
    pipeline.sent(late)
    assert play(pipeline, "Z") == [late[2]]


@pytest.mark.parametrize("status", ["I", "T", "E"])
def test_the_transaction_status_is_remembered(status: str) -> None:
    pipeline = Pipeline()
    pipeline.sent(expectations(Request.SYNC))
    play(pipeline, "Z", status.encode())
    assert pipeline.status == status


@pytest.mark.parametrize("payload", [b"", b"X", b"II"])
def test_a_malformed_end_is_a_violation(payload: bytes) -> None:
    pipeline = Pipeline()
    pipeline.sent(expectations(Request.SYNC))
    with pytest.raises(ProtocolViolation):
        pipeline.received(ord("Z"), payload)


def test_marks_come_back_with_the_replies() -> None:
    pipeline = Pipeline()
    ours = Expectation(Request.PARSE, ours=True, statement="g1", item=3)
    pipeline.sent([ours, Expectation(Request.SYNC)])
    answered = pipeline.received(ord("1"), b"")
    assert answered is ours
    assert (answered.ours, answered.statement, answered.item) == (True, "g1", 3)


REQUESTS = st.sampled_from([request for request in SCRIPT if request is not Request.SYNC])
UNITS = st.lists(st.lists(REQUESTS, max_size=6), min_size=1, max_size=5)


@given(UNITS, st.data())
def test_whatever_a_server_may_answer_is_matched(units: list[list[Request]], data: st.DataObject) -> None:
    """A model of the server answers at random; each reply must come back with the request that it was made for."""
    sent: list[Expectation] = []
    replies: list[tuple[str, Expectation | None]] = []
    for unit in units:
        made = expectations(*unit, Request.SYNC)
        sent.extend(made)
        failed = False
        for expectation in made:
            if data.draw(st.booleans()):
                replies.append((data.draw(st.sampled_from(ANY_TIME)), None))
            if not failed and data.draw(st.integers(0, 5)) == 0:
                failed = True
                replies.append(("E", expectation))
            if expectation.request is Request.SYNC:
                replies.append(("Z", expectation))
            elif not failed:
                replies += [(reply, expectation) for reply in data.draw(st.sampled_from(SCRIPT[expectation.request]))]
    pipeline = Pipeline()
    pipeline.sent(sent)
    for reply, expectation in replies:
        assert play(pipeline, reply) == [expectation]
    assert pipeline.in_flight == 0


@given(UNITS, st.text(st.sampled_from(REPLIES), max_size=40))
def test_any_replies_are_matched_in_order_or_refused(units: list[list[Request]], replies: str) -> None:
    pipeline = Pipeline()
    sent = [e for unit in units for e in expectations(*unit, Request.SYNC)]
    pipeline.sent(sent)
    last = 0
    for reply in replies:
        try:
            (answered,) = play(pipeline, reply)
        except UnexpectedReply:
            return
        if answered is not None:
            place = next(i for i, e in enumerate(sent) if e is answered)
            assert place >= last
            last = place
