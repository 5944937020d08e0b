# SPDX-License-Identifier: Apache-2.0
"""Real programs on the share: git, make and a compiler, pip, SQLite.

One guest has a share as its root file system.
"""

import os
import shlex
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pexpect
import pytest
from farwatch_harness.vm.boot import vng_program
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.qemu import Accelerator
from farwatch_harness.vm.testbed import Share, Testbed

pytestmark = [pytest.mark.patch("base"), pytest.mark.daemon]

LIMIT = 300.0
GIT = "git -c user.name=tester -c user.email=tester@example.invalid -c init.defaultBranch=main"
MODULES = 8


def host(script: str, cwd: Path) -> str:
    """Run a shell script on the host; return its output."""
    return subprocess.run(
        ["sh", "-ec", script], cwd=cwd, check=True, capture_output=True, text=True
    ).stdout


def in_guest(guest: Guest, script: str, at: Any, limit: float = LIMIT) -> str:
    """Run a shell script in the guest; return its output."""
    return guest.shell(
        f"export HOME=/tmp PATH=/usr/bin:/bin:$PATH; set -e; cd {at}; {script}", limit=limit
    )


def test_git_repository_is_cloned_changed_and_packed(guest: Guest, share: Share) -> None:
    origin = share.host / "origin"
    origin.mkdir()
    host(f"{GIT} init -q . && mkdir -p src/deep && ln -s src link && cp /bin/true program", origin)
    for number in range(40):
        (origin / "src" / "deep" / f"file{number}").write_text(f"{number}\n" * number)
        host(f"git add -A && {GIT} commit -q -m 'number {number}'", origin)
    in_guest(
        guest,
        "git config --global --add safe.directory '*'; git clone -q origin clone",
        share.guest,
    )
    assert in_guest(guest, "git -C clone status --porcelain", share.guest) == ""
    work = (
        f"git checkout -q -b branch; for i in 1 2 3; do echo $i > new$i; git add .; {GIT} commit -q"
        f" -m new$i; done; git mv src/deep src/moved; {GIT} commit -q -m moved; git checkout -q"
        f" main; {GIT} merge -q branch; git gc -q; git fsck --strict; git push -q origin branch"
    )
    in_guest(guest, work, share.guest / "clone")
    # The host finds the same.
    safe = f"git -c safe.directory={share.host}/clone"
    assert host(f"{safe} fsck --strict && {safe} status --porcelain", share.host / "clone") == ""
    assert host("git log --format=%s -n 1 branch", origin).strip() == "moved"
    assert (share.host / "clone" / "link").is_symlink()
    assert os.access(share.host / "clone" / "program", os.X_OK)


@pytest.fixture
def project(share: Share) -> Path:
    """Make a program of several files, with a generated header and a library."""
    at = share.host / "project"
    at.mkdir()
    for number in range(MODULES):
        (at / f"part{number}.c").write_text(
            f'#include "generated.h"\n#include <stdio.h>\nint part{number}(void) {{ return BASE +'
            f" {number}; }}\n"
        )
    declarations = "".join(f"int part{number}(void);\n" for number in range(MODULES))
    total = " + ".join(f"part{number}()" for number in range(MODULES))
    (at / "main.c").write_text(
        f'#include <stdio.h>\n{declarations}int main(void) {{ printf("%d\\n", {total}); return 0;'
        " }\n"
    )
    (at / "base").write_text("100\n")
    objects = " ".join(f"part{number}.o" for number in range(MODULES))
    (at / "Makefile").write_text(
        "program: main.o libparts.a\n\t$(CC) -o $@ main.o -L. -lparts\n"
        f"libparts.a: {objects}\n\t$(AR) rcs $@ $^\n"
        f"{objects}: generated.h\n"
        'generated.h: base\n\techo "#define BASE $$(cat base)" > $@.new && mv $@.new $@\n'
        "clean:\n\trm -f *.o *.a program generated.h\n"
    )
    return at


def test_make_rebuilds_only_changed_files(guest: Guest, share: Share, project: Path) -> None:
    at = share.guest / "project"
    in_guest(guest, "make -j2", at)
    assert in_guest(guest, "./program", at) == f"{MODULES * 100 + sum(range(MODULES))}\n"
    assert "up to date" in in_guest(guest, "make", at)
    # After a change in the guest, make builds one object, the library and the program.
    again = in_guest(guest, "sleep 0.02; touch part3.c; make", at)
    assert [line.split()[-1] for line in again.splitlines() if " -c " in line] == ["part3.c"]
    # After a change on the host, make builds all objects that include the header.
    (project / "base").write_text("200\n")
    again = in_guest(guest, "make", at)
    assert len([line for line in again.splitlines() if " -c " in line]) == MODULES
    assert in_guest(guest, "./program", at) == f"{MODULES * 200 + sum(range(MODULES))}\n"
    assert host("./program", project) == f"{MODULES * 200 + sum(range(MODULES))}\n"
    assert "up to date" in host("make", project)
    in_guest(guest, "make clean", at)
    assert not list(project.glob("*.o"))


def wheel(folder: Path) -> Path:
    """Make a package with modules, data and a command."""
    path = folder / "sample-1.0-py3-none-any.whl"
    info = "sample-1.0.dist-info"
    files = {f"sample/module{number}.py": f"VALUE = {number}\n" for number in range(30)}
    files |= {
        "sample/__init__.py": (
            "def main():\n    from sample import module7\n    print('value', module7.VALUE)\n"
        ),
        "sample/data.bin": "x" * 100_000,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{info}/entry_points.txt": "[console_scripts]\nsample = sample:main\n",
    }
    record = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, content)
    return path


def test_pip_installs_a_package_into_a_virtual_environment(guest: Guest, share: Share) -> None:
    wheel(share.host)
    python = shlex.quote(sys.executable)
    in_guest(guest, f"{python} -m venv --without-pip environment", share.guest)
    install = (
        "install --disable-pip-version-check --no-index --no-cache-dir"
        " ./sample-1.0-py3-none-any.whl"
    )
    in_guest(guest, f"{python} -m pip --python environment/bin/python {install}", share.guest)
    assert in_guest(guest, "environment/bin/sample", share.guest) == "value 7\n"
    installed = list((share.host / "environment").rglob("sample/module*.py"))
    assert len(installed) == 30
    assert list((share.host / "environment").rglob("__pycache__/module7*.pyc"))
    in_guest(
        guest,
        f"{python} -m pip --python environment/bin/python uninstall -q -y sample",
        share.guest,
    )
    assert not list((share.host / "environment").rglob("sample/module*.py"))


COUNT = """
import sqlite3, sys
path, times = sys.argv[1], int(sys.argv[2])
for _ in range(times):
    connection = sqlite3.connect(path, timeout=120, isolation_level=None)
    connection.execute("begin immediate")
    value = connection.execute("select value from counter").fetchone()[0]
    connection.execute("update counter set value = ?", (value + 1,))
    connection.execute("commit")
    connection.close()
"""
BUSY = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("begin immediate")
    print("had")
except sqlite3.OperationalError as error:
    print(error)
"""
WORKERS, TIMES = 3, 15


def count(guest: Guest, path: Any) -> list[Any]:
    """Start processes that count in a database."""
    words = (sys.executable, "-I", "-c", COUNT, str(path), str(TIMES))
    return [guest.spawn(*words) for _ in range(WORKERS)]


def finish(processes: list[Any]) -> None:
    """Wait for all processes, which print nothing if they succeed."""
    for process in processes:
        assert process.lines(limit=LIMIT, until="\0") == []
        assert process.stop() == 0


def make_database(path: Path, mode: str) -> None:
    """Make a database with one number in it."""
    connection = sqlite3.connect(path)
    connection.execute(f"pragma journal_mode={mode}")
    connection.execute("create table counter (value integer)")
    connection.execute("insert into counter values (0)")
    connection.commit()
    connection.close()


def value_in(path: Path) -> int:
    """Return the number, after SQLite's integrity check."""
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    value: int = connection.execute("select value from counter").fetchone()[0]
    connection.close()
    return value


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite_processes_in_the_guest_exclude_each_other(
    mode: str, guest: Guest, share: Share
) -> None:
    make_database(share.host / "database", mode)
    finish(count(guest, share.guest / "database"))
    assert value_in(share.host / "database") == WORKERS * TIMES


def test_sqlite_processes_on_host_and_guest_exclude_each_other(boot: Any) -> None:
    testbed: Testbed = boot(daemon_options=("--posix-lock", "--cache=never"))
    database = testbed.shared / "database"
    make_database(database, "delete")
    inside = testbed.mount_point / "database"
    processes = count(testbed.guest, inside)
    subprocess.run(
        [sys.executable, "-c", COUNT, str(database), str(TIMES)], check=True, timeout=LIMIT
    )
    finish(processes)
    assert value_in(database) == (WORKERS + 1) * TIMES
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("begin immediate")
    words = (sys.executable, "-I", "-c", BUSY, str(inside))
    assert testbed.guest.run(*words).stdout == "database is locked\n"
    connection.execute("rollback")
    assert testbed.guest.run(*words).stdout == "had\n"
    connection.close()


ROOT_SCRIPT = f"""
set -e
stat -f -c 'type %T' /
awk '$2 == "/" {{ print "root", $1, $3 }}' /proc/mounts
git --version
ls -lR /usr/include | md5sum
{shlex.quote(str(Path(sys.executable).resolve()))} -c \
    'import json, ssl; print("python", json.dumps(sorted({{1, 2}})))'
touch /forbidden || echo refused
"""


@pytest.fixture
def farwatchd_as_virtiofsd(tmp_path: Path) -> Path:
    """Make a directory for PATH in which farwatchd is called virtiofsd.

    It writes its command line and its log there. All options are passed on except --syslog: the
    machine may have no syslog, and the test reads the log.
    """
    program = tmp_path / "virtiofsd"
    program.write_text(
        "#!/bin/sh\n"
        'for word; do shift; [ "$word" = --syslog ] || set -- "$@" "$word"; done\n'
        f'echo "$@" >> {tmp_path}/command\n'
        f'exec {Path(sys.executable).with_name("farwatchd")} "$@" 2>> {tmp_path}/log\n'
    )
    program.chmod(0o755)
    return tmp_path


def test_root_file_system_of_the_guest_is_served(
    environment: Environment, farwatchd_as_virtiofsd: Path
) -> None:
    command = [
        *(
            str(vng_program()),
            "--run",
            str(environment.kernel.image),
            "--user=root",
            "--cpus=1",
            "--memory=1024M",
        ),
        *(f"--qemu={environment.qemu.program}", "--verbose"),
        *(("--disable-kvm",) if environment.accelerator is Accelerator.TCG else ()),
        *("--", ROOT_SCRIPT),
    ]
    path = f"{farwatchd_as_virtiofsd}:{vng_program().parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path}
    output = pexpect.run(
        shlex.join(command), timeout=LIMIT, env=variables, cwd="/", encoding="utf-8"
    )
    log = (farwatchd_as_virtiofsd / "log").read_text()
    assert "script exited with code 0" in output, f"{output[-3000:]}\n{log}"
    assert "the guest speaks FUSE" in log
    assert "Traceback" not in log and "ERROR" not in log
    assert "root ROOTFS virtiofs" in output
    for text in ("git version", "python [1, 2]", "refused"):
        assert text in output
