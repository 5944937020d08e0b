# SPDX-License-Identifier: Apache-2.0
"""The system call filter: what ends the process, what is refused, what is allowed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.support.daemon_process import COMMAND, TIMEOUT, error_line

PRELUDE = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, threading
from farwatchd.sandbox.options import Seccomp
from farwatchd.sandbox.privileges import drop, FILE_SERVER
from farwatchd.sandbox.seccomp import import_library, restrict

libc = ctypes.CDLL(None, use_errno=True)
parent, child = os.pipe()


def number_of(result):
    return 0 if result >= 0 else ctypes.get_errno()


def call(number, *arguments):
    wide = [ctypes.c_long(each) for each in (number, *arguments)]
    return number_of(libc.syscall(*wide))
"""


def filtered(action: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process that has loaded the filter."""
    script = f"""{PRELUDE}
library = import_library()
drop(FILE_SERVER)
restrict(library, Seccomp.{action})
{textwrap.dedent(code)}
print("alive", flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


#: What only an attacker does: a program, a tracer, a mount, a namespace, another's memory, a
#: signal, a socket to the network, a kernel interface that has nothing to do with files.
ATTACKS = {
    "fork": "os.fork()",
    "exec": "os.execv('/nowhere/true', ['true'])",
    "ptrace": "libc.ptrace(0, 0, 0, 0)",
    "mount": "libc.umount2(b'/nowhere', 0)",
    "unshare": "libc.unshare(0)",
    "chroot": "os.chroot('/')",
    "kill": "os.kill(os.getppid(), 0)",
    "another's memory": "libc.process_vm_readv(1, 0, 0, 0, 0, 0)",
    "network": "socket.socket(socket.AF_INET)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "bpf": "call(321, 0, 0, 0)",
    "io_uring": "call(425, 1, 0)",
    "user faults": "call(323, 0)",
    "signal with data": "call(129, os.getppid(), 0, 0)",
    "pidfd": "call(434, os.getppid(), 0)",
}


@pytest.mark.parametrize("code", ATTACKS.values(), ids=ATTACKS)
def test_attack_ends_the_process(code: str) -> None:
    done = filtered("KILL", code)
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, ""), done
    # A child that is forked prints it, too.
    assert "alive" in filtered("LOG", f"try: {code}\nexcept OSError: pass").stdout


#: What an interpreter or a C library may do, with what it gets: 0 is success.
HARMLESS = {
    # Python 3.14 names its threads, glibc and musl name memory.
    "PR_SET_NAME": ("call(157, 15, id(b'name') + 32)", 0),
    "PR_SET_VMA": ("call(157, 0x53564D41, 0, 0, 0, 0)", (0, errno.EINVAL)),
    "PR_SET_DUMPABLE": ("call(157, 4, 1, 0, 0, 0)", errno.ENOSYS),
    "PR_SET_MM": ("call(157, 35, 1, 0, 0, 0)", errno.ENOSYS),
    "own limit read": ("number_of(libc.getrlimit(7, ctypes.create_string_buffer(16)))", 0),
    "own limit raised": (
        "number_of(libc.setrlimit(4, (ctypes.c_ulong * 2)(0, 0)))",
        errno.EPERM,
    ),
    "parent's limit": ("call(302, os.getppid(), 4, 0, 0)", errno.EPERM),
    "own thread's signal": ("call(234, os.getpid(), threading.get_native_id(), 0)", 0),
    "parent's thread's signal": ("call(234, os.getppid(), os.getppid(), 0)", errno.EPERM),
    "terminal asked for": ("call(16, 0, 0x5401, 0)", (errno.ENOTTY, errno.EFAULT)),
    "freezing a file system": ("call(16, 0, 0xC0045877, 0)", errno.ENOSYS),
    "bytes to read": ("call(16, parent, 0x541B, id(bytes(8)) + 32)", 0),
    "code": ("call(9, 0, 4096, 5, 0x22, -1, 0)", errno.EPERM),
    "syslog again": ("number_of(libc.socket(1, 2, 0))", errno.EPERM),
    # There is no such system call today. The next C library tries it, and takes another.
    "system call to come": ("call(600)", errno.ENOSYS),
    "sealed memory": ("call(462, 0, 0, 0)", errno.ENOSYS),
    "priority": ("call(140, 0, 0)", errno.ENOSYS),
    "affinity": ("call(203, 0, 0, 0)", errno.ENOSYS),
    "open as musl does": (f"call(2, id({os.devnull.encode()!r}) + 32, 0, 0)", 0),
}


@pytest.mark.parametrize(("code", "expected"), HARMLESS.values(), ids=HARMLESS)
def test_what_is_no_attack_gets_an_errno(code: str, expected: int | tuple[int, ...]) -> None:
    done = filtered("KILL", f"print({code}, flush=True)")
    assert done.returncode == 0, done
    found, alive = done.stdout.split()
    assert alive == "alive"
    numbers = expected if isinstance(expected, tuple) else (expected,)
    assert int(found) in numbers, os.strerror(int(found))


def test_reconnecting_to_syslog_is_refused_and_does_not_end_the_process() -> None:
    code = """
    try:
        socket.socket(socket.AF_UNIX)
    except PermissionError:
        print("refused")
    """
    assert filtered("KILL", code).stdout == "refused\nalive\n"


def test_threads_can_be_started() -> None:
    code = """
    import threading
    thread = threading.Thread(target=print, args=("started",), kwargs={"flush": True})
    thread.start()
    thread.join()
    """
    assert filtered("KILL", code).stdout == "started\nalive\n"


def test_thread_that_names_itself_can_be_started() -> None:
    code = """
    libc.pthread_self.restype = ctypes.c_void_p
    libc.pthread_setname_np.argtypes = (ctypes.c_void_p, ctypes.c_char_p)

    def named():
        print(libc.pthread_setname_np(libc.pthread_self(), b"worker_0"), flush=True)

    thread = threading.Thread(target=named)
    thread.start()
    thread.join()
    """
    assert filtered("KILL", code).stdout == "0\nalive\n"


def test_missing_libseccomp_ends_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "pyseccomp.py").write_text("raise RuntimeError('Unable to find libseccomp')")
    monkeypatch.setenv("PYTHONPATH", str(modules), prepend=":")
    options = [f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}"]
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 1
    assert error_line(done.stderr) == (
        "farwatchd: cannot restrict the system calls: Unable to find libseccomp; install"
        " libseccomp, or use --seccomp=none to start without the filter"
    )
    assert not (tmp_path / "socket").exists()
