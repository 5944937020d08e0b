# SPDX-License-Identifier: Apache-2.0
"""The wire declarations against the kernel's header: sizes, offsets and constants.

The C compiler computes those of the header.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from construct import Struct
from farwatch_harness.kernel import series, source_tree, versions
from farwatchd.wire import fsnotify, fuse
from farwatchd.wire.fsnotify import Event, RecordFlag
from farwatchd.wire.fuse import STRUCTS, InitFlag, Opcode, OpenFlag, SetattrValid

# The header is made from the kernel's source.
pytestmark = pytest.mark.packages

HEADER = "include/uapi/linux/fuse.h"
ALL_STRUCTS = {
    **STRUCTS,
    "fuse_fsnotify_in": fsnotify.FSNOTIFY_IN,
    "fuse_fsnotify_out": fsnotify.FSNOTIFY_OUT,
    "fuse_fsnotify_wait_in": fsnotify.FSNOTIFY_WAIT_IN,
    "fuse_notify_fsnotify_out": fsnotify.RECORD,
}
CONSTANTS: dict[str, int] = {
    **{f"FUSE_{opcode.name}": int(opcode) for opcode in Opcode},
    **{f"FUSE_{flag.name}": int(flag) for flag in InitFlag},
    **{f"FOPEN_{flag.name}": int(flag) for flag in OpenFlag},
    **{f"FATTR_{flag.name}": int(flag) for flag in SetattrValid},
    **{f"FUSE_FSN_{event.name}": int(event) for event in Event},
    **{f"FUSE_FSN_F_{flag.name}": int(flag) for flag in RecordFlag},
    "FUSE_KERNEL_VERSION": fuse.KERNEL_VERSION,
    "FUSE_KERNEL_MINOR_VERSION": fuse.KERNEL_MINOR_VERSION,
    "FUSE_GETATTR_FH": fuse.GETATTR_FH,
    "FUSE_ATTR_SUBMOUNT": fuse.ATTR_SUBMOUNT,
    "FUSE_OPEN_KILL_SUIDGID": fuse.OPEN_KILL_SUIDGID,
    "FUSE_WRITE_CACHE": fuse.WRITE_CACHE,
    "FUSE_WRITE_KILL_SUIDGID": fuse.WRITE_KILL_SUIDGID,
    "FUSE_SETXATTR_ACL_KILL_SGID": fuse.SETXATTR_ACL_KILL_SGID,
    "FUSE_FSYNC_FDATASYNC": fuse.FSYNC_FDATASYNC,
    "FUSE_LK_FLOCK": fuse.LK_FLOCK,
    "FUSE_EXT_GROUPS": fuse.EXT_GROUPS,
    "FUSE_COMPAT_SETXATTR_IN_SIZE": fuse.COMPAT_SETXATTR_IN_SIZE,
    "FUSE_NOTIFY_FSNOTIFY": fsnotify.FUSE_NOTIFY_FSNOTIFY,
    "FUSE_HAS_FSNOTIFY": fsnotify.FUSE_HAS_FSNOTIFY,
    "FUSE_FSNOTIFY_OTHERS_ONLY": fsnotify.FUSE_FSNOTIFY_OTHERS_ONLY,
    "FUSE_HAS_FSNOTIFY_WAIT": fsnotify.FUSE_HAS_FSNOTIFY_WAIT,
}


@dataclass(frozen=True)
class Compiled:
    """The results of the compiler.

    Sizes by structure, (offset, size) by "structure.field", constants by name.
    """

    sizes: dict[str, int]
    fields: dict[str, tuple[int, int]]
    constants: dict[str, int]


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the header, with the series applied."""
    named = os.environ.get("FARWATCH_FUSE_HEADER")
    if named:
        return Path(named)
    content = series.patched_content(
        source_tree.find_source().path, series.read_series(versions.current().folder)
    )[HEADER]
    assert content is not None
    path = tmp_path_factory.mktemp("header") / "fuse.h"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def compiled(header: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compile a program that prints what the header declares, and run it."""
    folder = tmp_path_factory.mktemp("compiled")
    source = folder / "print.c"
    source.write_text(_program(header))
    program = folder / "print"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    sizes: dict[str, int] = {}
    fields: dict[str, tuple[int, int]] = {}
    constants: dict[str, int] = {}
    for line in printed.splitlines():
        kind, name, *numbers = line.split()
        if kind == "size":
            sizes[name] = int(numbers[0])
        elif kind == "field":
            fields[name] = (int(numbers[0]), int(numbers[1]))
        else:
            constants[name] = int(numbers[0])
    return Compiled(sizes, fields, constants)


def _program(header: Path) -> str:
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        f'#include "{header}"',
        "int main(void)",
        "{",
    ]
    for name, layout in ALL_STRUCTS.items():
        lines.append(f'printf("size {name} %zu\\n", sizeof(struct {name}));')
        for field, _, _ in _fields(layout):
            place = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("field {name}.{field} %zu %zu\\n", {place});')
    lines += [
        f'printf("constant {name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS
    ]
    return "\n".join([*lines, "return 0;", "}", ""])


def _fields(layout: Struct) -> Iterator[tuple[str, int, int]]:
    """Each field's C name, offset and size; a number at the end of a name is an array's index."""
    offset = 0
    for field in layout.subcons:
        size = field.sizeof()
        yield re.sub(r"^(reserved)(\d)$", r"\1[\2]", field.name), offset, size
        offset += size


@pytest.mark.parametrize("name", ALL_STRUCTS)
def test_structure_is_laid_out_as_in_the_header(name: str, compiled: Compiled) -> None:
    layout = ALL_STRUCTS[name]
    assert layout.sizeof() == compiled.sizes[name]
    for field, offset, size in _fields(layout):
        assert (offset, size) == compiled.fields[f"{name}.{field}"], field


def test_constants_are_the_header_s(compiled: Compiled) -> None:
    # Flags that C has as int: bit 31 comes out with its sign.
    assert {name: value & (1 << 64) - 1 for name, value in compiled.constants.items()} == CONSTANTS


def test_no_opcode_or_event_of_the_header_is_missing(header: Path) -> None:
    text = header.read_text()
    block = re.search(r"enum fuse_opcode \{(.*?)\};", text, re.DOTALL)
    assert block is not None
    opcodes = set(re.findall(r"^\tFUSE_(\w+)\s*=", block[1], re.MULTILINE)) - {
        "INIT_BSWAP_RESERVED"
    }
    assert opcodes == {opcode.name for opcode in Opcode}
    names = set(re.findall(r"^#define FUSE_FSN_(\w+)", text, re.MULTILINE))
    flags = {name for name in names if name.startswith("F_")}
    assert flags == {f"F_{flag.name}" for flag in RecordFlag}
    assert names - flags == {event.name for event in Event}
