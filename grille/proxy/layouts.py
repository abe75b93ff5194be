"""Sensitive fields of messages: tokenized on their way into a queue, decoded or masked on their way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from grille.controls import Refusal
from grille.protocols.mq.copybook import Copybook
from grille.protocols.mq.documents import Delimited, Json, Xml
from grille.protocols.mq.headers import Body, body_of
from grille.protocols.mq.payload import Field, Layout, LayoutError, Mismatch, Span
from grille.protocols.mq.structures import MessageDescriptor
from grille.proxy.config import Config, ConfigError, Problem
from grille.proxy.config import Layout as LayoutSection
from grille.tokenization import masking
from grille.tokenization.provider import TokenizationError, TokenProvider, TokenRequest, Unfit

NO_CCSID: Final = 0
"""MQCCSI_Q_MGR: the queue manager's own, which is not told."""


class QueueLayout(msgspec.Struct, frozen=True):
    """The layout of one queue."""

    name: str
    layout: Layout
    ccsid: int
    quarantine: str
    fields: dict[str, str | None]
    """Transformation by field; None: the queue has it clear."""


class Changed(msgspec.Struct, frozen=True):
    """Data of a message with other values in its fields."""

    data: bytes
    tokens: int
    """Values that became tokens, or tokens that became values."""
    properties: dict[str, str]


def read_layouts(config: Config) -> dict[str, QueueLayout]:
    """The layouts of all configured queues, by queue.  Raises `ConfigError`."""
    made = {}
    for number, section in enumerate(config.layouts):
        try:
            made[section.name] = (section, _layout(section))
        except (LayoutError, OSError, UnicodeDecodeError) as error:
            what = f"cannot be used: {error.strerror if isinstance(error, OSError) else error}"
            raise ConfigError("layouts", [Problem(f"layouts[{number}]", section.name, what, "")]) from None
    return {
        queue.name: QueueLayout(
            queue.layout,
            made[queue.layout][1],
            made[queue.layout][0].ccsid,
            queue.quarantine,
            {field.name: field.transformation for field in made[queue.layout][0].fields},
        )
        for queue in config.queues
    }


def _layout(section: LayoutSection) -> Layout:
    fields = [Field(field.name, field.at) for field in section.fields]
    if section.copybook is not None:
        return Copybook(section.copybook.read_text(encoding="utf-8"), fields)
    if section.format == "json":
        return Json(fields)
    if section.format == "xml":
        return Xml(fields)
    return Delimited(fields, section.separator, section.quote, header=section.header)


class Payloads:
    """What is done with the data of messages of one queue manager."""

    def __init__(self, layouts: Mapping[str, QueueLayout], provider: TokenProvider) -> None:
        """``layouts``: by relation."""
        self._layouts = layouts
        self._provider = provider

    def of(self, relation: str) -> QueueLayout | None:
        """The layout of a queue; None: its messages pass as they are."""
        return self._layouts.get(relation)

    async def tokenized(self, layout: QueueLayout, message: MessageDescriptor, data: bytes) -> Changed:
        """The message that is put, with tokens for values.

        Raises `Mismatch`, which a value is too that does not fit its template, and `Refusal` TK-01.
        """
        body, spans = _found(layout, message, data)
        wanted = [span for span in spans if layout.fields[span.field] is not None and span.value]
        tokens = await self._call(self._provider.encode, layout, wanted)
        return _with(layout, data, body, list(zip(wanted, tokens, strict=True)), len(tokens))

    async def shown(
        self, layout: QueueLayout, message: MessageDescriptor, data: bytes, reads: Mapping[str, str]
    ) -> Changed:
        """The message that is got, as the decision says: ``clear``, ``token`` or ``mask:NAME``, by field.

        A mask that does not fit a field's place leaves no value there.  Raises `Mismatch` and `Refusal` TK-01.
        """
        body, spans = _found(layout, message, data)
        seen = [span for span in spans if reads[span.field] != "token" and span.value]
        encoded = [
            span for span in seen
            if layout.fields[span.field] is not None and reads[span.field] != f"mask:{masking.DEFAULT}"
        ]  # fmt: skip
        values = await self._call(self._provider.decode, layout, encoded)
        clear = {span.start: value for span, value in zip(encoded, values, strict=True)}
        changes: list[tuple[Span, str | None]] = []
        for span in seen:
            read = reads[span.field]
            value = clear.get(span.start, span.value)
            if read != "clear":
                changes.append((span, masking.apply(read.removeprefix("mask:"), value)))
            elif span.start in clear:
                changes.append((span, value))
        fitting = [
            (span, value if reads[span.field] == "clear" or _fits(layout, data, body, span, value) else None)
            for span, value in changes
        ]
        return _with(layout, data, body, fitting, len(values))

    async def _call(self, method: object, layout: QueueLayout, spans: Sequence[Span]) -> list[str]:
        if not spans:
            return []
        requests = [TokenRequest(str(layout.fields[span.field]), span.value) for span in spans]
        try:
            answers = await method(requests)  # type: ignore[operator]
        except TokenizationError as error:
            raise Refusal(
                "TK-01", "the token provider does not answer, so nothing goes on", sqlstate="58000",
                detail_for_audit=str(error),
            ) from None  # fmt: skip
        for span, answer in zip(spans, answers, strict=True):
            if isinstance(answer, Unfit):
                raise Mismatch(f"the field {span.field}: {answer.reason}")
        return list(answers)


def _found(layout: QueueLayout, message: MessageDescriptor, data: bytes) -> tuple[Body, list[Span]]:
    if message.segmented:
        raise Mismatch("the message is a part of another")
    body = body_of(data, message.format, message.ccsid, message.encoding)
    if body.ccsid == NO_CCSID and layout.ccsid:
        body = msgspec.structs.replace(body, ccsid=layout.ccsid)
    return body, layout.layout.find(data[body.at :], body.ccsid)


def _fits(layout: QueueLayout, data: bytes, body: Body, span: Span, value: str | None) -> bool:
    try:
        layout.layout.replaced(data[body.at :], [(span, value)], body.ccsid)
    except Mismatch:
        return False
    return True


def _with(
    layout: QueueLayout, data: bytes, body: Body, changes: Sequence[tuple[Span, str | None]], tokens: int
) -> Changed:
    payload = layout.layout.replaced(data[body.at :], changes, body.ccsid)
    return Changed(data[: body.at] + payload, tokens, body.properties)
