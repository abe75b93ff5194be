"""What an agent is told when something fails: refusals of Grille's own, and server errors without what they reveal.

A server error keeps its severity and SQLSTATE and gets a fixed message; of its fields only the names of objects that
the agent may know survive (control UP-02).  The audit event has the message without values.  Each SQLSTATE and each
control has an anchor in docs/reference/errors.md.  PostgreSQL documentation: chapter 54.8, "Error and Notice Message
Fields", and appendix A.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from grille.controls import Refusal

Permitted = Callable[[str, str, str], bool]
"""(schema, relation, column or "") -> whether the agent may be told that it exists."""

TEMPLATES: Final[Mapping[str, str]] = {
    "08006": "the connection to the database was lost",
    "0A000": "the database does not support this",
    "21000": "a subquery used as an expression returned more than one row, or ON CONFLICT would change one row twice",
    "22000": "the database could not use a value of the statement",
    "22001": "a value is too long for its type",
    "22003": "a number is out of range",
    "22004": "a null value is not allowed here",
    "22007": "a value is not a valid date or time",
    "22008": "a date or time is out of range",
    "22012": "division by zero",
    "22021": "a text value is not valid in the database's encoding",
    "22023": "a parameter has a value that is not allowed",
    "2202E": "an array subscript is wrong",
    "22P02": "a value does not have the form that its type needs",
    "22P03": "a binary value does not have the form that its type needs",
    "2201B": "a regular expression is not valid",
    "23000": "a constraint was violated",
    "23001": "a row is still referenced by other rows",
    "23502": "a null value violates a not-null constraint",
    "23503": "a row references, or is referenced by, another row",
    "23505": "a value that must be unique exists already",
    "23514": "a row violates a check constraint",
    "23P01": "a row conflicts with another under an exclusion constraint",
    "25001": "this cannot run inside a transaction",
    "25006": "the transaction is read-only",
    "25P02": "the transaction has failed: only ROLLBACK is accepted until it ends",
    "25P03": "the transaction was idle for too long and has been ended",
    "26000": "the prepared statement does not exist",
    "34000": "the portal or cursor does not exist",
    "3B001": "the savepoint does not exist",
    "40000": "the transaction was rolled back",
    "40001": "the transaction conflicts with another one; run it again",
    "40P01": "the transaction was part of a deadlock; run it again",
    "42501": "not permitted",
    "42601": "the database found an error in the statement's syntax",
    "42703": "a column does not exist, or you may not use it",
    "42704": "an object does not exist, or you may not use it",
    "42803": "a column must appear in GROUP BY or be used in an aggregate",
    "42804": "the types of two expressions do not match",
    "42846": "a value cannot be converted to the type that is needed",
    "42883": "a function or operator does not exist for these types, or you may not use it",
    "42P01": "a relation does not exist, or you may not use it",
    "42P05": "the prepared statement exists already",
    "42P08": "the types of a parameter are in conflict",
    "42P18": "the type of a parameter cannot be determined; add a cast",
    "53000": "the database is short of a resource",
    "53100": "the database has no disk space left",
    "53200": "the database has no memory left",
    "53300": "the database has no connection left",
    "53400": "a limit that is set for you was reached",
    "54000": "the statement exceeds a limit of the database",
    "54001": "the statement is too complex for the database",
    "54011": "the statement has too many columns",
    "54023": "a function has too many arguments",
    "55000": "an object is not in the state that this needs",
    "55006": "an object is in use",
    "55P03": "a lock could not be obtained in time",
    "57014": "the statement was cancelled, by request or because it took too long",
    "57P01": "the database or the proxy is shutting down; connect again",
    "57P02": "the database has crashed; connect again",
    "57P03": "the database is not ready to accept connections; try again",
    "58030": "the database could not read or write a file",
    "XX000": "the database met an internal error",
    "XX001": "the database found damaged data",
    "XX002": "the database found a damaged index",
}

_CLASSES: Final[Mapping[str, str]] = {
    "08": "the connection to the database failed",
    "0A": TEMPLATES["0A000"],
    "21": "a subquery returned too many rows or columns",
    "22": TEMPLATES["22000"],
    "23": TEMPLATES["23000"],
    "25": "the state of the transaction does not allow this",
    "40": TEMPLATES["40000"],
    "42": "the database could not understand the statement",
    "53": TEMPLATES["53000"],
    "54": TEMPLATES["54000"],
    "55": TEMPLATES["55000"],
    "57": "the database ended the statement",
    "58": "the database met a system error",
    "P0": "a function in the database raised an error",
    "XX": TEMPLATES["XX000"],
}
_UNLISTED: Final = "the database reported an error"

_HINTS: Final[Mapping[str, str]] = {
    "AC-01": "Ask for another thing that you are permitted to do, or ask the owner of this policy and give the "
    "decision id. The same statement will be denied again.",
    "AC-02": "The policy could not be evaluated. Try again later, and report the decision id if it goes on.",
    "AC-03": "Leave this relation out of the statement, or ask the owner of this policy and give the decision id.",
    "AC-04": "Your permission is not valid at this time. Ask the owner of this policy and give the decision id.",
    "AC-05": "Ask the owner of this policy and give the decision id. The same statement will be denied again.",
    "AC-06": "Ask for less: add a condition or a LIMIT, or wait before the next statement.",
    "AC-08": "Ask the operator of this proxy: passthrough needs databases.passthrough = true and the policy's "
    "answer to connect.",
    "AC-09": "Connect again: your statements will be decided under the policy in force.",
    "AU-01": "The audit trail cannot be written now. Nothing was answered; try again later.",
    "CO-01": "Leave this column out of the statement.",
    "CO-02": "Leave this column out of the statement.",
    "CO-03": "Compare the column with =, <> or IN, join, group or count by it; nothing else is possible on a tokenized "
    "column.",
    "CO-04": "Write a value of your own instead of one that is read from a masked column.",
    "ID-06": "Connect again with a valid certificate.",
    "ID-07": "Ask the operator of this proxy: this identity, or its certificate, was taken out of service.",
    "MQ-01": "Open for get, browse, put or inquire only, and leave user and context to the queue manager.",
    "MQ-02": "Open a queue by a name that you were given.",
    "MQ-03": "Name a queue that you may get from, or one that you have made, as ReplyToQ.",
    "MQ-04": "Put a message that is made up as the layout of the queue says.",
    "OP-01": "Connect again: another node, or this one after its restart, will answer.",
    "RO-02": "The row as written would be outside of what you may see. Write rows inside your own scope only.",
    "ST-01": "Correct the statement and send it again.",
    "ST-02": "Write the statement with plain SELECT, INSERT, UPDATE or DELETE.",
    "ST-03": "Use only relations and columns that you were given; a missing one and a forbidden one look the same.",
    "ST-04": "Use a built-in function or operator, or ask for this one to be listed.",
    "ST-05": "Send data statements only; the proxy keeps sessions and schemas out of reach.",
    "ST-06": "Send a smaller statement, with values as parameters.",
    "ST-08": "The database was changed meanwhile. Send the statement again.",
    "TK-01": "Protected values cannot be read or written now. Try again later.",
    "TK-03": "Columns of this kind can be read only. Find the rows by another column.",
    "UP-01": "If the statement writes, find out whether it took effect before you send it again.",
    "WP-02": "The connection is still usable unless the message says FATAL; use plain statements.",
}


_OWN_WORDS: Final = ("exec_stmt_", "PLy_", "plperl", "pltcl")
"""How the functions of the server begin that tell what somebody's function says."""
_QUOTATION: Final = "\"'`\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
"""Those of the server's languages."""
_NUMBER: Final = re.compile(r"(?<![\w$\x00])[0-9][\w.:,/+-]*(?!\x00)")


def refusal_fields(refusal: Refusal) -> dict[str, str]:
    """The fields of the ErrorResponse that tells an agent of a refusal, by field code."""
    origin = f"control {refusal.control}"
    if refusal.decision_id:
        origin += f", decision {refusal.decision_id}"
    severity = "FATAL" if refusal.fatal else "ERROR"
    fields = {"S": severity, "V": severity, "C": refusal.sqlstate, "M": f"{refusal.message} [{origin}]"}
    hint = refusal.hint or _HINTS.get(refusal.control)
    if hint:
        fields["H"] = hint
    if refusal.position is not None:
        fields["P"] = str(refusal.position)
    return fields


def scrubbed_fields(fields: Mapping[str, str], permitted: Permitted) -> dict[str, str]:
    """The fields of a server's ErrorResponse or NoticeResponse that an agent may see, by field code.

    Schema, table, column and constraint name are kept if ``permitted`` says that the agent knows the object.
    """
    code = sqlstate(fields)
    severity = fields.get("V", "ERROR")
    if severity not in ("ERROR", "FATAL", "PANIC", "WARNING", "NOTICE", "DEBUG", "INFO", "LOG"):
        severity = "ERROR"
    message = TEMPLATES.get(code) or _CLASSES.get(code[:2], _UNLISTED)
    kept = {"S": severity, "V": severity, "C": code, "M": message}
    schema, table, column = fields.get("s", ""), fields.get("t", ""), fields.get("c", "")
    if schema and table and permitted(schema, table, ""):
        kept["s"], kept["t"] = schema, table
        if column and permitted(schema, table, column):
            kept["c"] = column
            if code == "23502":
                kept["M"] = f'a null value in column "{column}" violates a not-null constraint'
        if "n" in fields and code[:2] == "23":
            kept["n"] = fields["n"]
            kept["M"] += f' (constraint "{fields["n"]}")'
    return kept


def sqlstate(fields: Mapping[str, str]) -> str:
    """The SQLSTATE of an ErrorResponse; XX000 where it is missing or not one."""
    code = fields.get("C", "")
    return code if len(code) == 5 and code.isascii() and code.isalnum() else "XX000"


def audit_text(fields: Mapping[str, str]) -> str:
    """The server's own words for the audit event, without values.

    Of an error's parts those are kept that name things: schema, table, column, type, constraint, and the function of
    the server that tells it.  Of its message, what stands between quotation marks is kept only if it is one of these
    names, and numbers are not; of what somebody's function says nothing is.  Detail, hint, context and internal query
    show rows, parameters and constants (`PostgreSQL, "Error and Notice Message Fields"`).
    """
    names = [fields[code] for code in "stcdn" if fields.get(code)]
    message = fields.get("M", "")
    if fields.get("R", "").startswith(_OWN_WORDS) or sqlstate(fields)[:2] in ("P0", "38", "39"):
        message = ""
    for number, name in enumerate(names):
        message = message.replace(f'"{name}"', f"\x00{number}\x00")
    marks = [place for place, character in enumerate(message) if character in _QUOTATION]
    if marks:
        rest = message[marks[-1] + 1 :] if len(marks) > 1 else ""
        message = f'{message[: marks[0]]}"?"{rest}'
    message = _NUMBER.sub("?", message)
    for number, name in enumerate(names):
        message = message.replace(f"\x00{number}\x00", f'"{name}"')
    told = {"M": message, **{code: fields.get(code, "") for code in "stcdnR"}}
    return "; ".join(f"{code}={value}" for code, value in told.items() if value)[:8192]


def missing_setting(fields: Mapping[str, str]) -> str | None:
    """``grille_row_check`` or ``grille_catalogue_changed`` if the server says that this setting is unknown (42704).

    These two names are what a rewritten statement reads to raise an error on purpose.  They stand in the message
    between quotation marks, which differ by the server's language.
    """
    if fields.get("C") != "42704":
        return None
    for name in ("grille_row_check", "grille_catalogue_changed"):
        if name in fields.get("M", ""):
            return name
    return None
