"""``grille demo`` as a newcomer runs it: a process of its own, judged by its output and by what it leaves behind."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grille.policies.bundles.build import DEMO
from tests.bundles import unpacked, with_data

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "grille", "demo"]
SECONDS = 120


class Running:
    """The demo under way; its output is read line by line."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []

    def read_until(self, pattern):
        """Read up to the line that matches.  Fails the test if there is none."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return
        pytest.fail(f"no line matches {pattern}:\n" + "\n".join(self.lines))

    def finish(self):
        """Read to the end; the exit status."""
        rest, _ = self.process.communicate(timeout=SECONDS)
        self.lines += rest.splitlines()
        return self.process.returncode

    @property
    def output(self):
        return "\n".join(self.lines)

    @property
    def directory(self):
        return Path(re.search(r"^Files of this run: (.+)$", self.output, re.MULTILINE)[1])


@pytest.fixture
def demo():
    started = []

    def start(*arguments):
        started.append(Running(*arguments))
        return started[-1]

    yield start
    for running in started:
        running.process.terminate()
        running.process.communicate(timeout=SECONDS)


def left_behind(directory):
    """Processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found


def assert_clean(directory):
    deadline = time.monotonic() + 10
    while left_behind(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left_behind(directory)
    assert not directory.exists()


def test_the_whole_story(demo):
    begun = time.monotonic()
    running = demo()
    assert running.finish() == 0, running.output
    assert time.monotonic() - begun < 60
    output = running.output
    assert re.search(r"^PostgreSQL 1[4-9]\.\d+ on a unix socket", output, re.MULTILINE)
    assert "for 30,000 clear values: none found." in output
    # two identities, the same statement, different rows and columns
    assert "spiffe://bank.example/ns/fraud/sa/scorer" in output
    assert "spiffe://bank.example/ns/service/sa/assistant" in output
    assert re.search(r"fraud analyst> SELECT count.*\n(.*\n)*? +10000 *\n", output)
    assert re.search(r"\*\*\*-\*\*-\d{4}", output)
    # the attack: refused, with a hint, and told from the prompt to the SQL
    attack = output.partition("The attack")[2]
    assert re.search(r"customer service> SELECT \* FROM customer_export\n  ERROR 42501: .*customer_export", attack)
    assert re.search(r"^  HINT: ", attack, re.MULTILINE)
    prompt = re.search(r"\((prompt-[0-9a-f]{8})\) obeys", attack)[1]
    story = attack.partition(f"$ grille audit show --chain {prompt}")[2]
    for word in (prompt, "mail.summarise", "export_customers", "DENIED", "customer_export"):
        assert word in story
    # the evidence
    assert re.search(r"^  verified events=\d+ blocks=\d+$", output, re.MULTILINE)
    assert re.search(r"^  tampered block=\S+ event=\S+ reason=", output, re.MULTILINE)
    assert_queues(output.partition("in front of a queue")[2])
    assert "Traceback" not in output
    assert_clean(running.directory)


def assert_queues(output):
    tokens = re.findall(r"^  on the queue: (\d{16}), ", output, re.MULTILINE)
    clear = re.findall(r"^mainframe bridge> MQPUT PAYMENTS.IN: (\d{16}), .* \(EBCDIC\)$", output, re.MULTILINE)
    assert len(tokens) == len(clear) == 2 and not set(tokens) & set(clear)
    assert re.findall(r"^settlement> MQGET PAYMENTS.IN: (\d{16}), ", output, re.MULTILINE) == clear
    masked = re.findall(r"^reporting> MQGET PAYMENTS.IN, browsing: (\S+), ", output, re.MULTILINE)
    assert masked == ["*" * 12 + number[-4:] for number in clear]
    assert "reporting> MQOPEN PAYMENTS.IN for input, which gets, which takes the message away: 2035" in output
    assert "stranger> MQCONN: 2035, not authorized" in output
    assert "DENIED MQ-04" in output and "moved to quarantine" in output
    assert re.search(r"^  verified events=\d+ blocks=\d+$", output, re.MULTILINE)


def test_the_chapter_on_queues(demo):
    running = demo("--mq")
    assert running.finish() == 0, running.output
    assert_queues(running.output)
    assert "PostgreSQL" not in running.output
    assert_clean(running.directory)


def test_keep_prints_lines_that_work_when_pasted(demo, tmp_path):
    running = demo("--keep")
    running.read_until("Running until Ctrl-C")
    output = running.output
    snippet = re.search(r"^import psycopg\n(?:.*\n)*?print\(.*\)$", output, re.MULTILINE)[0]
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("***-**-") == 3
    psql = re.search(r'^psql ".*"$', output, re.MULTILINE)[0]
    if shutil.which("psql"):
        command = f'{psql} --no-psqlrc -Atc "SELECT count(*) FROM customers"'
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == "10001\n", done.stderr
    for name in ("sslcert", "sslkey", "sslrootcert"):
        path = Path(re.search(rf"^jdbc:postgresql://localhost:\d+/bank\?.*{name}=([^&\n]+)", output, re.MULTILINE)[1])
        assert path.is_file()
        assert path.suffix == {"sslkey": ".pk8"}.get(name, ".pem")
    explain = re.search(r"^.* explain --config .*$", output, re.MULTILINE)[0]
    done = subprocess.run(["sh", "-c", explain], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    log = ["--log", str(running.directory / "audit")]
    done = policy("diff", DEMO, DEMO, *log)
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"diff same=[1-9]\d+ denied=0 .* unasked=\d+ unknown=0 questions=[1-9]\d*\n", done.stdout)
    data = json.loads(unpacked(DEMO.read_bytes())["data.json"])
    del data["roles"]["fraud-analyst"]["relations"]["public.customers"]
    other = tmp_path / "other.tar.gz"
    other.write_bytes(with_data(DEMO.read_bytes(), data, "other"))
    done = policy("diff", DEMO, other, *log)
    assert done.returncode == 1
    assert "  1 x  SELECT count(*) AS customers FROM customers\n" in done.stdout
    assert "This agent has no right to read public.customers." in done.stdout
    running.process.send_signal(signal.SIGINT)
    assert running.finish() == 0
    assert_clean(running.directory)


def policy(*arguments):
    command = [sys.executable, "-m", "grille", "policy", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_it_cleans_up(demo, number):
    running = demo()
    running.read_until("Grille in front of it")
    running.process.send_signal(number)
    assert running.finish() == 130
    assert "Traceback" not in running.output
    assert_clean(running.directory)


def test_a_directory_in_use_is_left_alone(demo, tmp_path):
    (tmp_path / "mine").write_text("precious")
    running = demo("--directory", str(tmp_path))
    assert running.finish() == 1
    assert "is not empty" in running.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_shows_the_logs_and_cleans_up(demo, monkeypatch):
    """Agents that speak TLS 1.2 only: nothing can be shown, and the demo must not pretend."""
    monkeypatch.setenv("PGSSLMINPROTOCOLVERSION", "TLSv1.2")
    monkeypatch.setenv("PGSSLMAXPROTOCOLVERSION", "TLSv1.2")
    running = demo()
    assert running.finish() == 1
    assert "The demo failed:" in running.output
    assert "The end of grille.log:" in running.output
    assert "Traceback" not in running.output
    assert_clean(running.directory)
