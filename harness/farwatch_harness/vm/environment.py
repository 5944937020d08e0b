# SPDX-License-Identifier: Apache-2.0
"""The environment of a run: kernel, QEMU and accelerator, found or made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import build, distribution, module, series, versions
from farwatch_harness.util import apt, paths, progress
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.qemu import Accelerator, Qemu, find_accelerator, find_qemu
from farwatch_harness.vm.testbed import TestbedSpec


@dataclass(frozen=True)
class Environment:
    """What a guest needs beside its share.

    module: the virtio-fs driver with the host's events, for a kernel that has none; else None.
    """

    kernel: build.Kernel
    qemu: Qemu
    accelerator: Accelerator
    module: Path | None = None

    def testbed_spec(
        self, name: str, shared: Path, device: QemuDevice = QemuDevice.EVENTS
    ) -> TestbedSpec:
        """Return a spec of a testbed in this environment; change it with dataclasses.replace()."""
        return TestbedSpec(
            name,
            self.kernel.image,
            self.qemu,
            self.accelerator,
            shared,
            device,
            module=self.module,
        )


def patches_of_series(count: int | None = None, folder: Path | None = None) -> list[series.Patch]:
    """Return the series in `folder`, or its first `count` patches.

    folder: None is the series of the current kernel version.
    """
    if count == 0:
        return []
    return series.read_series(folder or versions.current().folder)[:count]


def prepare_environment(
    patches: Sequence[series.Patch], flavour: build.Flavour = build.Flavour.NORMAL
) -> Environment:
    """Find or make the environment with the kernel built from `patches`, and print what it is."""
    apt.install(apt.GUEST, paths.LOGS / "apt-guest.log")
    return _with_qemu(build.build(patches, flavour))


def prepare_distribution_environment() -> Environment:
    """Find or make the environment with Debian's own kernel and the module, and print it.

    HarnessError: apt does not know the kernel, or the module does not compile.
    """
    apt.install(apt.GUEST, paths.LOGS / "apt-guest.log")
    found = distribution.find_kernel()
    driver = module.build(versions.current(), found.headers)
    return _with_qemu(build.Kernel(found.image, f"{found.title}, with {driver.name}"), driver)


def _with_qemu(kernel: build.Kernel, driver: Path | None = None) -> Environment:
    qemu = find_qemu()
    accelerator = find_accelerator(qemu, kernel.image)
    speed = (
        ""
        if accelerator is Accelerator.KVM
        else " (KVM does not work here: the guest is emulated, and slower)"
    )
    progress.say(f"  kernel: {kernel.title}")
    progress.say(f"  QEMU: {qemu.version}, {qemu.origin}")
    progress.say(f"  accelerator: {accelerator.value}{speed}")
    return Environment(kernel, qemu, accelerator, driver)
