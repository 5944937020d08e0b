# SPDX-License-Identifier: Apache-2.0
"""The guest's command line, made from the environment."""

import dataclasses
import shlex
from pathlib import Path

import pytest
from farwatch_harness.kernel import versions
from farwatch_harness.vm.boot import QemuDevice, share_options, vng_command
from farwatch_harness.vm.qemu import Accelerator, NotificationDevice, Qemu
from farwatch_harness.vm.testbed import TestbedSpec, daemon_argv, vm_spec

QEMU = Qemu(Path("/q e/qemu"), "11.1.3", "test", NotificationDevice.GENERIC)
SPEC = TestbedSpec("name", Path("/k/bzImage"), QEMU, Accelerator.TCG, Path("/shared dir"))
SOCKETS = Path("/run/sock ets")


def qemu_words(command: list[str]) -> list[str]:
    """QEMU's own arguments in virtme-ng's command line, as virtme-ng splits them."""
    (option,) = [word for word in command if word.startswith("--qemu-opts=")]
    return shlex.split(option.removeprefix("--qemu-opts="))


def test_event_device_has_hiprio_notification_and_request_queues() -> None:
    words = share_options(QemuDevice.EVENTS, Path("/s"), "tag", 512, request_queues=2)
    device = words[words.index("-device") + 1].split(",")
    assert device[0] == "vhost-user-test-device-pci"
    assert {"virtio-id=26", "num_vqs=4", "config_size=44"} <= set(device)
    assert "memory-backend-memfd,id=mem,size=512M,share=on" in words


@pytest.mark.parametrize("known", NotificationDevice)
def test_plain_device_has_a_tag_and_no_notification_queue(known: NotificationDevice) -> None:
    words = share_options(
        QemuDevice.PLAIN, Path("/s"), "tag", 512, request_queues=1, notification_device=known
    )
    assert words[-1].startswith("vhost-user-fs-pci,") and "tag=tag" in words[-1]
    assert "notification-queue" not in words[-1]


def test_file_system_device_with_events_has_a_tag_and_the_notification_queue() -> None:
    patched = NotificationDevice.FILE_SYSTEM
    words = share_options(
        QemuDevice.EVENTS, Path("/s"), "tag", 512, request_queues=3, notification_device=patched
    )
    device = words[-1].split(",")
    assert device[0] == "vhost-user-fs-pci"
    assert {"tag=tag", "num-request-queues=3", "notification-queue=on"} <= set(device)


def test_paths_with_spaces_are_quoted() -> None:
    words = qemu_words(vng_command(vm_spec(SPEC, SOCKETS), "vng", "true"))
    assert "socket,id=fs,path=/run/sock ets/fs" in words
    assert "socket,id=agent,path=/run/sock ets/agent,server=on,wait=off" in words


def test_guest_command_is_last_and_only_emulation_disables_kvm() -> None:
    emulated = vng_command(vm_spec(SPEC, SOCKETS), "vng", "run this")
    assert emulated[-2:] == ["--", "run this"]
    assert "--disable-kvm" in emulated
    fast = vng_command(
        vm_spec(dataclasses.replace(SPEC, accelerator=Accelerator.KVM), SOCKETS), "vng", "run this"
    )
    assert "--disable-kvm" not in fast
    assert "--" not in vng_command(vm_spec(SPEC, SOCKETS), "vng", None)


def test_root_has_the_cache_mode_of_the_kernel_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        versions,
        "VERSIONS",
        (versions.DEFAULT, versions.KernelVersion("1.0", "linux", root_cache="none")),
    )
    for name, mode in (("1.0", "none"), (versions.DEFAULT.name, "readahead")):
        monkeypatch.setenv(versions.VARIABLE, name)
        (flags,) = [
            word
            for word in vng_command(vm_spec(SPEC, SOCKETS), "vng", "true")
            if word.startswith("--append=rootflags=")
        ]
        assert flags.endswith(f",cache={mode}")


def test_virtme_ng_and_shared_memory_have_the_same_size() -> None:
    command = vng_command(vm_spec(SPEC, SOCKETS), "vng", "true")
    assert "--memory=1024M" in command
    assert "memory-backend-memfd,id=mem,size=1024M,share=on" in qemu_words(command)


def test_testbed_memory_option_reaches_virtme_ng_and_the_shared_backend() -> None:
    spec = dataclasses.replace(SPEC, memory_mib=3072)
    command = vng_command(vm_spec(spec, SOCKETS), "vng", "true")
    assert "--memory=3072M" in command
    assert "memory-backend-memfd,id=mem,size=3072M,share=on" in qemu_words(command)


def test_daemon_is_farwatchd_with_options_or_the_given_command() -> None:
    options = dataclasses.replace(SPEC, daemon_options=("--max-watches=3",))
    words = daemon_argv(options, Path("/s"))
    assert words[0].endswith("farwatchd")
    assert words[1:] == [
        "--socket-path=/s",
        "--shared-dir=/shared dir",
        "--tag=farwatch",
        "--keep-serving",
        "--max-watches=3",
    ]
    other = dataclasses.replace(SPEC, daemon_command=("other", "--at={socket}", "{shared}"))
    assert daemon_argv(other, Path("/s")) == ["other", "--at=/s", "/shared dir"]
