# SPDX-License-Identifier: Apache-2.0
"""Go on as the first process of a PID namespace.

unshare(2) puts the children of a process into the namespace, not the process itself. So the daemon
serves in a child. The process that the user has started stays outside, as the daemon's supervisor:
it has the process id that everyone knows, passes signals on to the child and the child's reports to
the service manager, and ends as the child ends. Nothing of the guest reaches it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
from typing import NoReturn

from farwatchd.linux.capabilities import Capability
from farwatchd.sandbox.disable_imports import disable_imports
from farwatchd.sandbox.privileges import drop, forbid_core_dumps
from farwatchd.service_manager import ServiceManager
from farwatchd.termination import STATUS_SIGNAL, block_signals

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, STATUS_SIGNAL)
#: Bytes of a report.
_REPORT_SIZE = 4096
#: ``F_SETSIG``, which the module fcntl has since Python 3.13.
_F_SETSIG = 10


def go_on_in_child(manager: ServiceManager) -> ServiceManager:
    """Return in a child of the process; the process itself becomes its supervisor.

    The child gets what stands for ``manager``. If the supervisor is killed, the child gets SIGTERM.
    """
    # Held until the child waits for them: the first process of a namespace gets no signal that it
    # does not handle.
    block_signals()
    reports, report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    alive, held = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # No file can be named soon: the child makes the share the root of both.
    nothing = os.open(os.devnull, os.O_RDWR)
    child = os.fork()
    if child:
        try:
            _supervise(child, reports, held, nothing, manager)
        finally:
            # Nothing of the daemon may go on here.
            os._exit(1)
    os.close(nothing)
    os.close(held)
    reports.close()
    manager.close()
    _end_with(alive)
    return ServiceManager(report, manager.watchdog)


def _end_with(alive: int) -> None:
    """Have the kernel send SIGTERM when the other end of the pipe ``alive`` is closed."""
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, _F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(alive, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    # It may have been closed before.
    poll = select.poll()
    poll.register(alive, 0)
    if poll.poll(0):
        os._exit(1)


def _supervise(
    child: int, reports: socket.socket, held: int, nothing: int, manager: ServiceManager
) -> NoReturn:
    """Pass on signals and reports until the child has ended, and end as it did."""
    wakeup, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (*_PASSED_ON, signal.SIGCHLD):
        signal.signal(number, _do_nothing)
    disable_imports()
    drop(Capability.NONE)
    forbid_core_dumps()
    for standard in range(3):
        os.dup2(nothing, standard)
    _close_all_but(reports.fileno(), held, wakeup, wake, manager.fileno())
    os.chdir("/")
    poll = select.poll()
    poll.register(reports.fileno(), select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = None
    while status is None:
        ready = dict(poll.poll())
        if reports.fileno() in ready:
            data = reports.recv(_REPORT_SIZE)
            if data:
                manager.forward(data)
            else:
                poll.unregister(reports.fileno())
        if wakeup in ready:
            for received in os.read(wakeup, 64):
                if received in _PASSED_ON:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, received)
            pid, found = os.waitpid(child, os.WNOHANG)
            status = found if pid else None
    # The helper that removes the socket ends with the daemon.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    _end_as(status)


def _do_nothing(*_: object) -> None:
    """Handle a signal: the wakeup descriptor has its number."""


def _close_all_but(*kept: int) -> None:
    """Close the daemon's descriptors: a connection or a log ends when the daemon closes it."""
    first = 3
    for fd in sorted(fd for fd in kept if fd >= 3):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
