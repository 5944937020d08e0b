# SPDX-License-Identifier: Apache-2.0
"""Lets the process make only the system calls that serving takes (seccomp(2)).

The allow list has what the daemon, the interpreter and the C library call once the sandbox has been
entered. A call that another version of them might make gets an errno. A call that only an attacker
makes ends the process. The filter must be loaded last: afterwards no program can be run, no memory
made executable, nothing mounted and no address connected to.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from farwatchd.sandbox.options import Seccomp

_log = logging.getLogger(__name__)


#: What serving takes, and what the C libraries make of it: musl and old glibc call the older ones.
_FILES = """
    access chmod chown close copy_file_range creat dup dup2 dup3 faccessat faccessat2 fallocate
    fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
    fremovexattr fsetxattr fstat fstatfs fsync ftruncate getdents getdents64 getxattr lchown
    lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat
    mknod mknodat name_to_handle_at newfstatat open open_by_handle_at openat openat2 pread64 preadv
    preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename
    renameat renameat2 rmdir setxattr stat statfs statx symlink symlinkat sync_file_range syncfs
    truncate umask unlink unlinkat utimensat write writev
"""
_EVENTS = """
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 fanotify_mark
    inotify_add_watch inotify_rm_watch pipe2 poll ppoll pselect6 select timerfd_settime
"""
#: The front-ends' socket, and the one to syslog.
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
    getrusage gettimeofday madvise membarrier mremap munlock munmap nanosleep restart_syscall rseq
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sched_getaffinity sched_yield
    set_robust_list set_tid_address sigaltstack sysinfo time uname wait4
"""
_ALLOWED = " ".join((_FILES, _EVENTS, _SOCKETS, _IDENTITY, _PROCESS)).split()

#: What neither serving nor an interpreter or C library does: a program, another process, a mount
#: or namespace, the kernel, the clock, and interfaces with a history of faults.
_ATTACKS = """
    execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise kcmp
    kill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_getfd pidfd_send_signal
    mount umount2 pivot_root chroot setns open_tree move_mount fsopen fsconfig fsmount
    fspick mount_setattr swapon swapoff quotactl quotactl_fd acct
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    init_module finit_module delete_module kexec_load kexec_file_load reboot syslog
    keyctl add_key request_key iopl ioperm modify_ldt uselib vhangup
    settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname
"""

#: Refused with an error that the C library or the logger expects; all other calls are ENOSYS,
#: which makes a C library take another way.
_REFUSED = {"connect": errno.EPERM, "clone3": errno.ENOSYS}

_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
#: A thread gets an umask(2) of its own; all other flags of unshare(2) make namespaces.
_CLONE_FS = 0x00000200
#: prctl(2) of threads and memory that get a name: PR_SET_NAME, PR_GET_NAME, PR_SET_VMA.
_NAMING = (15, 16, 0x53564D41)
#: ioctl(2): TCGETS, by which Python asks for a terminal, FIONREAD of a watch queue, and the ones
#: that are like fcntl(2): FIONBIO, FIONCLEX, FIOCLEX.
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
#: ``__NR_SCMP_ERROR``.
_UNKNOWN = -1


class SeccompError(Exception):
    """The filter cannot be loaded. The text is one line for the user."""


def import_library() -> Any:
    """Return pyseccomp, or libseccomp's own module, which it imitates and distributions have.

    Call it while modules can be imported. ``SeccompError``: there is neither.
    """
    problems: list[Exception] = []
    for name in ("pyseccomp", "seccomp"):
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            problems.append(error)
    raise SeccompError(
        f"cannot restrict the system calls: {problems[0]}; install libseccomp,"
        " or use --seccomp=none to start without the filter"
    )


def restrict(library: Any, action: Seccomp) -> None:
    """Load the filter for all threads of the process; ``SeccompError``.

    ``action`` is for attacks. Other calls that are not allowed get an errno, except with LOG, which
    logs both and lets them pass. ``library`` is that of ``import_library``.
    """
    attack = {
        Seccomp.KILL: library.KILL_PROCESS,
        Seccomp.LOG: library.LOG,
        Seccomp.TRAP: library.TRAP,
    }[action]
    rules = _Rules(library, attack, permissive=action is Seccomp.LOG)
    try:
        rules.load()
    except (OSError, RuntimeError) as error:
        # libseccomp's own module raises the latter.
        raise SeccompError(
            f"cannot restrict the system calls: {getattr(error, 'strerror', error)};"
            " use --seccomp=none to start without the filter"
        ) from error


class _Rules:
    """The filter's rules. ``permissive``: what would get an errno gets ``attack``, too."""

    def __init__(self, library: Any, attack: int, permissive: bool) -> None:
        self._library = library
        self._attack = attack
        self._permissive = permissive
        self._default = self._refuse(errno.ENOSYS)
        self._filter = library.SyscallFilter(self._default)
        self._filter.set_attr(library.Attr.CTL_TSYNC, 1)

    def load(self) -> None:
        """Make the filter and load it; ``OSError``."""
        allow = self._library.ALLOW
        for name in _ALLOWED:
            self._add(allow, name)
        for name in _ATTACKS.split():
            self._add(self._attack, name)
        for name, number in _REFUSED.items():
            self._add(self._refuse(number), name)
        self._add_memory()
        self._add_threads()
        self._allow_with("prctl", 0, _NAMING)
        self._allow_with("ioctl", 1, _IOCTLS)
        # The logger connects again when syslog was restarted; nothing connects to a network.
        self._add(self._refuse(errno.EPERM), "socket", self._is(0, socket.AF_UNIX))
        self._add(self._attack, "socket", self._is_not(0, socket.AF_UNIX))
        self._filter.load()

    def _add_memory(self) -> None:
        """Let memory be mapped at any time, as a front-end may ask for it, but not as code."""
        for name in ("mmap", "mprotect", "pkey_mprotect"):
            self._add(self._library.ALLOW, name, self._has_not(2, _PROT_EXEC))
            self._add(self._refuse(errno.EPERM), name, self._has(2, _PROT_EXEC))

    def _add_threads(self) -> None:
        """Let threads be made and signalled, but no process, and the process's limits be read.

        A thread may have a umask of its own.
        """
        self._add(self._library.ALLOW, "clone", self._has(0, _CLONE_THREAD))
        self._add(self._attack, "clone", self._has_not(0, _CLONE_THREAD))
        self._add(self._library.ALLOW, "unshare", self._is(0, _CLONE_FS))
        self._add(self._attack, "unshare", self._is_not(0, _CLONE_FS))
        self._add(self._library.ALLOW, "tgkill", self._is(0, os.getpid()))
        self._add(self._refuse(errno.EPERM), "tgkill", self._is_not(0, os.getpid()))
        # The third argument is where a new limit would be.
        self._add(self._library.ALLOW, "prlimit64", self._is(0, 0), self._is(2, 0))
        self._add(self._refuse(errno.EPERM), "prlimit64", self._is_not(0, 0))
        self._add(self._refuse(errno.EPERM), "prlimit64", self._is(0, 0), self._is_not(2, 0))
        self._add(self._library.ALLOW, "getrlimit")

    def _allow_with(self, name: str, argument: int, values: Sequence[int]) -> None:
        """Allow a call with some values of an argument."""
        for value in values:
            self._add(self._library.ALLOW, name, self._is(argument, value))

    def _refuse(self, number: int) -> Any:
        return self._attack if self._permissive else self._library.ERRNO(number)

    def _compare(self, argument: int, how: str, value: int) -> Any:
        return self._library.Arg(argument, getattr(self._library, how), value)

    def _is(self, argument: int, value: int) -> Any:
        return self._compare(argument, "EQ", value)

    def _is_not(self, argument: int, value: int) -> Any:
        return self._compare(argument, "NE", value)

    def _has(self, argument: int, bit: int) -> Any:
        return self._library.Arg(argument, self._library.MASKED_EQ, bit, bit)

    def _has_not(self, argument: int, bit: int) -> Any:
        return self._library.Arg(argument, self._library.MASKED_EQ, bit, 0)

    def _add(self, action: Any, name: str, *conditions: Any) -> None:
        if action == self._default:
            # No rule is needed, and libseccomp refuses it.
            return
        number = self._library.resolve_syscall(self._library.Arch.NATIVE, name)
        if number == _UNKNOWN:
            _log.debug("this libseccomp does not know the system call %s", name)
            return
        self._filter.add_rule(action, number, *conditions)
