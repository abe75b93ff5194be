"""The ``grille`` command.

Each command imports what it needs when it runs, so that ``--help`` is quick.  Exit status: 0 done, 1 a check failed,
2 wrong usage or configuration.  Errors are one line on standard error each.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grille.proxy.config import Config

FAILED = 1
USAGE = 2

_ABOUT = """\
Grille stands between AI agents and a PostgreSQL database.  An agent connects with its
usual driver over mutual TLS; Grille knows it by the SPIFFE ID in its certificate, asks the
policy (Rego) about every statement, filters rows, tokenizes or masks columns, and signs a
record of all of it.  What Grille does not understand, it denies.
"""

_EXAMPLES = """\
a first look:
  grille demo                                    the whole story on a real PostgreSQL, two minutes
  grille demo --keep                             the same, left running to connect to
  grille check --config grille.toml              is everything that the file points at in order?
  grille serve --config grille.toml              run it

The configuration is explained in docs/reference/configuration.md, all commands in docs/reference/commands.md.
"""

_DEMO = """\
Starts a PostgreSQL with a small bank's data in it, Grille in front, and two agents with different
SPIFFE identities.  Shows that they get different rows, masked and tokenized columns, and denials
they can act on; replays an attack through a prompt; prints the signed record of it.  Ends by itself
and cleans up, unless --keep is given: then it prints a psql line, a psycopg snippet and a JDBC URL.
"""

_SERVE = """\
Runs the node: one worker process a core, all on one port.  Logs JSON lines to standard error; the
line with message "serving" names the ports.  SIGTERM drains (transactions in flight finish, new ones
are refused with 57P01), a second SIGTERM ends at once; SIGHUP reloads the policy bundle, the
certificates and the revocations.  /metrics, /livez and /readyz are on the admin listener.
"""

_CHECK = """\
Checks the configuration and everything it points at: keys, certificates, the policy bundle, the
audit directory, and for each database the connection, its TLS and authentication, the catalogue and
the sensitive columns.  One line an item, OK or FAIL, with what to do about it.
"""

_EXPLAIN = """\
The policy author's microscope.  Prints what Grille makes of one statement for one agent, without
running it: the operation, the policy's input, the decision, the SQL that would be sent, its slots,
and what each result column becomes.
"""

_AUDIT = """\
Works on the evidence that a node writes: checks that nothing was changed, shows events readably, and
takes the head that a later check is held against.
"""

_VERIFY = """\
Reads every block and event, checks hashes, order and signatures, and names the exact place of any
change.  A cut tail shows only against a head that was kept elsewhere (grille audit head).  The last
line is "verified events=N blocks=N" or "tampered block=.. event=.. reason=.." (exit 1).
"""

_SHOW = """\
Prints events, oldest first: who, what, why allowed or not, what came back, and the chain of prompt,
tool and handler that led to it.  Filters can be combined.
"""

_POLICY = """\
Works on a policy before it is put in force: builds a bundle from Rego, runs its tests and golden
decisions without a database, finds combinations that defeat themselves, and tells which of the
recorded statements it would decide otherwise.
"""

_BUILD = """\
Builds a bundle with OPA's compiler, from a directory with Rego and data (tests and golden decisions
stay out) and what it imports of Grille's library.  The revision is a digest of the sources.
"""

_TEST = """\
Checks the sources strictly, runs their Rego tests (*_test.rego), and asks the compiled policy the
questions of the golden decisions (*_golden.json: a list of {"name", "input", "decision"}).  Needs
the opa program, and no database.  The last line is "test rego=P/N golden=P/N".
"""

_LINT = """\
Asks the policy about every identity of the configuration and every relation of its database, and
reports what defeats itself: an agent that can write values and read their tokens, a row filter that
is not leakproof, a view that shows what its tables hide, no limits.  Reads the catalogue only.  The
last line is "lint errors=N warnings=N accepted=N ..", exit 1 if anything was found.
"""

_DIFF = """\
Replays recorded events through two policies and prints the statements whose outcome would change:
newly denied, newly allowed, allowed on other terms, denied with other words.  Each policy is a bundle
or a directory of sources.  Needs no database.  Exit 1 if anything changes.
"""

_TOKENS = """\
Works on tokenization: checks the format-preserving encryption that Grille has embedded, and sets up
Vault's Transform engine.
"""

_SETUP = """\
Compares Vault's Transform engine with the transformations of the configuration that it has to make,
and prints what is missing (+), to be extended (~) or wrong (!); --apply makes and extends.  What stored
tokens depend on is never changed.  Prints the token by which each key is known (transformations.check).
Logs in as the configuration says, or with the token of a file.  The last line is
"setup differences=N applied=N", exit 1 if a difference is left, 2 if Vault cannot be used.
"""

_DRILL = """\
Proves that tokens agree between regions, for disaster recovery, without any value leaving a region.
"""

_DRILL_RUN = """\
Each region is measured by a process of its own with that region's configuration, keys and databases.
What comes back is configuration and keyed digests, under a key that is new for each drill: of the
token keys, of a set of canary tokens, of every row (key and tokens), summed by parts of a table so
that their order does not matter.  Where a part differs its rows are compared one by one; which keys
these are is written inside each region only.  Some tokens of each column are decoded and encoded.
Writes report.json, report.html and the signed evidence over both (grille audit verify, grille drill
verify).  The last line is "drill tables=N rows=N differences=N verdict=agree|disagree"; exit 1 if
they disagree, 2 if a region could not be measured: --resume takes the drill up where it ended.
"""

_DRILL_REGION = """\
The part of a drill that runs inside a region: answers what "grille drill run" asks on standard input.
For a region whose configuration is elsewhere, see --remote there.
"""

_DRILL_VERIFY = """\
Checks the evidence of a report as "grille audit verify" does, and that the report's files are those
that were signed.
"""

_VECTORS = """\
Checks FF1 (NIST SP 800-38G r1) against published cases, one JSON object a line: radix, id, key and
tweak in hexadecimal, msg and ct as lists of numerals, result valid, invalid or acceptable.  Both
directions are tried, one value at a time and in batches.  Needs no configuration.  The last line is
"vectors ok=N wrong=N", exit 1 if one is wrong, 2 if the file has no case or is not in this format.
"""

_MQ = """\
Works on IBM MQ: connects to the configured queue managers as Grille does, and tries what it relies on.
"""

_MQ_CHECK = """\
Connects to each configured queue manager, agrees on a channel, and looks who it is.  With --queue it
also opens that queue, puts messages and gets them back in every way that a relayed client does, and
leaves it as empty as it was: it must have no messages and no other users meanwhile.  One line an item,
OK or FAIL.  No real queue manager has been at hand for Grille's own tests, so this is the place to see
whether yours answers as the stand-in of the tests does.
"""

_HEAD = """\
Writes the present head of every chain to a file.  Keep it elsewhere: whoever can change the
evidence must not be able to change it.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps our line breaks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="grille", description=_ABOUT, epilog=_EXAMPLES, formatter_class=_Formatter)
    top.add_argument("--version", action="version", version=_version_line(), help="print the version and the build")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        where: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str, text: str, *examples: str
    ) -> argparse.ArgumentParser:
        epilog = "example:\n" + "\n".join(f"  {example}" for example in examples)
        return where.add_parser(name, help=line, description=text, epilog=epilog, formatter_class=_Formatter)

    def configured(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made.add_argument("--config", metavar="FILE", type=Path, required=True, help="the configuration (TOML)")
        return made

    demo = command(commands, "demo", "see it work, end to end", _DEMO, "grille demo --keep")
    demo.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    demo.add_argument("--mq", action="store_true", help="only the chapter on IBM MQ, which needs no PostgreSQL")
    demo.add_argument("--directory", metavar="DIR", type=Path, help="where its files go (default: a temporary one)")

    configured(command(commands, "serve", "run the proxy", _SERVE, "grille serve --config grille.toml"))
    configured(command(commands, "check", "check a configuration", _CHECK, "grille check --config grille.toml"))

    explain = configured(
        command(
            commands, "explain", "what would become of a statement", _EXPLAIN,
            "grille explain --config grille.toml --as spiffe://bank.example/ns/fraud/sa/scorer \\",
            '    "SELECT name, ssn FROM customers WHERE id = 7"',
        )
    )  # fmt: skip
    explain.add_argument("--as", dest="spiffe_id", metavar="SPIFFE_ID", required=True, help="the agent")
    explain.add_argument("sql", metavar="SQL", help="one statement, in quotes")

    audit = command(
        commands, "audit", "verify and read the evidence", _AUDIT, "grille audit verify /var/lib/grille/audit"
    )
    parts = audit.add_subparsers(dest="part", metavar="PART", required=True)

    verify = command(
        parts, "verify", "has anything been changed?", _VERIFY,
        "grille audit verify /var/lib/grille/audit --head /mnt/elsewhere/head.json",
    )  # fmt: skip
    verify.add_argument("directory", metavar="DIR", type=Path, help="the audit directory")
    verify.add_argument("--head", metavar="FILE", type=Path, help="a head that was kept elsewhere")
    verify.add_argument("--public-key", metavar="FILE", type=Path, help="PEM file: the key that must have signed")

    show = command(
        parts, "show", "print events", _SHOW,
        "grille audit show /var/lib/grille/audit --decision deny --since 2026-11-24T00:00:00Z",
        "grille audit show /var/lib/grille/audit --chain prompt-4711",
    )  # fmt: skip
    show.add_argument("place", metavar="DIR", nargs="?", type=Path, help="the audit directory (default: .)")
    show.add_argument("--directory", metavar="DIR", type=Path, help="the same, as an option")
    show.add_argument("--agent", metavar="SPIFFE_ID", help='only this agent ("/*" at the end: all below)')
    show.add_argument("--decision", choices=("allow", "deny"), help="only these decisions")
    show.add_argument("--relation", metavar="SCHEMA.NAME", help="only statements that used this relation")
    show.add_argument("--since", metavar="TIME", help="RFC 3339, like 2026-11-24T08:00:00Z")
    show.add_argument("--until", metavar="TIME", help="RFC 3339")
    show.add_argument("--chain", metavar="TEXT", help="only events whose call chain holds this id")
    show.add_argument("--json", action="store_true", help="one JSON object a line")

    head = command(
        parts, "head", "keep the present head", _HEAD,
        "grille audit head /var/lib/grille/audit --out /mnt/elsewhere/head.json",
    )  # fmt: skip
    head.add_argument("directory", metavar="DIR", type=Path, help="the audit directory")
    head.add_argument("--out", metavar="FILE", type=Path, required=True, help="where to write it")

    policy = command(commands, "policy", "build, test and compare policies", _POLICY, "grille policy test policy")
    steps = policy.add_subparsers(dest="part", metavar="PART", required=True)
    sources = "a directory with Rego files"

    build = command(
        steps, "build", "make a bundle", _BUILD,
        "grille policy build policy policy.tar.gz",
        "grille policy build policy policy.tar.gz --signing-key policy.pem --signing-alg ES256",
    )  # fmt: skip
    build.add_argument("sources", metavar="DIR", type=Path, help=sources)
    build.add_argument("output", metavar="FILE", type=Path, help="the bundle to write")
    build.add_argument("--signing-key", metavar="FILE", type=Path, help="PEM file: the private key to sign it with")
    build.add_argument("--signing-alg", metavar="ALG", default="RS256", help="RS256 (the default), ES256, ..")

    test = command(steps, "test", "Rego tests and golden decisions", _TEST, "grille policy test policy")
    test.add_argument("sources", metavar="DIR", type=Path, help=sources)
    test.add_argument("--update", action="store_true", help="write the present decisions into the golden files")

    lint = configured(
        command(
            steps, "lint", "find what defeats itself", _LINT,
            "grille policy lint --config grille.toml",
            "grille policy lint --config grille.toml --policy policy --accept search-oracle:public.customers.ssn",
        )
    )  # fmt: skip
    lint.add_argument("--policy", metavar="PATH", type=Path, help="a bundle or sources (default: the configuration's)")
    lint.add_argument(
        "--accept", metavar="CODE[:SUBJECT]", action="append", default=[], help="a finding that is known and wanted"
    )

    diff = command(
        steps, "diff", "what would change", _DIFF,
        "grille policy diff old.tar.gz new.tar.gz --log /var/lib/grille/audit",
        "grille policy diff old.tar.gz policy --log /var/lib/grille/audit --since 2026-11-24T00:00:00Z",
    )  # fmt: skip
    diff.add_argument("old", metavar="OLD", type=Path, help="a bundle or sources")
    diff.add_argument("new", metavar="NEW", type=Path, help="a bundle or sources")
    diff.add_argument("--log", metavar="DIR", type=Path, required=True, help="the audit directory")
    diff.add_argument("--since", metavar="TIME", help="RFC 3339, like 2026-11-24T08:00:00Z")
    diff.add_argument("--until", metavar="TIME", help="RFC 3339")

    tokens = command(
        commands, "tokens", "check and set up tokenization", _TOKENS, "grille tokens vectors ff1-vectors.jsonl"
    )
    steps = tokens.add_subparsers(dest="part", metavar="PART", required=True)
    vectors = command(
        steps, "vectors", "published test vectors", _VECTORS, "grille tokens vectors ff1-vectors.jsonl"
    )  # fmt: skip
    vectors.add_argument("file", metavar="FILE", type=Path, help="the cases")

    setup = configured(
        command(
            steps, "setup", "set up Vault's engine", _SETUP,
            "grille tokens setup --config grille.toml",
            "grille tokens setup --config grille.toml --token-file admin.token --apply",
        )
    )  # fmt: skip
    setup.add_argument("--apply", action="store_true", help="make what is missing")
    setup.add_argument("--token-file", metavar="FILE", type=Path, help="a token that may administer the engine")

    drill = command(
        commands, "drill", "do tokens agree between regions?", _DRILL,
        "grille drill run --region A=a.toml --region B=b.toml --report drill-2026-11",
    )  # fmt: skip
    steps = drill.add_subparsers(dest="part", metavar="PART", required=True)
    drill_run = command(
        steps, "run", "compare regions", _DRILL_RUN,
        "grille drill run --region A=a.toml --region B=b.toml --report drill-2026-11",
        "grille drill run --region A=a.toml --report drill-2026-11 \\",
        '    --remote B="ssh b grille drill region --config /etc/grille/grille.toml --state /var/lib/grille/drill"',
    )  # fmt: skip
    drill_run.add_argument(
        "--region", metavar="NAME=FILE", action="append", default=[], help="a region and its configuration (TOML)"
    )
    drill_run.add_argument(
        "--remote", metavar="NAME=COMMAND", action="append", default=[], help="one whose process is begun by a command"
    )
    drill_run.add_argument("--report", metavar="DIR", type=Path, required=True, help="where the report goes: a new one")
    drill_run.add_argument("--resume", action="store_true", help="take up the drill that ended halfway there")
    drill_run.add_argument("--table", metavar="NAME", action="append", default=[], help="only this (may be repeated)")
    drill_run.add_argument(
        "--sample", metavar="N", type=int, default=100, help="tokens a column to decode and encode (default: 100)"
    )
    drill_run.add_argument(
        "--signing-key", metavar="FILE", type=Path, help="signs the report (default: that of the first region)"
    )
    region = configured(
        command(
            steps, "region", "one region's part", _DRILL_REGION,
            "grille drill region --config grille.toml --state /var/lib/grille/drill",
        )
    )  # fmt: skip
    region.add_argument("--state", metavar="DIR", type=Path, required=True, help="where it notes how far it came")
    signed = command(
        steps, "verify", "is a report as it was signed?", _DRILL_VERIFY, "grille drill verify drill-2026-11"
    )  # fmt: skip
    signed.add_argument("report", metavar="DIR", type=Path, help="the report")
    signed.add_argument("--public-key", metavar="FILE", type=Path, help="PEM file: the key that must have signed")

    mq = command(commands, "mq", "try queue managers", _MQ, "grille mq check --config grille.toml --queue GRILLE.TEST")
    steps = mq.add_subparsers(dest="part", metavar="PART", required=True)
    trial = configured(
        command(
            steps, "check", "does a queue manager answer as Grille expects?", _MQ_CHECK,
            "grille mq check --config grille.toml --queue GRILLE.TEST",
        )
    )  # fmt: skip
    trial.add_argument("--manager", metavar="NAME", help="only this queue manager")
    trial.add_argument("--queue", metavar="NAME", help="an empty local queue to try puts and gets with")

    command(commands, "version", "print the version", "Prints the version and the build.", "grille version")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        try:
            return _run(parser().parse_args(arguments))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        text = " ".join(str(error).split())
        print(f"grille: unexpected {type(error).__name__}: {text} (python -X dev shows where)", file=sys.stderr)
        return FAILED


def _run(chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "version":
            return _version()
        case "audit":
            return _audit(chosen)
        case "policy" if chosen.part != "lint":
            from grille.proxy import policy_commands

            return policy_commands.run(chosen, sys.stdout, sys.stderr)
        case "tokens" if chosen.part != "setup":
            from grille.proxy import token_commands

            return token_commands.run(chosen, sys.stdout, sys.stderr)
        case "drill" if chosen.part == "run":
            from grille.proxy import drill

            return drill.run(chosen, sys.stdout, sys.stderr)
        case "drill" if chosen.part == "verify":
            from grille.proxy import drill_report

            return drill_report.verify(chosen.report, chosen.public_key, sys.stdout)
        case "demo":
            from grille.proxy.demo.run import main as demo

            return demo(chosen)
    from grille.proxy.config import ConfigError, load

    try:
        return _with_config(chosen, load(chosen.config))
    except ConfigError as error:
        return _complain(str(error))


def _with_config(chosen: argparse.Namespace, config: Config) -> int:
    """The commands that need a configuration.  Raises `ConfigError`."""
    import asyncio

    match chosen.command:
        case "serve":
            from grille.proxy.keys import log_in
            from grille.proxy.node import serve
            from grille.proxy.telemetry import start_logging

            log_in(config)
            start_logging(config.process.log_level)
            try:
                return serve(config)
            except OSError as error:
                return _complain(error.strerror or str(error))
        case "check":
            from grille.proxy.check import check

            return asyncio.run(check(config, sys.stdout))
        case "drill":
            from grille.proxy import drill_region

            return drill_region.serve(config, chosen.state, sys.stdin, sys.stdout)
        case "mq":
            from grille.proxy.mq_check import check_queue_managers

            return asyncio.run(check_queue_managers(config, sys.stdout, chosen.manager, chosen.queue))
        case "policy":
            from grille.proxy import policy_commands

            return asyncio.run(policy_commands.lint(config, chosen.policy, chosen.accept, sys.stdout, sys.stderr))
        case "tokens":
            from grille.proxy import vault_setup

            return vault_setup.run(
                config, apply=chosen.apply, token_file=chosen.token_file, out=sys.stdout, err=sys.stderr
            )
        case _:
            from grille.proxy.explain import explain

            return asyncio.run(explain(config, chosen.spiffe_id, chosen.sql))


def _audit(chosen: argparse.Namespace) -> int:
    if chosen.part == "show":
        chosen.directory = chosen.place or chosen.directory or Path()
    if not chosen.directory.is_dir():
        return _complain(f"{chosen.directory} is not a directory; give the audit.directory of the configuration")
    from grille.audit import evidence

    match chosen.part:
        case "verify":
            return evidence.verify_command(chosen.directory, chosen.head, chosen.public_key)
        case "show":
            filters = ("agent", "decision", "relation", "since", "until", "chain", "json")
            return evidence.show_command(chosen.directory, **{name: getattr(chosen, name) for name in filters})
        case _:
            return evidence.head_command(chosen.directory, chosen.out)


def _version() -> int:
    print(_version_line())
    return 0


def _version_line() -> str:
    from grille import __version__, build

    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"grille {__version__} ({build()} build, Python {python})"


def _complain(text: str) -> int:
    for line in text.splitlines():
        print(f"grille: {line}", file=sys.stderr)
    return USAGE
