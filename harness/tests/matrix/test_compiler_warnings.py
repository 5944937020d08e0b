# SPDX-License-Identifier: Apache-2.0
"""What is new among warnings: lines may move, headers are included more or less often."""

from farwatch_harness.matrix.compiler_warnings import causes_of, new_warnings

UNUSED = "fs/fuse/dev.c:{}:5: warning: unused variable 'x' [-Wunused-variable]"
IN_HEADER = "./include/linux/fs.h:{}:1: warning: 'f' defined but not used [-Wunused-function]"


def test_warning_on_another_line_is_not_new() -> None:
    assert new_warnings(UNUSED.format(10), UNUSED.format(99)) == []


def test_second_equal_warning_in_a_file_is_new() -> None:
    after = f"{UNUSED.format(10)}\n{UNUSED.format(20)}"
    assert new_warnings(UNUSED.format(10), after) == [UNUSED.format(20)]


def test_warning_in_a_header_counts_once() -> None:
    once, thrice = IN_HEADER.format(5), "\n".join([IN_HEADER.format(5)] * 3)
    assert new_warnings(once, thrice) == []
    assert new_warnings("", thrice) == [once]


def test_notes_and_code_are_no_warnings() -> None:
    assert (
        new_warnings(
            "",
            "fs/fuse/dev.c:1:2: note: declared here\n   12 | int warning;\n  CHECK   fs/fuse/dev.c",
        )
        == []
    )


def test_warnings_of_sparse_kernel_doc_and_linker_are_found() -> None:
    lines = [
        "fs/fuse/dev.c:12:9: warning: context imbalance in 'f' - unexpected unlock",
        "fs/fuse/dev.c:30: warning: Function parameter or struct member 'x' not described in 'f'",
        "ld: warning: vmlinux has a LOAD segment with RWX permissions",
        "fs/fuse/dev.c:12:9: error: undefined identifier 'g'",
    ]
    assert new_warnings("", "\n".join(lines)) == lines


def test_failure_on_another_line_has_the_same_cause() -> None:
    assert (
        causes_of(["fs/a.c:3:1: error: no"])
        == causes_of(["fs/a.c:17:1: error: no"])
        != causes_of(["fs/b.c:3: no"])
    )
