"""``grille explain``: what would become of a statement, for the author of a policy.

It reads the catalogue of the agent's database, asks the policy and rewrites the statement exactly as the proxy would,
and runs nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import msgspec

from grille.controls import Refusal
from grille.policies.pdp import DecisionError, PolicyDecisionPoint, PolicyUnavailable
from grille.protocols.operation import Operation
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.catalog import Catalog
from grille.protocols.postgres.copy import CopyInCommand
from grille.protocols.postgres.rewrite import Plan
from grille.proxy import keys
from grille.proxy.catalog import READ_FAILURES, connect, read_catalog
from grille.proxy.config import Config, Database
from grille.proxy.enforcement import Enforcement, Prepared, answered, policy_input
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.proxy.policy_commands import policy_of
from grille.proxy.startup import cut_comment


async def explain(config: Config, spiffe_id: str, sql: str) -> int:
    """Print the Operation, policy input, decision, rewritten SQL, slots and result columns; the exit status.

    0: allowed.  1: denied, or it cannot be told; the reason is printed as the agent would get it.
    """
    try:
        agent = Registry(config.identities).agent(parse_spiffe_id(spiffe_id))
    except ValueError as error:
        print(f'grille: "{spiffe_id}" {error}', file=sys.stderr)
        return 2
    except Refusal as refusal:
        print(f"grille: {refusal.message}. {refusal.hint or ''}", file=sys.stderr)
        return 1
    database = next(each for each in config.databases if each.name == agent.database)
    try:
        connection = await connect(database)
        try:
            catalog = await read_catalog(connection)
        finally:
            await connection.close()
    except READ_FAILURES as error:
        print(f'grille: database "{database.name}" cannot be read: {error}', file=sys.stderr)
        return 1
    async with contextlib.AsyncExitStack() as stack:
        policy = await policy_of(config, stack)
        if policy.problem:
            print(f"grille: {policy.problem}", file=sys.stderr)
            return 1
        return await _explain(config, agent, database, catalog, lambda: policy.current, sql)


async def _explain(
    config: Config, agent: Agent, database: Database, catalog: Catalog, pdp: Callable[[], PolicyDecisionPoint], sql: str
) -> int:
    domains = {each.name: each.token_domain for each in config.transformations}
    enforcement = Enforcement(
        catalog=lambda: catalog,
        pdp=pdp,
        provider=keys.token_provider(config),
        sensitive={
            column.name: Sensitive(column.transformation, domains.get(column.transformation or ""))
            for column in config.columns
        },
        functions=database.functions,
        definitions=database.definitions,
        max_statement=config.listener.max_statement_bytes,
    )
    print(f"agent       {agent.spiffe_id} -> database {agent.database}")
    print(f"catalogue   epoch {catalog.epoch}, server {catalog.server_version}")
    print(f"policy      revision {pdp().revision}")
    text, chain = cut_comment(sql)
    if chain is not None:
        print(f"chain       {msgspec.json.encode(chain).decode()}")
    try:
        all_prepared = await enforcement.prepare(agent, text, simple=True)
        for number, prepared in enumerate(all_prepared):
            if isinstance(prepared.command, CopyInCommand):
                print("\nCOPY FROM STDIN: each row that comes is checked as a row of this INSERT")
                all_prepared[number] = (await enforcement.prepare_copy(agent, prepared.command)).one
    except Refusal as refusal:
        await _print_refusal(agent, refusal, pdp)
        return 1
    for prepared in all_prepared:
        _print_prepared(agent, prepared)
    return 0


async def _print_refusal(agent: Agent, refusal: Refusal, pdp: Callable[[], PolicyDecisionPoint]) -> None:
    operation = refusal.operation
    if isinstance(operation, Operation):
        _print_json("operation", operation)
        document = policy_input(agent, operation)
        _print_json("policy input", document)
        try:
            encoded = msgspec.json.encode(document)
            _print_json("decision", await answered(lambda: pdp().decide(encoded)))
        except (PolicyUnavailable, DecisionError) as error:
            print(f"\ndecision\n  none: {error}")
    print(f"\nDENIED      {refusal.sqlstate} [{refusal.control}] {refusal.message}")
    if refusal.hint:
        print(f"hint        {refusal.hint}")
    if refusal.detail_for_audit:
        print(f"detail      {refusal.detail_for_audit}   (told to nobody but this command and the audit event)")


def _print_prepared(agent: Agent, prepared: Prepared) -> None:
    understood, verdict, plan = prepared.understood, prepared.verdict, prepared.plan
    if understood.operation is None or verdict is None or plan is None:
        print(f"\nSESSION     {prepared.action}: answered by the proxy, never sent upstream as it is")
        return
    form = "template, shared by every value" if understood.is_template else "exact text"
    print(f"\n{form}\n  {understood.text}")
    _print_json("operation", understood.operation)
    _print_json("policy input", policy_input(agent, understood.operation))
    _print_json("decision", verdict.decision)
    print(f"\nrewritten ({plan.name})\n  {plan.sql}")
    print(f"\nruns on     {runs_on(plan)}")
    print("\nslots")
    encoded = {slot.parameter: slot.transformation for slot in plan.encode}
    first_injected = len(plan.parameter_types) - len(plan.injected)
    for index in range(len(plan.parameter_types)):
        if index >= first_injected:
            slot = plan.injected[index - first_injected]
            print(f"  ${index + 1}  from the identity: {verdict.values[slot.value]!r} as {slot.type_name}")
            continue
        origin = "the statement's constant" if understood.is_template else "the client's parameter"
        if index >= plan.client_parameters:
            origin = "a constant lifted out of the statement"
        tokenized = f", tokenized under {encoded[index]}" if index in encoded else ""
        print(f"  ${index + 1}  {origin}{tokenized}")
    if not plan.parameter_types:
        print("  none")
    print("\nresult columns")
    if plan.swallow_rows or not plan.results:
        print("  as the server sends them" if not plan.swallow_rows else "  none: the statement returns no rows")
    for index, transform in enumerate(plan.results):
        if transform is None:
            become = "as the server sends it"
        elif transform.transformation is None:
            become = "NULL (masked)"
        else:
            become = f"decoded under {transform.transformation}"
            if transform.mask is not None:
                become += f", then masked ({transform.mask})"
        print(f"  {index + 1}  {become}")
    if plan.row_check_plan:
        print("\nrow check   every written row must satisfy the filter, or the statement fails (RO-02)")


def runs_on(plan: Plan) -> str:
    """Where the plan may run, and what says so."""
    if not plan.pure:
        return "a connection of its own (it writes, locks rows, or runs what may leave a trace in the session)"
    if plan.keyed:
        return f"a shared pipe ({'keyed by ' + ', '.join(plan.keys) if plan.keys else 'it reads no table'})"
    if plan.limited is not None:
        return f"a connection of its own (not bounded by a key; it stops after {plan.limited} rows)"
    return "a connection of its own (not bounded by a key)"


def _print_json(title: str, value: object) -> None:
    print(f"\n{title}")
    text = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2).decode()
    print("\n".join("  " + line for line in text.splitlines()))
