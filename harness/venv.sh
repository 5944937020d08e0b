#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes .venv, the Python environment of this checkout, unless it is complete and made of the same.
# Safe to interrupt and to run twice concurrently. All output goes to stderr.
set -eu
exec >&2
cd "$(dirname "$0")/.."
stamp=.venv/.complete
mkdir -p build/logs

# Where it is, and what pip reads; settings of ruff and of what follows it change nothing in it.
made_of() {
    echo "$PWD"
    cat harness/pyproject.toml setup.py
    sed '/^\[tool\.ruff\]/,$d' pyproject.toml
}

# Whether it is of the interpreter that PYTHON names; without PYTHON any is right.
of_python() {
    [ -z "${PYTHON:-}" ] || grep -qxF \
        "executable = $("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')" .venv/pyvenv.cfg
}

fresh() {
    [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(made_of)" ] && of_python
}

# The native part of the daemon, where there are a compiler and Python's headers. pip makes it only
# when it makes the environment.
make_native() {
    [ -e .venv/.native ] && [ -z "$(find host-daemon/native -newer .venv/.native)" ] && return
    .venv/bin/python setup.py --quiet build_ext --inplace --force > build/logs/native.log 2>&1 || {
        echo "farwatch: the native part could not be made, see build/logs/native.log"
        exit 1
    }
    touch .venv/.native
}

if fresh; then
    make_native
    exit 0
fi
exec 9> build/venv.lock
if command -v flock > /dev/null; then flock 9; fi
if fresh; then
    make_native
    exit 0
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "farwatch: $python is not Python 3.11 or later; name another with PYTHON=..."
    exit 1
}
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    command -v apt-get > /dev/null || {
        echo "farwatch: $python has no venv module; install it"
        exit 1
    }
    root=
    [ "$(id -u)" = 0 ] || root=sudo
    echo "- installing python3-venv ..."
    { $root apt-get install -y python3-venv || { $root apt-get update && $root apt-get install -y python3-venv; }; } \
        > build/logs/apt-venv.log 2>&1 || {
        echo "farwatch: python3-venv could not be installed, see build/logs/apt-venv.log"
        exit 1
    }
fi
echo "- making .venv: the daemon, the harness and their tools (about a minute) ..."
began=$(date +%s)
"$python" -m venv --clear .venv > build/logs/venv.log 2>&1 &&
    .venv/bin/python -m pip install --disable-pip-version-check -e '.[dev]' -e ./harness >> build/logs/venv.log 2>&1 || {
    echo "farwatch: .venv could not be made: $(tail -n 1 build/logs/venv.log) (see build/logs/venv.log)"
    exit 1
}
# As an installed package has it. The daemon needs twice the CPU time to start from source, and where
# PYTHONDONTWRITEBYTECODE is set it would do so each time.
.venv/bin/python -m compileall -q host-daemon/farwatchd harness/farwatch_harness
make_native
made_of > "$stamp"
echo "- making .venv: done, $(($(date +%s) - began)) s"
