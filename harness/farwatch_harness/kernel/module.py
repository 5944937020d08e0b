# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs driver as a module for a kernel that is not rebuilt: its sources, its build.

Its sources are fs/fuse of the kernel source with the series and the series of the module, and the
headers <linux/fuse.h> and <linux/virtio_fs.h>. Each kernel version has its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from farwatch_harness.kernel import series, source_tree, versions
from farwatch_harness.util import apt, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError

#: The module, its file system type and its virtio driver.
NAME = "farwatchfs"
HEADERS = ("fuse.h", "virtio_fs.h")
_DIRECTORY = "fs/fuse"
_HEADER_DIRECTORY = "include/uapi/linux"


def sources(version: versions.KernelVersion) -> dict[str, bytes]:
    """Return the module's source files by their path in the directory in which it is built.

    version: of the kernels that the module is for.
    HarnessError: there is no module for this version, or a patch does not apply.
    """
    if not version.has_module:
        known = ", ".join(each.name for each in versions.with_module())
        raise HarnessError(f"there is no module for Linux {version.name}: choose {known}")
    source = source_tree.find_source(version).path
    folders = (version.folder, version.module_folder)
    patches = [patch for folder in folders for patch in series.read_series(folder)]
    patched = series.patched_content(source, patches)

    def content(name: str) -> bytes:
        data = patched[name] if name in patched else (source / name).read_bytes()
        assert data is not None
        return data

    names = {path.name for path in (source / _DIRECTORY).glob("*.[ch]")} | {
        Path(name).name
        for name, data in patched.items()
        if Path(name).parent == Path(_DIRECTORY) and name.endswith((".c", ".h")) and data
    }
    files = {name: content(f"{_DIRECTORY}/{name}") for name in sorted(names | {"Makefile"})}
    for header in HEADERS:
        files[f"include/linux/{header}"] = content(f"{_HEADER_DIRECTORY}/{header}")
    return files


def write_sources(folder: Path, files: dict[str, bytes]) -> None:
    """Write the sources into `folder`, whose other files are removed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_sources_for(folder: Path, chosen: Iterable[versions.KernelVersion]) -> None:
    """Write the sources for these versions as DKMS wants them, `folder`/linux-VERSION for each.

    Other files in `folder` are removed. HarnessError: as of sources().
    """
    files = {
        f"linux-{version.name}/{name}": data
        for version in chosen
        for name, data in sources(version).items()
    }
    write_sources(folder, files)


def compile_in(folder: Path, headers: Path) -> Path:
    """Compile the sources in `folder` with a kernel's `headers`; return the module.

    HarnessError: has the compiler's last words.
    """
    argv = ["make", f"-j{os.cpu_count() or 1}", "-C", headers, f"M={folder}"]
    # BTF would need pahole, and is of no use to the module.
    argv += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    with progress.step(f"building {NAME}.ko") as step:
        words = [str(word) for word in argv]
        for line in subprocesses.lines_of(words, paths.LOGS / "module.log"):
            step.update(line.strip()[:60])
    return folder / f"{NAME}.ko"


def build(version: versions.KernelVersion, headers: Path) -> Path:
    """Return the module for the kernel with these headers, from the cache or built now.

    version: of that kernel. HarnessError: as of sources() and compile_in().
    """
    apt.install(apt.MODULE_BUILD, paths.LOGS / "apt-module.log")
    files = sources(version)
    parts = [part for name, data in files.items() for part in (name, data)]
    symbols = (headers / "Module.symvers").read_bytes()

    def make(target: Path) -> None:
        work = target / "build"
        write_sources(work, files)
        shutil.copyfile(compile_in(work, headers), target / f"{NAME}.ko")
        shutil.rmtree(work)

    key = cache.content_key(str(headers), symbols, *parts)
    return cache.published(paths.cache_root() / "modules" / key, make) / f"{NAME}.ko"
