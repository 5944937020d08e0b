# SPDX-License-Identifier: Apache-2.0
"""`make guest`: a Debian guest with a disk image, Debian's own kernel and the module.

With PATCHED=1 it has the kernel of `make kernel-deb` instead, and no module.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import debian_package, module, versions
from farwatch_harness.util import apt, paths, progress, subprocesses
from farwatch_harness.vm.environment import patches_of_series

FOLDER = paths.CHECKOUT / "build" / "guest"
PATCHED_FOLDER = FOLDER.with_name("guest-patched")
SCRIPT = paths.CHECKOUT / "packaging" / "debian-guest"
#: What the script copies into the guest, besides the module's sources.
COPIED = ("host-daemon/farwatch", "patches/module/dkms.conf", "patches/module/mount.virtiofs")


@dataclass(frozen=True)
class GuestImage:
    """The files that a VMM boots."""

    disk: Path
    kernel: Path
    initrd: Path


def make_image(patched: bool = False) -> GuestImage:
    """Make the guest in build/guest, unless its inputs are those of the one that is there.

    patched: with a patched kernel, in build/guest-patched, instead of the module. Debian's packages
    are those of the day on which it was made. HarnessError: a step fails.
    """
    folder = PATCHED_FOLDER if patched else FOLDER
    image = GuestImage(folder / "disk.img", folder / "vmlinuz", folder / "initrd.img")
    digest = hashlib.sha256()
    for path in (SCRIPT, *(paths.CHECKOUT / name for name in COPIED)):
        digest.update(path.read_bytes())
    if patched:
        source = debian_package.build_packages(patches_of_series()).image
        # The cache names it by its content.
        digest.update(str(source).encode())
    else:
        source = folder / "module"
        # Debian 13's kernel.
        version = versions.named("6.12")
        for name, content in sorted(module.sources(version).items()):
            digest.update(name.encode() + content)
    made_of = folder / "inputs"
    if made_of.exists() and made_of.read_text() == digest.hexdigest() and image.disk.exists():
        return image
    apt.install((*apt.DEBIAN_TREE, "e2fsprogs"), paths.LOGS / "apt-guest.log")
    if not patched:
        module.write_sources_for(source, [version])
    argv = [*apt.as_root(), str(SCRIPT), str(source), str(folder)]
    with progress.step("making a Debian guest") as step:
        for line in subprocesses.lines_of(argv, paths.LOGS / f"{folder.name}.log"):
            step.update(line[:60])
    made_of.write_text(digest.hexdigest())
    return image
