# SPDX-License-Identifier: Apache-2.0
"""The small pure parts: what the demo expects, what a configuration sets, how times are written."""

from pathlib import Path

import pytest
from farwatch_harness import cli
from farwatch_harness.commands import demo
from farwatch_harness.kernel import build
from farwatch_harness.util import paths, progress


def test_expected_events_match_in_order_with_others_between() -> None:
    assert demo.unseen(("A", "B"), ["A", "X", "B"]) == []
    assert demo.unseen(("A", "B"), ["B", "A"]) == ["B"]


def test_options_are_read_and_comments_are_not(tmp_path: Path) -> None:
    (tmp_path / "config").write_text('# CONFIG_A is not set\nCONFIG_B=y\n\nCONFIG_C="a=b"\n')
    assert build.read_options(tmp_path / "config") == {"CONFIG_B": "y", "CONFIG_C": '"a=b"'}


def test_kernel_configuration_has_virtio_fs_and_inotify() -> None:
    options = build.read_options(paths.KERNEL_CONFIG)
    for name in (
        "VIRTIO_FS",
        "FUSE_FS",
        "INOTIFY_USER",
        "FANOTIFY",
        "DNOTIFY",
        "OVERLAY_FS",
        "USER_NS",
        "EXT4_FS",
    ):
        assert options[f"CONFIG_{name}"] == "y"
    assert options["CONFIG_FUSE_DAX"] == "n"


def test_durations_read_well() -> None:
    assert [progress.duration(value) for value in (0.44, 12.3, 224)] == [
        "0.4 s",
        "12 s",
        "3 min 44 s",
    ]


def test_user_error_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["apply", str(tmp_path), "--patches", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("farwatch: ") and captured.err.count("\n") == 1
