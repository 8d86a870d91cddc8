"""What the README shows, works; what it links to, exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vecmill.cli.main import COMMANDS
from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator import simulator_thread

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_there_are_two_commands_of_one_line_that_need_python_and_pip_only() -> None:
    install, tests = blocks("bash")
    for command in (install, tests):
        assert command.count("\n") == 1
        words = [part.split()[0] for part in command.split(" && ")]
        assert words[0] == "python3"
        assert all(re.fullmatch(r"python3|\.venv(-test)?/bin/(pip|python|vecmill)", word) for word in words)


def test_the_checks_run_exactly_these_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    function = script[script.index("readme_command() {") : script.index("}\n\nstep")] + "}\n"
    for number, command in enumerate(blocks("bash"), 1):
        shell = ["bash", "-c", f"{function}readme_command {number}"]
        assert subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout == command


def test_the_tutorials_commands_work_in_their_order(vecmill: Run, tmp_path: Path) -> None:
    tutorial = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    commands = [line for block in blocks("console", tutorial) for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        done = vecmill(*shlex.split(command.removeprefix("$ vecmill")))
        assert done.returncode == 0, (command, done.stderr)
    (code,) = blocks("python", tutorial)
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


def test_the_lock_pins_every_dependency_by_hash_and_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)(?: ;.*)? \\\n    --hash=sha256:", lock, re.MULTILINE))
    assert {re.split(r"[<>=;\[]", item)[0].strip().lower() for item in wanted} <= set(pinned)
    assert "://" not in lock


def test_the_lines_on_hosted_models_run(vecmill: Run, tmp_path: Path) -> None:
    section = README[README.index("## Hosted models") : README.index("## Search that")]
    (first, second) = blocks("console", section)
    assert second.startswith("$ vecmill simulate")
    table = "Text\n" + "".join(f'"review number {i}, of a thing that came broken"\n' for i in range(50))
    (tmp_path / "reviews.csv").write_text(table)
    with simulator_thread(Scenario()) as simulator:
        env = {"OPENAI_API_KEY": simulator.key, "OPENAI_BASE_URL": simulator.url}
        env["VECMILL_CACHE_DIR"] = str(tmp_path / "cache")
        commands = [line for line in first.splitlines() if not line.startswith("$ export")]
        for command in commands:
            done = vecmill(*shlex.split(command.removeprefix("$ vecmill")), **env)
            assert done.returncode == 0, (command, done.stderr)
        assert simulator.requests == 1  # nothing for the dry run, nothing for what is in the cache
        (code,) = blocks("python", section)
        command = [sys.executable, "-W", "error", "-c", code]
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, **env})


def test_the_lines_on_search_run(vecmill: Run, tmp_path: Path) -> None:
    section = README[README.index("## Search that") : README.index("## Serve it")]
    (commands,) = blocks("console", section)
    things = ("cat toy", "dog biscuit", "green tea", "dark chocolate", "apple juice")
    rows = [f'{n},{n % 5 + 1},"The {things[n % 5]} came in box {n} and was fine"\n' for n in range(300)]
    (tmp_path / "reviews.csv").write_text("Id,Score,Text\n" + "".join(rows))
    done = vecmill("embed", "reviews.csv", "--text", "Text", "--id", "Id", "-o", "reviews.parquet")
    assert done.returncode == 0, done.stderr
    for command in commands.splitlines():
        if "postgresql://" in command:
            continue  # tests/integration/test_postgres*.py have a server
        done = vecmill(*shlex.split(command.removeprefix("$ vecmill")))
        assert done.returncode == 0, (command, done.stderr)
    (code,) = blocks("python", section)
    command = [sys.executable, "-W", "error", "-c", f"{code}\nassert len(notes) == 1"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_the_python_lines_run(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "src").symlink_to(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "pets-" in first


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_every_command_shown_exists(page: Path) -> None:
    shown = re.findall(
        r"^\$? ?vecmill ([a-z]+)", "\n".join(blocks("console", page.read_text("utf-8"))), re.MULTILINE
    )
    assert set(shown) <= set(COMMANDS)
