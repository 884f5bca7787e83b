#!/usr/bin/env bash
# Makes ready what `make serve` or `make test` needs, and changes nothing where it is ready already.
#
#   deploy/prepare.sh serve|test
#
# System packages are installed with apt, as root or with a sudo that asks for no password, and only those
# that are missing. Python packages go into .venv; a stamp there remembers which requirements it holds. One test
# needs packages of Node too; npm comes as a Python package and puts them beside it, into node_modules.
#
#   PYTHON=/path/to/python3    the interpreter that .venv is made with
#   FRAMEBOX_TORCH=cpu|cuda    the build of torch; without it, cuda where nvidia-smi finds a GPU, else cpu
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly oldest_python="3.11"

say() { printf 'framebox: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

# ---- system packages

have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

missing_packages() { # COMMAND or COMMAND:PACKAGE…: the Debian packages of those that are not there
    local word
    for word in "$@"; do
        have "${word%%:*}" || printf '%s\n' "${word##*:}"
    done
}

# The distribution's nginx service stays off: Framebox starts an nginx of its own, with its own configuration.
# shellcheck disable=SC2016  # the other shell is meant to expand it
readonly install_as_root='
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap "rm -f $policy" EXIT
    printf "#!/bin/sh\nexit 101\n" > "$policy"
    chmod 755 "$policy"
fi
apt-get update || echo "framebox: the package lists could not be renewed; trying the old ones" >&2
apt-get install --yes --no-install-recommends "$@"
case " $* " in *" nginx "*)
    if [ -d /run/systemd/system ]; then systemctl disable --quiet nginx || true; fi ;;
esac
'

install_packages() {
    local -r by_hand="as root: apt-get update && apt-get install $*"
    have apt-get || fail "missing: $*. Install them with this system's package manager, then try again."
    say "installing with apt: $*"
    if [ "$(id -u)" -eq 0 ]; then
        sh -c "$install_as_root" sh "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n sh -c "$install_as_root" sh "$@"
    else
        fail "missing: $*. This user may not install packages; do it once, $by_hand"
    fi || fail "apt could not install: $*. Try $by_hand"
}

# ---- Python

is_new_enough() {
    "$1" -c "import sys; raise SystemExit(sys.version_info < tuple(map(int, '$oldest_python'.split('.'))))" \
        >/dev/null 2>&1 # a pyenv shim without a version behind it fails here, and is passed over
}

can_make_environments() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

find_python() {
    local python
    for python in ${PYTHON:+"$PYTHON"} python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        if is_new_enough "$python" && can_make_environments "$python"; then
            printf '%s\n' "$python"
            return
        fi
    done
    return 1
}

environment_works() { .venv/bin/python -c 'import pip' >/dev/null 2>&1 && is_new_enough .venv/bin/python; }

make_environment() {
    local python
    if ! python=$(find_python); then
        install_packages python3 python3-venv
        python=$(find_python) ||
            fail "Python $oldest_python or later is needed, with venv; name one with PYTHON=/path/to/python3"
    fi
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
}

fingerprint() { # of the interpreter and of the locks named
    { .venv/bin/python -VV && cat "$@"; } | sha256sum
}

# A lock names the whole tree: nothing else is installed, and nothing needs to be resolved.
pip_install() { # LOCK…
    .venv/bin/python -m pip install --no-input --disable-pip-version-check --no-deps --require-hashes \
        "${@/#/--requirement=}"
}

install_locks() { # PURPOSE LOCK…
    local -r stamp=".venv/installed-$1"
    local wanted
    shift
    wanted=$(fingerprint "$@")
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "installing $* into .venv"
    pip_install "$@"
    printf '%s\n' "$wanted" >"$stamp"
}

torch_build() { # cpu or cuda
    case "${FRAMEBOX_TORCH:-}" in
    cpu | cuda) printf '%s\n' "$FRAMEBOX_TORCH" ;;
    "") if nvidia-smi --list-gpus >/dev/null 2>&1; then echo cuda; else echo cpu; fi ;;
    *) fail "FRAMEBOX_TORCH=$FRAMEBOX_TORCH is not known: choose cpu or cuda" ;;
    esac
}

# The Python Package Index has only the build for CUDA, which does not load without 2 GB of NVIDIA's libraries. The
# build for the CPU comes from PyTorch's own index, or from where pip's configuration points.
install_torch() {
    local -r stamp=".venv/installed-torch"
    local build wanted
    build=$(torch_build)
    wanted=$(fingerprint "requirements-torch-$build.txt")
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "installing torch (FRAMEBOX_TORCH=$build) into .venv"
    if [ "$build" = cpu ]; then
        PIP_RETRIES=2 pip_install requirements-torch-cpu.txt || {
            [ -z "${FRAMEBOX_TORCH:-}" ] || fail "pip found no torch for the CPU; FRAMEBOX_TORCH=cuda takes that for CUDA"
            say "pip found no torch for the CPU; taking that for CUDA (2.7 GB), which runs on a CPU too"
            build=cuda
        }
    fi
    if [ "$build" = cuda ]; then
        # To pip, 2.13.0+cpu satisfies the requirement 2.13.0.
        case "$(echo .venv/lib/python3*/site-packages/torch-*.dist-info)" in
        *+cpu.dist-info) .venv/bin/python -m pip uninstall --quiet --yes torch ;;
        esac
        pip_install requirements-torch-cuda.txt
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

install_node_packages() { # FOLDER of a package.json and its lock file
    local -r stamp="$1/node_modules/installed"
    local wanted
    wanted=$(sha256sum "$1/package-lock.json")
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "installing $1/package.json with npm"
    # Certificates: those of the system, as pip has them; else a proxy of the house is not trusted.
    NODE_USE_SYSTEM_CA=1 .venv/bin/npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund ||
        fail "npm could not install what $1/package-lock.json names; try again"
    printf '%s\n' "$wanted" >"$stamp"
}

install_browser() { # where it can be had: some tests want one. Ubuntu has it as a snap alone.
    local -r stamp=".venv/without-browser"
    local packages
    mapfile -t packages < <(missing_packages chromium chromedriver:chromium-driver)
    [ "${#packages[@]}" -eq 0 ] && return
    [ -e "$stamp" ] && return
    (install_packages "${packages[@]}") || {
        say "going on without a browser: what needs one is skipped"
        : >"$stamp"
    }
}

# ----

case "${1:-}" in
serve) commands=(nginx) ;;
test) commands=(nginx ffmpeg strace curl openssl mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs) ;;
*) fail "usage: deploy/prepare.sh serve|test" ;;
esac

exec 9<requirements.txt
flock 9 # two at once, `make serve` and `make test`, take turns

mapfile -t packages < <(missing_packages "${commands[@]}")
[ "${#packages[@]}" -eq 0 ] || install_packages "${packages[@]}"
environment_works || make_environment
install_torch
case "$1" in
serve) install_locks serve requirements.txt ;;
test)
    install_locks test requirements.txt requirements-huggingface.txt requirements-dev.txt
    install_node_packages tests/integration/tus_js
    install_browser
    ;;
esac
