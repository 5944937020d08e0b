# SPDX-License-Identifier: Apache-2.0
"""The console scanner on parts of real logs."""

import pytest
from farwatch_harness.vm.console import Console, Severity

QUIET = """[    0.000000] Linux version 6.12.117+ (farwatch@farwatch) (gcc) #1 SMP\r
[    0.067312] x86/fpu: x87 FPU will use FXSAVE\r
[    1.054918] 9pnet_virtio: no channels available for device \r
[    1.262818] virtme-ng-init: mount devtmpfs -> /dev: EBUSY: Device or resource busy\r
[    1.456491] virtme-ng-init: WARNING: failed to run: "systemd-tmpfiles" --create --boot\r
a program says WARNING: nothing to worry about\r
"""

TROUBLE = [
    (
        "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        Severity.FATAL,
    ),
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", Severity.FATAL),
    ("Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI", Severity.FATAL),
    ("kernel BUG at fs/fuse/dev.c:100!", Severity.FATAL),
    (
        "WARNING: CPU: 0 PID: 57 at fs/notify/mark.c:82 fsnotify_get_mark+0x6a/0xa0",
        Severity.WARNING,
    ),
    ("WARNING: possible circular locking dependency detected", Severity.WARNING),
    (
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
        Severity.WARNING,
    ),
    ("INFO: task inotifywait:72 blocked for more than 122 seconds.", Severity.WARNING),
    ("BUG: KASAN: slab-use-after-free in fuse_notify+0x1d2/0x300", Severity.WARNING),
    ("refcount_t: underflow; use-after-free.", Severity.WARNING),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", Severity.WARNING),
    ("INFO: trying to register non-static key.", Severity.WARNING),
    ("turning off the locking correctness validator.", Severity.WARNING),
    ("INFO: lockdep is turned off.", Severity.WARNING),
    ("INFO: possible irq lock inversion dependency detected", Severity.WARNING),
    ("DEBUG_LOCKS_WARN_ON(lock->magic != lock)", Severity.WARNING),
    ("inconsistent lock state", Severity.WARNING),
    ("watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [swapper/0:1]", Severity.WARNING),
    ("UBSAN: array-index-out-of-bounds in fs/fuse/dev.c:10:2", Severity.WARNING),
    ("KFENCE: use-after-free read in fuse_notify+0x1d2/0x300", Severity.WARNING),
    ("BUG: KCSAN: data-race in fuse_notify / fuse_simple_request", Severity.WARNING),
    (
        "ODEBUG: free active (active state 0) object: ffff888004 object type: work_struct",
        Severity.WARNING,
    ),
    ("list_add corruption. prev->next should be next (ffff), but was dead.", Severity.WARNING),
    ("list_del corruption, ffff888004->next is LIST_POISON1 (dead000000000100)", Severity.WARNING),
    ("BUG kmalloc-64 (Not tainted): Poison overwritten", Severity.WARNING),
    (
        "BUG fuse_inode (Tainted: G    B  ): Objects remaining on __kmem_cache_shutdown()",
        Severity.WARNING,
    ),
    ("BUG: Bad page state in process swapper/0  pfn:04b9d", Severity.WARNING),
    ("kworker/0:1: page allocation failure: order:1, mode:0x820(GFP_ATOMIC)", Severity.WARNING),
    ("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", Severity.WARNING),
    ("VFS: Busy inodes after unmount of virtiofs (virtiofs)", Severity.WARNING),
    ('irq 24: nobody cared (try booting with the "irqpoll" option)', Severity.WARNING),
    ("virtio_fs virtio3: requests.0:id 5 is not a head!", Severity.WARNING),
    ("sysfs: cannot create duplicate filename '/fs/virtiofs/1'", Severity.WARNING),
    ("WARNING: bad unlock balance detected!", Severity.WARNING),
    ("possible recursive locking detected", Severity.WARNING),
    ("suspicious RCU usage. include/linux/rcupdate.h:100 suspicious usage!", Severity.WARNING),
    ("BUG: scheduling while atomic: storm/77/0x00000002", Severity.WARNING),
    ("DEBUG_LOCKS_WARN_ON(chain_hlocks[chain->base] != 0)", Severity.WARNING),
    ("BUG: Bad rss-counter state mm:ff11 type:MM_ANONPAGES val:1", Severity.WARNING),
    ("cache_from_obj: Wrong slab cache. kmalloc-64 but object is from x", Severity.WARNING),
    ("unchecked MSR access error: RDMSR from 0x1b0", Severity.WARNING),
    ("kobject (ff11): tried to init an initialized object", Severity.WARNING),
    ("unreferenced object 0xff11000002198010 (size 64):", Severity.WARNING),
    ("BUG: KMSAN: uninit-value in fuse_notify", Severity.WARNING),
    ("WARNING: held lock freed!", Severity.WARNING),
    ("Call Trace:", Severity.WARNING),
    ("BUG: unable to handle page fault for address: ffa0000000064008", Severity.FATAL),
    ("Oops: general protection fault, probably for non-canonical address", Severity.FATAL),
    ("traps: PANIC: double fault, error_code: 0x0", Severity.FATAL),
    ("Attempted to kill init! exitcode=0x0000000b", Severity.FATAL),
]
HARMLESS = [
    "INFO: NMI handler (nmi_cpu_backtrace_handler) took too long to run: 1.2 msecs",
    "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable",
    "FAULT_INJECTION: forcing a failure.",
]


def test_normal_log_has_no_problems() -> None:
    console = Console()
    assert console.feed(QUIET) == []
    assert "Linux version" in console.tail()


@pytest.mark.parametrize(("text", "severity"), TROUBLE)
def test_kernel_reports_are_problems(text: str, severity: Severity) -> None:
    found = Console().feed(f"{QUIET}[   12.345678] {text}\r\n")
    assert [(finding.severity, finding.line) for finding in found] == [
        (severity, f"[   12.345678] {text}")
    ]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_lines_are_no_problems(text: str) -> None:
    assert Console().feed(f"[   12.345678] {text}\r\n") == []


def test_line_read_in_parts_is_found_once() -> None:
    console = Console()
    assert console.feed("[    3.0") == []
    assert console.feed("00000] Kernel pan") == []
    assert len(console.feed("ic - not syncing: x\n[    3.1")) == 1
    assert len(console.problems) == 1


def test_last_lines_have_the_fatal_problem_and_its_trace() -> None:
    console = Console()
    trace = "".join(f"[    3.000001]  frame_{number}\n" for number in range(40))
    console.feed(f"{QUIET}[    3.000000] Kernel panic - not syncing: x\n{trace}")
    words = console.last_lines()
    assert "Kernel panic" in words and "frame_0" in words and "frame_39" in words


def test_last_lines_are_the_end_without_a_problem() -> None:
    console = Console()
    console.feed("".join(f"line {number}\n" for number in range(100)))
    assert console.last_lines().splitlines()[-1] == "line 99"
