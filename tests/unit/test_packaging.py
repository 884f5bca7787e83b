"""The Makefile, the supervisor, the image and the compose files agree with the package and the settings."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from ruamel.yaml import YAML

from app import cli
from app.programs import start
from app.settings import Settings
from app.version import VERSION

CHECKOUT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


def compose_file(name: str) -> dict[str, Any]:
    yaml = YAML(typ="safe")
    yaml.constructor.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))
    contents: dict[str, Any] = yaml.load((CHECKOUT / name).read_text())
    return contents


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = compose_file("docker-compose.yml")["services"]
    return services


def memory_bytes(service: dict[str, Any]) -> int:
    limit = service["deploy"]["resources"]["limits"]["memory"]
    assert limit.endswith("M")
    return int(limit[:-1]) * MIB


def test_the_containers_memory_adds_up_to_that_of_an_instance(services: dict[str, Any]) -> None:
    assert sum(map(memory_bytes, services.values())) == Settings().instance_memory_bytes


def test_each_container_has_the_memory_that_its_program_may_take(services: dict[str, Any]) -> None:
    budgets = Settings().memory_budgets()
    homes = {
        "nginx": "nginx",
        "http workers": "web",
        "courier": "courier",
        "engine": "engine",
        "hosts": "engine",
        "decoders": "engine",
        "rings": "engine",
        "index children": "engine",
        "ready children": "engine",
    }
    needed = dict.fromkeys(services, 0)
    for part, size in budgets.items():
        needed[homes[part]] += size
    assert all(needed[name] <= memory_bytes(service) for name, service in services.items())


def test_no_container_has_more_rights_than_it_needs(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True
        assert service["restart"] == "unless-stopped"
        assert "privileged" not in service
        assert "cap_add" not in service
    assert [name for name, service in services.items() if "network_mode" not in service] == [
        "nginx",
        "courier",
    ]


def test_the_override_for_machines_without_a_gpu_takes_the_reservation_away(services: dict[str, Any]) -> None:
    reservations = services["engine"]["deploy"]["resources"]["reservations"]
    assert reservations["devices"][0]["capabilities"] == ["gpu"]
    override = compose_file("deploy/docker-compose.cpu.yml")["services"]
    assert override["engine"]["deploy"] == {"resources": {"reservations": {"devices": []}}}
    assert "devices: !reset []" in (CHECKOUT / "deploy/docker-compose.cpu.yml").read_text()


def test_the_override_for_machines_without_a_gpu_builds_an_image_of_its_own(services: dict[str, Any]) -> None:
    override = compose_file("deploy/docker-compose.cpu.yml")["services"]
    assert override.keys() == services.keys()
    images = {(service["image"], service["build"]["args"]["FRAMEBOX_TORCH"]) for service in override.values()}
    assert images == {("framebox:cpu", "cpu")}
    assert {service["image"] for service in services.values()} == {"framebox"}
    assert "ARG FRAMEBOX_TORCH=cuda" in (CHECKOUT / "Dockerfile").read_text()


def test_containers_run_commands_that_exist(services: dict[str, Any]) -> None:
    lines = [service["command"] for service in services.values()]
    lines += [service["healthcheck"]["test"][1:] for service in services.values()]
    lines += [shlex.split(line.replace(",", " "))[1:] for line in _image_commands()]
    for line in lines:
        assert line[:3] == ["python", "-m", "app"]
        assert line[3] in cli.COMMANDS


def _image_commands() -> list[str]:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    return [f"_ {found}" for found in re.findall(r"CMD \[(.*)\]$", dockerfile, re.MULTILINE)]


def test_the_image_holds_all_that_the_package_reads_from_the_checkout() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == {
        "requirements.txt",
        "requirements-torch-cpu.txt",
        "requirements-torch-cuda.txt",
        "gunicorn.conf.py",
        "LICENSE",
        "THIRD_PARTY_NOTICES.md",
        "deploy/nginx.conf",
        "deploy/supervisord.conf",
        "app",
    }
    assert all((CHECKOUT / source).exists() for source in sources)
    allowed = set(re.findall(r"^!(.*)$", (CHECKOUT / ".dockerignore").read_text(), re.MULTILINE))
    assert sources == allowed
    read = {
        "/".join(re.findall(r'"([^"]+)"', path))
        for module in (CHECKOUT / "app").rglob("*.py")
        for path in re.findall(r'CHECKOUT((?: / "[^"]+")+)', module.read_text())
    }
    assert read >= {"deploy/nginx.conf", "var"}
    assert read - {"var"} <= sources


def test_the_image_and_the_tests_agree_on_python_and_user() -> None:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    assert dockerfile.count("FROM python:3.11-slim-bookworm") == 2
    assert "USER 10001:10001" in dockerfile


def test_what_every_command_imports_is_small() -> None:
    """A library takes up to seconds; prometheus-client must find its variable set: see `start_program`."""
    line = "import sys, app.cli, app.programs.start; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", line], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    libraries = {"torch", "numpy", "prometheus_client", "structlog", "flask", "jinja2", "requests", "urllib3"}
    assert not libraries & set(shown.stdout.split())


def test_the_functions_of_every_command_exist() -> None:
    steps = [step for command in cli.COMMANDS.values() for step in (command.first, command.then) if step]
    assert all(callable(resolve_name(step)) for step in steps)


def test_the_supervisor_runs_the_programs_for_ever() -> None:
    conf = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(CHECKOUT / "deploy" / "supervisord.conf")
    for name in ("engine", "courier", "web", "nginx"):
        program = conf[f"program:{name}"]
        command = shlex.split(program["command"])
        assert command[:3] == ["python3", "-m", "app"]
        assert command[3] in cli.COMMANDS
        assert program["autorestart"] == "true"
        assert int(program["startretries"]) >= 1_000_000
        assert program["killasgroup"] == "true"
        assert program["redirect_stderr"] == "true"
    assert conf["program:engine"]["stopwaitsecs"] == "%(ENV_ENGINE_STOP_SECONDS)s"
    assert start._STOP_MARGIN_SECONDS > 0


def test_make_help_lists_every_target_for_people() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    targets = set(re.findall(r"^\.PHONY: ([a-z0-9-]+)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert {"help", "serve", "test", "check"} <= targets
    assert set(re.findall(r"make ([a-z0-9-]+)", shown)) >= targets


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = (CHECKOUT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"
    assert commands[-1] == "exec make test"
    assert (CHECKOUT / ".ci" / "run").stat().st_mode & 0o111


def test_the_version_has_an_entry_in_the_changelog() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text()
    assert f"## [{VERSION}]" in changelog or "## [Unreleased]" in changelog


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def test_the_version_is_stated_in_one_place_only() -> None:
    setuptools = project()["tool"]["setuptools"]
    assert "version" in project()["project"]["dynamic"]
    assert setuptools["dynamic"]["version"] == {"attr": "app.version.VERSION"}
    files = [*(CHECKOUT / "app").rglob("*.py"), *(CHECKOUT / "deploy").iterdir()]
    files += [CHECKOUT / name for name in ("pyproject.toml", "Dockerfile", "docker-compose.yml", "Makefile")]
    stated = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")
    assert [file.name for file in files if stated.search(file.read_text())] == ["version.py"]


def test_an_installed_package_has_every_module_and_every_template() -> None:
    """Only folders with an __init__.py are packages to setuptools, and only named data goes along."""
    app = CHECKOUT / "app"
    assert project()["tool"]["setuptools"]["packages"]["find"]["include"] == ["app", "app.*"]
    assert all((module.parent / "__init__.py").exists() for module in app.rglob("*.py"))
    data = {
        path
        for pattern in project()["tool"]["setuptools"]["package-data"]["app"]
        for path in app.glob(pattern)
    }
    others = {path for path in app.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == data


def test_the_license_is_the_one_that_the_project_names() -> None:
    assert project()["project"]["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (CHECKOUT / "LICENSE").read_text()
    assert all((CHECKOUT / name).exists() for name in project()["project"]["license-files"])


def test_hooks_before_a_commit_run_the_checks_and_download_nothing() -> None:
    (source,) = YAML(typ="safe").load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]
    assert source["repo"] == "local"
    assert {hook["language"] for hook in source["hooks"]} == {"system"}
    checks = re.findall(
        r"^\t\$\(PY\) -m (ruff [a-z]+|mypy)", (CHECKOUT / "Makefile").read_text(), re.MULTILINE
    )
    assert {hook["name"] for hook in source["hooks"]} == set(checks)
