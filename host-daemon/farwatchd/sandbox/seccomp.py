# SPDX-License-Identifier: Apache-2.0
"""Lets the process make only the system calls that serving takes (seccomp(2)), where libseccomp is
installed.

The list holds what the daemon, the interpreter and the C library call once the sandbox has been
entered. It must be loaded last: afterwards no program can be run, no memory made executable,
nothing mounted and no address connected to.
"""

from __future__ import annotations

import errno
import logging
from typing import Any

from farwatchd.sandbox.options import Seccomp

_log = logging.getLogger(__name__)


_FILES = """
    chmod chown close copy_file_range dup fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat
    fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
    getdents64 getxattr ioctl lchown lgetxattr linkat listxattr llistxattr lremovexattr lseek
    lsetxattr mkdirat mknodat name_to_handle_at newfstatat open_by_handle_at openat openat2 pread64
    preadv preadv2 pwrite64 pwritev pwritev2 read readlink readlinkat readv removexattr renameat
    renameat2 setxattr stat statfs statx symlinkat sync_file_range syncfs truncate umask unlinkat
    utimensat write writev
"""
_EVENTS = """
    epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 fanotify_mark inotify_add_watch
    inotify_rm_watch poll ppoll
"""
#: The front ends' socket, and the one to syslog.
_SOCKETS = (
    "accept accept4 getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto setsockopt"
    " shutdown"
)
_IDENTITY = """
    capget capset getegid geteuid getgid getgroups getpid getppid getresgid getresuid gettid getuid
    setgroups setresgid setresuid
"""
_PROCESS = """
    brk clock_getres clock_gettime clock_nanosleep exit exit_group futex getcpu getcwd getrandom
    getrusage gettimeofday madvise membarrier mremap munlock munmap nanosleep prlimit64
    restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield
    set_robust_list sigaltstack sysinfo tgkill time uname wait4
"""
_ALLOWED = " ".join((_FILES, _EVENTS, _SOCKETS, _IDENTITY, _PROCESS)).split()
#: Refused and no reason to end: the logger makes them when syslog's daemon has gone, the C library
#: does without.
_REFUSED = {"socket": errno.EPERM, "connect": errno.EPERM, "clone3": errno.ENOSYS}
_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
#: ``__NR_SCMP_ERROR``.
_UNKNOWN = -1


class SeccompError(Exception):
    """The filter cannot be loaded. The text is one line for the user."""


def import_library() -> Any:
    """The module pyseccomp, or None after a warning. To be called first while modules can still be
    imported."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        _log.warning("system calls are not restricted: %s; install libseccomp", error)
        return None
    return pyseccomp


def restrict(library: Any, action: Seccomp) -> None:
    """Load the filter for all threads of the process, with ``import_library``'s ``library``;
    ``SeccompError``."""
    default = {
        Seccomp.KILL: library.KILL_PROCESS,
        Seccomp.LOG: library.LOG,
        Seccomp.TRAP: library.TRAP,
    }[action]
    try:
        rules = library.SyscallFilter(default)
        rules.set_attr(library.Attr.CTL_TSYNC, 1)
        for name in _ALLOWED:
            _add(library, rules, library.ALLOW, name)
        for name, number in _REFUSED.items():
            _add(library, rules, library.ERRNO(number), name)
        for name in ("mmap", "mprotect", "pkey_mprotect"):
            # A front end may have memory mapped at any time, but none of it is code.
            _add(
                library,
                rules,
                library.ALLOW,
                name,
                library.Arg(2, library.MASKED_EQ, _PROT_EXEC, 0),
            )
        _add(
            library,
            rules,
            library.ALLOW,
            "clone",
            library.Arg(0, library.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD),
        )
        rules.load()
    except OSError as error:
        reason = error.strerror
        raise SeccompError(
            f"cannot restrict the system calls: {reason};"
            " use --seccomp=none to start without the filter"
        ) from error


def _add(library: Any, rules: Any, action: int, name: str, *conditions: Any) -> None:
    number = library.resolve_syscall(library.Arch.NATIVE, name)
    if number == _UNKNOWN:
        _log.debug("this libseccomp does not know the system call %s", name)
        return
    rules.add_rule(action, number, *conditions)
