"""deploy/prepare.sh installs what is missing, once, and says what to do where it may not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "chmod", "cp", "dirname", "flock", "id", "mkdir", "rm", "sha256sum", "sh")
FOR_TESTS = ("ffmpeg", "strace", "curl", "openssl", "mkfs.btrfs", "chromium", "chromedriver")

# Stands in for an interpreter: makes environments, writes down what pip is told, and is as old as it is told.
# In an environment it stands in for npm as well.
PYTHON = """#!/bin/bash
case "$1" in
-c) exit {outcome} ;;
-VV | --version) echo "Python 3.11.99" ;;
-m)
    if [ "$2" = pip ]; then echo "$*" >> "{log}"; else
        mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/npm"
    fi ;;
ci) echo "npm ci" >> "{log}" && mkdir -p "$3/node_modules" ;;
esac
"""


@dataclass
class Machine:
    """A checkout in a folder with a space, and a PATH that holds no more than it is given."""

    root: Path

    @property
    def checkout(self) -> Path:
        return self.root / "a checkout"

    @property
    def programs(self) -> Path:
        return self.root / "bin"

    @property
    def log(self) -> Path:
        return self.root / "log"

    def add(self, name: str, script: str) -> None:
        program = self.programs / name
        program.unlink(missing_ok=True)
        program.write_text(script)
        program.chmod(0o755)

    def add_python(self, name: str = "python3", *, works: bool = True) -> None:
        self.add(name, PYTHON.format(outcome=0 if works else 1, log=self.log))

    def prepare(self, purpose: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / "deploy" / "prepare.sh"), purpose],
            env={"PATH": str(self.programs)} | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Everything is there but .venv: python3, nginx, and what tests need."""
    machine = Machine(tmp_path)
    (machine.checkout / "deploy").mkdir(parents=True)
    machine.programs.mkdir()
    shutil.copy(CHECKOUT / "deploy" / "prepare.sh", machine.checkout / "deploy")
    lock_file = Path("tests", "integration", "tus_js", "package-lock.json")
    (machine.checkout / lock_file).parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / lock_file, machine.checkout / lock_file)
    for requirements in CHECKOUT.glob("requirements*.txt"):
        shutil.copy(requirements, machine.checkout)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (machine.programs / tool).symlink_to(found)
    for name in ("nginx", *FOR_TESTS):
        machine.add(name, "#!/bin/sh\n")
    machine.add_python()
    return machine


def pip_line(*locks: str) -> str:
    """Return how pip is called to install these locks, and nothing that they do not name."""
    options = "--no-input --disable-pip-version-check --no-deps --require-hashes"
    return " ".join([f"-m pip install {options}", *(f"--requirement={lock}" for lock in locks)])


TORCH = pip_line("requirements-torch-cpu.txt")
TORCH_FOR_CUDA = pip_line("requirements-torch-cuda.txt")
SERVICE = pip_line("requirements.txt")
TESTS = pip_line(*(f"requirements{of}.txt" for of in ("", "-huggingface", "-dev")))


def test_the_first_start_makes_the_environment_and_the_second_does_nothing(machine: Machine) -> None:
    first = machine.prepare("serve")
    assert first.returncode == 0, first.stderr
    assert machine.logged() == [TORCH, SERVICE]
    second = machine.prepare("serve")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert machine.logged() == [TORCH, SERVICE]


def test_serving_needs_nothing_that_only_tests_need(machine: Machine) -> None:
    for name in FOR_TESTS:
        (machine.programs / name).unlink()
    assert machine.prepare("serve").returncode == 0
    assert machine.logged() == [TORCH, SERVICE]


@pytest.mark.parametrize("changed", [f"requirements{of}.txt" for of in ("", "-huggingface", "-dev")])
def test_a_changed_requirement_is_installed(machine: Machine, changed: str) -> None:
    assert machine.prepare("test").returncode == 0
    with (machine.checkout / changed).open("a") as requirements:
        requirements.write("another==1.0\n")
    assert machine.prepare("test").returncode == 0
    assert machine.logged() == [TORCH, TESTS, "npm ci", TESTS]


def with_a_gpu(machine: Machine) -> None:
    machine.add("nvidia-smi", "#!/bin/sh\n")


def with_a_driver_but_no_gpu(machine: Machine) -> None:
    machine.add("nvidia-smi", "#!/bin/sh\nexit 9\n")


def without_a_gpu(machine: Machine) -> None:
    pass


@pytest.mark.parametrize(
    ("equip", "build", "installed"),
    [
        (without_a_gpu, "", TORCH),
        (with_a_driver_but_no_gpu, "", TORCH),
        (with_a_gpu, "", TORCH_FOR_CUDA),
        (without_a_gpu, "cuda", TORCH_FOR_CUDA),
        (with_a_gpu, "cpu", TORCH),
    ],
)
def test_torch_is_built_for_what_the_machine_has_or_the_variable_says(
    machine: Machine, equip: Callable[[Machine], None], build: str, installed: str
) -> None:
    equip(machine)
    for _ in range(2):
        done = machine.prepare("serve", FRAMEBOX_TORCH=build)
        assert done.returncode == 0, done.stderr
    assert machine.logged() == [installed, SERVICE]


def test_an_unknown_build_of_torch_is_refused(machine: Machine) -> None:
    done = machine.prepare("serve", FRAMEBOX_TORCH="rocm")
    assert done.returncode == 1
    assert "FRAMEBOX_TORCH=rocm is not known: choose cpu or cuda" in done.stderr
    assert machine.logged() == []


def test_a_change_to_cuda_replaces_torch_for_the_cpu(machine: Machine) -> None:
    assert machine.prepare("serve").returncode == 0
    (machine.checkout / ".venv/lib/python3.11/site-packages/torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    assert machine.prepare("serve", FRAMEBOX_TORCH="cuda").returncode == 0
    removal = "-m pip uninstall --quiet --yes torch"
    assert machine.logged() == [TORCH, SERVICE, removal, TORCH_FOR_CUDA]


def without_torch_for_the_cpu(machine: Machine) -> None:
    """No index that pip asks has it."""
    failing = PYTHON.replace('"{log}"; else', '"{log}"; [[ "$*" != *torch-cpu.txt ]]; else')
    machine.add("python3", failing.format(outcome=0, log=machine.log))


def test_where_torch_for_the_cpu_cannot_be_had_that_for_cuda_is_installed_once(machine: Machine) -> None:
    without_torch_for_the_cpu(machine)
    first = machine.prepare("serve")
    assert first.returncode == 0, first.stderr
    assert "taking that for CUDA" in first.stderr
    assert machine.prepare("serve").stderr == ""
    assert machine.logged() == [TORCH, TORCH_FOR_CUDA, SERVICE]


def test_whoever_asks_for_torch_for_the_cpu_gets_no_other(machine: Machine) -> None:
    without_torch_for_the_cpu(machine)
    done = machine.prepare("serve", FRAMEBOX_TORCH="cpu")
    assert done.returncode == 1
    assert "pip found no torch for the CPU" in done.stderr
    assert machine.logged() == [TORCH]


def test_changed_packages_of_node_are_installed(machine: Machine) -> None:
    for _ in range(2):
        assert machine.prepare("test").returncode == 0
    with (machine.checkout / "tests/integration/tus_js/package-lock.json").open("a") as lock_file:
        lock_file.write("\n")
    assert machine.prepare("test").returncode == 0
    assert machine.logged() == [TORCH, TESTS, "npm ci", "npm ci"]


def test_an_interrupted_installation_is_done_again(machine: Machine) -> None:
    machine.add("python3", PYTHON.format(outcome=0, log="/nonexistent/log").replace("esac", "esac || exit 1"))
    assert machine.prepare("serve").returncode != 0
    machine.add_python()
    shutil.rmtree(machine.checkout / ".venv")
    assert machine.prepare("serve").returncode == 0
    assert machine.logged() == [TORCH, SERVICE]


def test_a_shim_without_a_python_behind_it_is_passed_over(machine: Machine) -> None:
    machine.add_python("shim", works=False)
    done = machine.prepare("serve", PYTHON=str(machine.programs / "shim"))
    assert done.returncode == 0, done.stderr
    assert machine.logged() == [TORCH, SERVICE]


def become(machine: Machine, user: int) -> None:
    machine.add("id", f"#!/bin/sh\necho {user}\n")


def test_missing_programs_are_installed_with_sudo_and_no_others(machine: Machine) -> None:
    become(machine, 1000)
    machine.add("apt-get", "#!/bin/sh\nexit 1\n")
    script = '#!/bin/bash\n[ "$2" = true ] && exit 0\nshift 5\necho "sudo $*" >> "{log}"\n'
    machine.add("sudo", script.format(log=machine.log))
    for name in ("ffmpeg", "strace"):
        (machine.programs / name).unlink()
    done = machine.prepare("test")
    assert done.returncode == 0, done.stderr
    assert machine.logged() == ["sudo ffmpeg strace", TORCH, TESTS, "npm ci"]


def test_a_machine_whose_packages_have_no_browser_does_without(machine: Machine) -> None:
    become(machine, 1000)
    machine.add("apt-get", "#!/bin/sh\nexit 1\n")
    machine.add("sudo", '#!/bin/bash\ncase "$*" in *chromium*) exit 100 ;; esac\n')
    for name in ("strace", "chromium", "chromedriver"):
        (machine.programs / name).unlink()
    done = machine.prepare("test")
    assert done.returncode == 0, done.stderr
    assert "going on without a browser" in done.stderr
    assert "browser" not in machine.prepare("test").stderr, "it is tried once"
    assert machine.logged() == [TORCH, TESTS, "npm ci"]


def without_sudo(machine: Machine) -> None:
    machine.add("apt-get", "#!/bin/sh\nexit 1\n")


def with_a_sudo_that_asks(machine: Machine) -> None:
    without_sudo(machine)
    machine.add("sudo", "#!/bin/sh\nexit 1\n")


@pytest.mark.parametrize("equip", [without_sudo, with_a_sudo_that_asks])
def test_who_may_not_install_is_told_the_command(machine: Machine, equip: Callable[[Machine], None]) -> None:
    become(machine, 1000)
    equip(machine)
    (machine.programs / "strace").unlink()
    done = machine.prepare("test")
    assert done.returncode == 1
    assert "as root: apt-get update && apt-get install strace" in done.stderr
    assert machine.logged() == []


def test_a_machine_without_apt_is_told_what_is_missing(machine: Machine) -> None:
    (machine.programs / "strace").unlink()
    done = machine.prepare("test")
    assert done.returncode == 1
    assert "missing: strace. Install them with this system's package manager" in done.stderr
