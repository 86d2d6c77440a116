"""The house: what the build, the checks and the containers rest on, as far as it can be seen without running them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


class TestMakefile:
    @pytest.mark.parametrize(
        ("target", "commands"),
        [
            ("run", ["-m venv", "pip install", "scheduler demo --count 5"]),
            ("test", ["-m venv", "pip install", "[test,check]", "/pytest -n 3", " -x"]),
            ("check", ["ruff check", "ruff format --check", "mypy", "lint-imports", "cython-lint"]),
            ("bench", ["/pytest -q benchmarks", "-m benchmarks.idle_node", "-m benchmarks.node_rate"]),
            ("bench-peers", ["-m venv", "pip install", "hyperqueue", "-m benchmarks.peers.compare"]),
            ("bench-cli", ["-m benchmarks.command_line"]),
            ("bench-server", ["benchmarks/benchmark.py"]),
            ("chaos", ["-m tests.chaos --kills 200", "-m tests.chaos.syscalls", "-m tests.chaos.three_nodes"]),
            ("clean", ["rm -rf build"]),
        ],
    )
    def test_a_target_on_a_clean_machine(self, target: str, commands: list[str], tmp_path: Path) -> None:
        command = ["make", "-n", target, f"VENV={tmp_path}/venv", "DEMO=--count 5", "PYTEST=-x"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=plain_environment())
        assert done.returncode == 0, done.stderr
        position = -1
        for expected in commands:  # in this order
            position = done.stdout.find(expected, position + 1)
            assert position >= 0, f"{expected} does not come in:\n{done.stdout}"

    def test_an_old_python_is_refused_in_one_line(self, tmp_path: Path) -> None:
        old = tmp_path / "python3"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
        command = ["make", "--silent", "test", f"VENV={tmp_path}/venv", f"PYTHON={old}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=plain_environment())
        assert done.returncode != 0
        assert done.stderr.startswith("pysched needs Python 3.10 or newer; name one: make PYTHON=")
        assert os.listdir(tmp_path) == ["python3"]


def plain_environment() -> dict[str, str]:
    """Without what a `make test` around this test hands down."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


class TestContinuousIntegration:
    SCRIPT = ROOT / ".ci" / "run"

    def test_is_a_script_that_bash_understands(self) -> None:
        assert os.access(self.SCRIPT, os.X_OK)
        assert subprocess.run(["bash", "-n", self.SCRIPT], timeout=30).returncode == 0

    def test_calls_what_people_call(self) -> None:
        text = self.SCRIPT.read_text()
        calls = re.findall(r"^make ([\w -]+) VENV", text, re.MULTILINE)
        assert calls == ["run", "check", "fuzz-http sanitize", "test"]


class TestPackage:
    def test_api_and_ml_are_no_top_level_packages(self) -> None:
        """Names so plain would collide with other people's."""
        assert PROJECT["tool"]["scikit-build"]["wheel"]["packages"] == {
            "pysched": "pysched", "pysched/api": "api", "pysched/ml": "ml",
        }  # fmt: skip
        for name in ("pysched.api", "pysched.ml"):
            assert importlib.util.find_spec(name) is not None

    def test_the_licence_is_there(self) -> None:
        assert PROJECT["project"]["license"] == "MIT"
        for pattern in PROJECT["project"]["license-files"]:
            assert "the pysched authors" in (ROOT / pattern).read_text()

    def test_contracts_name_modules_that_exist(self) -> None:
        """A stage that was renamed must not slip out of its contract."""
        contracts = PROJECT["tool"]["importlinter"]["contracts"]
        named = {
            name
            for contract in contracts
            for key in ("modules", "source_modules", "forbidden_modules")
            for name in contract.get(key, [])
            if name.startswith("pysched.")
        }
        assert not [name for name in named if importlib.util.find_spec(name) is None]

    def test_every_stage_is_under_the_contract(self) -> None:
        stages = set(PROJECT["tool"]["importlinter"]["contracts"][0]["modules"])
        folders = {f"pysched.{path.parent.name}" for path in (ROOT / "pysched").glob("*/__init__.py")}
        assert folders - {"pysched.cli", "pysched.client", "pysched.demo"} <= stages


INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def dockerfile() -> Iterator[tuple[str, str]]:
    """(instruction, rest) of each line, continuation lines joined."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        yield instruction, rest.strip()


class TestDockerfile:
    def test_knows_its_instructions(self) -> None:
        assert {instruction for instruction, _ in dockerfile()} <= INSTRUCTIONS

    def test_copies_what_is_there_and_not_ignored(self) -> None:
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = [
            source
            for instruction, rest in dockerfile()
            if instruction == "COPY" and not rest.startswith("--from")
            for source in rest.split()[:-1]
        ]
        assert set(copied) == allowed
        assert all((ROOT / source).exists() for source in copied)
        packages = PROJECT["tool"]["scikit-build"]["wheel"]["packages"].values()
        assert {*packages, "csrc", "CMakeLists.txt", "pyproject.toml", PROJECT["project"]["readme"]} <= set(copied)

    def test_runs_as_nobody_special(self) -> None:
        steps = list(dockerfile())
        last_stage = steps[max(i for i, (instruction, _) in enumerate(steps) if instruction == "FROM") :]
        names = [instruction for instruction, _ in last_stage]
        assert dict(last_stage)["USER"] == "pysched"
        assert names.index("USER") < names.index("ENTRYPOINT")
        assert "g++" not in " ".join(rest for _, rest in last_stage)

    def test_its_health_check_is_python(self) -> None:
        check = dict(dockerfile())["HEALTHCHECK"]
        code = yaml.safe_load(check.partition("CMD")[2])[2]
        compile(code, "HEALTHCHECK", "exec")
        assert "/health" in code


class TestCompose:
    def test_services(self) -> None:
        assert set(COMPOSE["services"]) == {"db", "api", "node"}
        for name in ("api", "node"):
            service = COMPOSE["services"][name]
            assert service["depends_on"] == {"db": {"condition": "service_healthy"}}
            assert service["init"] is True
            assert service["build"] == {"context": "..", "dockerfile": "docker/Dockerfile"}
            assert service["environment"]["PYSCHED_DATABASE"].startswith("postgresql://")

    def test_volumes_are_declared(self) -> None:
        used = {volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service["volumes"]}
        assert used == set(COMPOSE["volumes"])

    def test_the_api_mirrors_into_the_queue_of_the_node(self) -> None:
        api, node = COMPOSE["services"]["api"]["command"], COMPOSE["services"]["node"]["command"]
        assert api[api.index("--mirror") + 1] == node[node.index("--queue") + 1]

    def test_publishes_on_loopback_only(self) -> None:
        ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
        assert ports == ["127.0.0.1:8321:8321"]

    def test_holds_no_password(self) -> None:
        text = (ROOT / "docker" / "compose.yaml").read_text()
        assert set(re.findall(r"PASSWORD: (\S+)", text)) == {"${POSTGRES_PASSWORD:?put"}

    def test_a_node_has_the_time_to_drain(self) -> None:
        node = COMPOSE["services"]["node"]
        drain = int(node["command"][node["command"].index("--drain-timeout") + 1])
        assert int(node["stop_grace_period"].removesuffix("s")) > drain

    @pytest.mark.parametrize("name", ["api", "node"])
    def test_its_commands_are_understood(self, name: str) -> None:
        """Each option is one that the command has."""
        command, *arguments = COMPOSE["services"][name]["command"]
        done = subprocess.run(
            [sys.executable, "-m", "pysched.cli", command, "--help"],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert all(option in done.stdout for option in arguments if option.startswith("--"))
