"""The wire protocol."""

# ruff: noqa: E501  (one statement a line)

from __future__ import annotations

from tests.catalogue.attacks import wire
from tests.catalogue.cases import SAME, batch, row

ROWS = [
    row(
        'E1', 'several statements in one text', 'ID-04',
        batch(("SELECT 1; SET ROLE postgres; SELECT id FROM people", "ID-04")),
        batch(("SELECT 1; CREATE TEMP TABLE z (a int)", "ST-05")),
        batch(("SELECT 1; SELECT id FROM secrets", "ST-03")),
        batch(("SELECT 1; SELECT id FROM people WHERE id < 3 ORDER BY id", SAME)),
        wire.second_statement_of_a_prepared_text,
    ),
    row(
        'E2', 'a table made inside a batch', 'ST-05',
        batch(("CREATE TEMP TABLE people AS SELECT 1 AS id; SELECT id FROM people", "ST-05")),
    ),
    row(
        'E3', 'FunctionCall', 'WP-02',
        wire.function_call,
    ),
    row(
        'E4', 'startup parameters', 'ID-04',
        wire.startup_parameters,
    ),
    row(
        'E5', 'replication mode', 'WP-02',
        wire.replication,
    ),
    row(
        'E6', "clear bytes before the agent's handshake", 'ID-03',
        wire.bytes_before_the_handshake,
    ),
    row(
        'E7', "clear bytes before Grille's own handshake with the database", 'UP-01',
        wire.bytes_before_the_upstream_handshake,
    ),
    row(
        'E8', 'no TLS, less TLS, or TLS asked for twice', 'ID-03',
        wire.tls_downgrade,
        why='GSSENCRequest is answered with N, because libpq sends it first when it holds a ticket; nothing in clear follows from that.',
    ),
    row(
        'E9', 'certificates that name two agents, or the wrong one', 'ID-01',
        wire.confused_identities,
    ),
    row(
        'E10', 'lengths that lie', 'WP-01',
        wire.lying_lengths,
    ),
    row(
        'E11', 'NUL in a text', 'WP-01',
        wire.nul_in_a_text,
    ),
    row(
        'E12', 'texts without their end, and bytes behind it', 'WP-01',
        wire.missing_terminators,
    ),
    row(
        'E13', 'a statement name of another agent', 'AC-01',
        wire.statement_names_are_each_sessions_own,
        why="The other agent's name does not exist (26000): names are each session's own.",
    ),
    row(
        'E14', 'Bind behind a failed Parse of an existing name', 'ST-03',
        wire.bind_behind_a_failed_parse,
    ),
    row(
        'E15', 'Bind and Execute behind a denied Parse', 'ST-03',
        wire.pipeline_behind_a_denial,
    ),
    row(
        'E16', 'a suspended portal after the policy changed', 'AC-01',
        wire.suspended_portal_after_a_change,
    ),
    row(
        'E17', 'a prepared statement after the policy changed', 'AC-01',
        wire.prepared_statement_after_a_change,
    ),
    row(
        'E18', 'the COPY sub-protocol', 'WP-02',
        wire.copy_messages,
    ),
    row(
        'E19', 'parameters that choose an object', 'ST-04',
        wire.parameters_that_choose_an_object,
    ),
    row(
        'E20', 'parameters in places that name something', 'ST-04',
        wire.parameters_in_sensitive_places,
    ),
    row(
        'E21', 'client_encoding', 'ID-04',
        ("SET client_encoding = 'SJIS'", "ID-04"),
        ("SET NAMES 'LATIN1'", "ID-04"),
        wire.invalid_utf8,
    ),
    row(
        'E22', 'standard_conforming_strings', 'ID-04',
        ("SET standard_conforming_strings = off", "ID-04"),
        ("SELECT set_config('standard_conforming_strings', 'off', false)", "ID-04"),
        [("SELECT public.turns('standard_conforming_strings', 'off')", "UP-01"), ("SELECT id FROM people WHERE name = 'a\\'' OR true --'", SAME)],
        wire.strings_stay_standard,
    ),
    row(
        'E23', "settings changed behind the proxy's back", 'UP-01',
        wire.changed_settings_end_the_connection,
    ),
    row(
        'E24', 'cancel requests', 'WP-05',
        wire.cancel_requests,
    ),
    row(
        'E25', 'what a session leaves behind', 'UP-01',
        wire.nothing_is_left_behind,
    ),
    row(
        'E26', "words of the server's errors", 'UP-02',
        ("SELECT id FROM people WHERE id = 3 AND 1 / (id - 3) > 0", "22012"),
        ("SELECT name::int FROM people WHERE id = 3", "22P02"),
        ("SELECT id FROM people GROUP BY name", "42803"),
        wire.words_of_errors,
    ),
    row(
        'E27', 'forged messages of the server', 'UP-01',
        wire.forged_server_messages,
    ),
]  # fmt: skip
