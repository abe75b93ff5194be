"""What a client may ask for at startup and with SET: an allow-list, each setting with a closed grammar.

Database and role come from the identity's configuration.  What the client says about them is read and ignored, and
every setting that is not listed here is refused (control ID-04).  PostgreSQL documentation: chapter 54.7,
"StartupMessage", and chapter 19, "Server Configuration".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NoReturn
from urllib.parse import unquote

import msgspec

from grille.audit.event import Chain
from grille.controls import Refusal

PROTOCOL_3_0: Final = 0x0003_0000
PROTOCOL_3_2: Final = 0x0003_0002
MAX_TRACE_BYTES: Final = 4096
MAX_TRACE_PAIRS: Final = 32
TRACE: Final = "grille.trace"

_NAMES: Final = {
    name.lower(): name
    for name in (
        "application_name",
        "client_encoding",
        "DateStyle",
        "TimeZone",
        "IntervalStyle",
        "extra_float_digits",
        TRACE,
    )
}
_TRANSACTION_NAMES: Final = (
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
)
_BOOLEANS: Final = {
    "on": "on",
    "true": "on",
    "yes": "on",
    "1": "on",
    "off": "off",
    "false": "off",
    "no": "off",
    "0": "off",
}
_ISOLATION: Final = ("serializable", "repeatable read", "read committed", "read uncommitted")
_INTERVAL_STYLES: Final = ("postgres", "postgres_verbose", "sql_standard", "iso_8601")
_TIME_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+\-/]{0,62}|[+-]?[0-9]{1,2}(\.[0-9]{1,2})?|[+-][0-9]{2}:[0-9]{2}")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,3}")
_DATE_STYLE_WORDS: Final = re.compile(r"[A-Za-z]+")

BASE: Final[Mapping[str, str]] = {
    "application_name": "",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
}
"""What a session starts with when the client asks for nothing."""


class Settings(msgspec.Struct, frozen=True):
    """The checked settings of one session: what the client asked for, canonically spelled."""

    values: tuple[tuple[str, str], ...] = ()
    """Sorted (name, value) pairs that differ from `BASE`; `grille.trace` is not among them."""

    def get(self, name: str) -> str | None:
        """The value in force of an allow-listed setting; None for a name that is neither set nor in `BASE`."""
        for known, value in self.values:
            if known == name:
                return value
        return BASE.get(name)

    def with_value(self, name: str, value: str | None) -> Settings:
        """These settings with one changed; None goes back to the base value."""
        changed = dict(self.values)
        if value is None or BASE.get(name) == value:
            changed.pop(name, None)
        else:
            changed[name] = value
        return Settings(tuple(sorted(changed.items())))

    def for_server(self) -> tuple[tuple[str, str], ...]:
        """The pairs that the server must know: the GUC profile.  The rest is answered by the proxy alone."""
        return tuple(pair for pair in self.values if pair[0] not in ("application_name", "client_encoding"))


_NO_SETTINGS: Final = Settings()
_NO_CHAIN: Final = Chain()


class Startup(msgspec.Struct, frozen=True):
    """A startup message that has passed the allow-list."""

    version: int
    """The protocol version that is spoken from here on: `PROTOCOL_3_0` or `PROTOCOL_3_2`."""
    settings: Settings
    chain: Chain
    negotiate: tuple[str, ...] | None
    """None: nothing to negotiate.  Else a NegotiateProtocolVersion with these unknown ``_pq_.`` names is due."""


def accept(version: int, parameters: Mapping[str, str]) -> Startup:
    """Check a startup message.

    Raises `Refusal` (fatal): 0A000 for another protocol, 42501 for a setting that is not allowed, 22023 for a bad
    value.
    """
    wanted, unknown = _wanted(version, parameters)
    settings = _NO_SETTINGS
    chain = _NO_CHAIN
    try:
        for name, value in wanted:
            known = canonical_name(name)
            if known is None:
                refuse_setting(name)
            if known == TRACE:
                chain = parse_trace(value, "startup")
            else:
                settings = settings.with_value(known, check(known, value))
    except Refusal as refusal:
        refusal.fatal = True
        raise
    return _started(version, settings, chain, unknown)


def accept_passthrough(version: int, parameters: Mapping[str, str]) -> tuple[Startup, dict[str, str]]:
    """Check the startup message of a passthrough session, whose client may change any setting anyway.

    The second value is what the server is to be given, in order: settings only, never user, database or replication,
    and ``options`` taken apart.  Raises `Refusal` (fatal) as `accept`, but for settings.
    """
    wanted, unknown = _wanted(version, parameters)
    settings = _NO_SETTINGS
    chain = _NO_CHAIN
    given: dict[str, str] = {}
    try:
        for name, value in wanted:
            known = canonical_name(name)
            if known == TRACE:
                chain = parse_trace(value, "startup")
                continue
            if known == "application_name":
                settings = settings.with_value(known, check(known, value))
            given.pop(name, None)
            given[name] = value
    except Refusal as refusal:
        refusal.fatal = True
        raise
    return _started(version, settings, chain, unknown), given


def _wanted(version: int, parameters: Mapping[str, str]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The settings that a startup message asks for, and the protocol options that it names."""
    if version >> 16 != 3:
        raise Refusal(
            "WP-02",
            f"protocol {version >> 16}.{version & 0xFFFF} is not spoken here; connect with protocol 3.0 or 3.2",
            sqlstate="0A000",
            fatal=True,
        )
    unknown = tuple(name for name in parameters if name.startswith("_pq_."))
    wanted: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if name in ("user", "database") or name in unknown:
            continue
        if name == "options":
            wanted.extend(parse_options(value))
        elif name == "replication":
            if value.lower() not in ("false", "off", "no", "0"):
                raise Refusal(
                    "WP-02", "replication connections are not carried by this proxy", sqlstate="0A000", fatal=True
                )
        else:
            wanted.append((name, value))
    return wanted, unknown


def _started(version: int, settings: Settings, chain: Chain, unknown: tuple[str, ...]) -> Startup:
    return Startup(
        version=min(version, PROTOCOL_3_2) if version & 0xFFFF >= 2 else PROTOCOL_3_0,
        settings=settings,
        chain=chain,
        negotiate=unknown if unknown or version > PROTOCOL_3_2 else None,
    )


def canonical_name(name: str) -> str | None:
    """The setting's own spelling if it is on the allow-list, whatever the case of ``name``; else None."""
    return _NAMES.get(name.lower())


def canonical_session_name(name: str) -> str | None:
    """As `canonical_name`, with the settings that only a running session may change."""
    lowered = name.lower()
    return _NAMES.get(lowered, lowered if lowered in _TRANSACTION_NAMES else None)


def check(name: str, value: str) -> str:
    """One value of one allow-listed setting, canonically spelled as the server reports it.

    Raises `Refusal` 22023 for a value that the setting's grammar does not have.
    """
    match name:
        case "application_name":
            # The server cuts at 63 bytes and escapes what is not printable ASCII; nothing here needs it unescaped.
            return "".join(c if " " <= c <= "~" else "?" for c in value)[:63]
        case "client_encoding":
            if "".join(c for c in value.lower() if c.isalnum()) not in ("utf8", "unicode"):
                raise Refusal(
                    "ID-04",
                    "this proxy speaks UTF8 only, and the client asked for another client_encoding",
                    sqlstate="22023",
                    hint="Set client_encoding (PGCLIENTENCODING for libpq) to UTF8.",
                )
            return "UTF8"
        case "DateStyle":
            return _date_style(value)
        case "TimeZone":
            if _TIME_ZONE.fullmatch(value):
                return value
        case "IntervalStyle":
            if value.lower() in _INTERVAL_STYLES:
                return value.lower()
        case "extra_float_digits":
            if _INTEGER.fullmatch(value.strip()) and -15 <= int(value) <= 3:
                return str(int(value))
        case "default_transaction_isolation":
            if value.lower() in _ISOLATION:
                return value.lower()
        case "default_transaction_read_only" | "default_transaction_deferrable":
            if value.lower() in _BOOLEANS:
                return _BOOLEANS[value.lower()]
    raise Refusal(
        "ID-04",
        f'the value given for setting "{name}" is not one that this proxy accepts',
        sqlstate="22023",
        hint=_ACCEPTED.get(name),
    )


def parse_options(text: str) -> list[tuple[str, str]]:
    """The ``-c name=value`` and ``--name=value`` switches of an ``options`` parameter.

    Words end at white space, and a backslash takes the next character as it is (PostgreSQL's pg_split_opts).
    Raises `Refusal` (fatal) for any other switch.
    """
    words: list[str] = []
    word: list[str] | None = None
    characters = iter(text)
    for character in characters:
        if character in " \t\n\r\v\f":
            if word is not None:
                words.append("".join(word))
            word = None
            continue
        if word is None:
            word = []
        if character == "\\":
            character = next(characters, "")
        word.append(character)
    if word is not None:
        words.append("".join(word))

    pairs: list[tuple[str, str]] = []
    rest = iter(words)
    for switch in rest:
        if switch == "-c":
            assignment = next(rest, "")
        elif switch.startswith("-c") or (switch.startswith("--") and len(switch) > 2):
            assignment = switch[2:]
        else:
            raise Refusal(
                "ID-04",
                "the startup parameter options may hold only -c name=value and --name=value",
                fatal=True,
            )
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise Refusal("ID-04", "a setting in the startup parameter options has no value", fatal=True)
        pairs.append((name.replace("-", "_"), value))
    return pairs


_PAIR = r"[A-Za-z0-9_.%\-]{1,64}\s*=\s*'(?:[^'\\\x00]|\\.){0,1024}'"
_COMMENT: Final = re.compile(rf"\s*/\*\s*({_PAIR}(?:\s*,\s*{_PAIR}){{0,31}})\s*\*/[\s;]*\Z")
_TRACE_PAIR: Final = re.compile(r"\s*([A-Za-z0-9_.%\-]{1,64})\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^,']*))\s*(?:,|\Z)")


def cut_comment(text: str) -> tuple[str, Chain | None]:
    """A statement without its trailing sqlcommenter comment, and what the comment said.

    Only a last comment of the strict form ``/*key='value',...*/`` is cut.  If the ``/*`` stood inside an open string
    the rest would be an open string too, so cutting never changes what a valid text means.
    """
    if not text.rstrip("; \t\r\n").endswith("*/"):
        return text, None
    start = text.rfind("/*")
    if start < 0 or len(text) - start > MAX_TRACE_BYTES:
        return text, None
    found = _COMMENT.match(text, start)
    if found is None:
        return text, None
    return text[:start].rstrip(), parse_trace(found.group(1), "comment")


def parse_trace(text: str, source: str) -> Chain:
    """A call chain out of ``key='urlencoded',...`` (quotes may be left out).  Raises `Refusal` 22023."""
    if not text.strip():
        return Chain()
    if len(text.encode()) > MAX_TRACE_BYTES:
        _refuse_trace()
    known: dict[str, str] = {}
    other: dict[str, str] = {}
    position = 0
    while position < len(text):
        found = _TRACE_PAIR.match(text, position)
        if found is None or len(known) + len(other) == MAX_TRACE_PAIRS:
            _refuse_trace()
        position = found.end()
        quoted = found.group(2)
        raw = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else found.group(3).strip()
        key = unquote(found.group(1), errors="replace")
        value = unquote(raw, errors="replace")
        (known if key in ("traceparent", "prompt_id", "tool", "handler", "agent") else other)[key] = value
    return msgspec.convert({**known, "other": other, "source": source, "trust": "asserted"}, Chain)


def refuse_setting(name: str) -> NoReturn:
    """Raise the `Refusal` 42501 for a setting that is not on the allow-list; names it if the name is a plain one."""
    shown = name if re.fullmatch(r"[A-Za-z0-9_.]{1,63}", name) else "?"
    reason = (
        "names are resolved by the proxy, so qualify them with their schema instead"
        if shown.lower() == "search_path"
        else "it is not on the list of settings that a client may choose"
    )
    raise Refusal(
        "ID-04",
        f'setting "{shown}" cannot be changed through this proxy: {reason}',
        hint="Allowed: " + ", ".join(sorted(_NAMES.values(), key=str.lower)) + ".",
    )


def _refuse_trace() -> NoReturn:
    raise Refusal(
        "ID-04",
        "grille.trace is not a list of key='value' pairs",
        sqlstate="22023",
        hint="Write it as traceparent='...',prompt_id='...',tool='...', values URL-encoded, "
        f"{MAX_TRACE_BYTES} bytes at most.",
    )


def _date_style(value: str) -> str:
    style: str | None = None
    order: str | None = None
    for word in value.split(","):
        word = word.strip().upper()
        if not _DATE_STYLE_WORDS.fullmatch(word):
            break
        new_style = new_order = None
        if word in ("ISO", "SQL"):
            new_style = word
        elif word.startswith("POSTGRES"):
            new_style = "Postgres"
        elif word == "GERMAN":
            new_style = "German"
        elif word in ("YMD", "DMY", "MDY"):
            new_order = word
        elif word.startswith("EURO"):
            new_order = "DMY"
        elif word == "US" or word.startswith("NONEURO"):
            new_order = "MDY"
        else:
            break
        if (new_style and style not in (None, new_style)) or (new_order and order not in (None, new_order)):
            break
        style, order = new_style or style, new_order or order
    else:
        return f"{style or 'ISO'}, {order or ('DMY' if style == 'German' else 'MDY')}"
    raise Refusal(
        "ID-04",
        'the value given for setting "DateStyle" is not one that this proxy accepts',
        sqlstate="22023",
        hint=_ACCEPTED["DateStyle"],
    )


_ACCEPTED: Final = {
    "DateStyle": "A style (ISO, SQL, Postgres, German), an order (MDY, DMY, YMD), or both with a comma between.",
    "TimeZone": "A zone name such as Europe/Paris, or an offset in hours.",
    "IntervalStyle": ", ".join(_INTERVAL_STYLES) + ".",
    "extra_float_digits": "A whole number from -15 to 3.",
    "default_transaction_isolation": ", ".join(_ISOLATION) + ".",
    "default_transaction_read_only": "on or off.",
    "default_transaction_deferrable": "on or off.",
}
