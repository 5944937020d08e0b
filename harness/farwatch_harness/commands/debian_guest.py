# SPDX-License-Identifier: Apache-2.0
"""`make guest`: a Debian guest with a disk image, Debian's own kernel and the module."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.kernel import module
from farwatch_harness.util import apt, paths, progress, subprocesses

FOLDER = paths.CHECKOUT / "build" / "guest"
SCRIPT = paths.CHECKOUT / "packaging" / "debian-guest"
#: What the script copies into the guest, besides the module's sources.
COPIED = ("host-daemon/farwatch", "patches/module/dkms.conf", "patches/module/mount.virtiofs")


@dataclass(frozen=True)
class GuestImage:
    """The files that a VMM boots."""

    disk: Path
    kernel: Path
    initrd: Path


def make_image() -> GuestImage:
    """Make the guest in build/guest, unless its inputs are those of the one that is there.

    Debian's packages are those of the day on which it was made. HarnessError: a step fails.
    """
    image = GuestImage(FOLDER / "disk.img", FOLDER / "vmlinuz", FOLDER / "initrd.img")
    sources = module.sources()
    digest = hashlib.sha256()
    for path in (SCRIPT, *(paths.CHECKOUT / name for name in COPIED)):
        digest.update(path.read_bytes())
    for name, content in sorted(sources.items()):
        digest.update(name.encode() + content)
    made_of = FOLDER / "inputs"
    if made_of.exists() and made_of.read_text() == digest.hexdigest() and image.disk.exists():
        return image
    apt.install((*apt.DEBIAN_TREE, "e2fsprogs"), paths.LOGS / "apt-guest.log")
    folder = FOLDER / "module"
    module.write_sources(folder, sources)
    argv = [*apt.as_root(), str(SCRIPT), str(folder), str(FOLDER)]
    with progress.step("making a Debian guest") as step:
        for line in subprocesses.lines_of(argv, paths.LOGS / "guest.log"):
            step.update(line[:60])
    made_of.write_text(digest.hexdigest())
    return image
