# SPDX-License-Identifier: Apache-2.0
"""The Debian package, the units of systemd and the AppArmor profile.

Their programs take them without a word.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from farwatchd.options import parse

CHECKOUT = Path(__file__).resolve().parents[3]
PACKAGING = CHECKOUT / "packaging"
TIMEOUT = 60
#: Seconds to build the Debian package on a busy machine, which may have to unpack two kernel
#: sources before.
BUILD_TIMEOUT = 600
#: What the Debian package has besides the daemon's modules, its documents and metadata.
DEB_FILES = {
    "/etc/apparmor.d/usr.bin.farwatchd",
    "/usr/bin/farwatch",
    "/usr/bin/farwatchd",
    "/usr/lib/systemd/system/farwatchd@.service",
    "/usr/lib/systemd/system/farwatchd@.socket",
    "/usr/share/bash-completion/completions/farwatchd",
    "/usr/share/man/man1/farwatch.1.gz",
    "/usr/share/man/man1/farwatchd.1.gz",
    "/usr/share/qemu/vhost-user/50-farwatchd.json",
    "/usr/share/zsh/vendor-completions/_farwatchd",
}
#: What systemd-analyze(1) gives the service, of 10: less is better.
EXPOSURE = 4.2

pytestmark = pytest.mark.packages


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Write an instance of each unit, of a daemon and a manual that are installed."""
    for path in (PACKAGING / "systemd").iterdir():
        text = path.read_text().replace("/usr/bin/farwatchd", shutil.which("true") or "/bin/true")
        text = re.sub("^Documentation=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / path.name.replace("@", "@data")).write_text(text)
    return sorted(str(path) for path in tmp_path.iterdir())


def run(*words: str) -> str:
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def make(target: str, *words: str) -> str:
    """Return the results of ``make``: its progress, on stderr, depends on what is cached."""
    command = ["make", "-s", "-C", str(CHECKOUT), target, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_units_are_right_and_confine_the_daemon(units: list[str]) -> None:
    said = run("systemd-analyze", "verify", *units)
    # It reads what else is installed, too.
    assert [line for line in said.splitlines() if "farwatchd" in line] == []
    service = next(unit for unit in units if unit.endswith(".service"))
    table = run("systemd-analyze", "security", "--offline=true", service)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", table)
    assert found and float(found[1]) <= EXPOSURE, table[-300:]


def test_service_starts_the_daemon_with_words_that_it_takes() -> None:
    text = (PACKAGING / "systemd/farwatchd@.service").read_text()
    (words,) = re.findall("^ExecStart=/usr/bin/farwatchd (.*)$", text, re.MULTILINE)
    words = words.replace("${SHARE}", "/srv/data").replace("$OPTIONS", "--cache=auto")
    config = parse(words.split())
    assert (config.socket.fd, str(config.shared_dir)) == (3, "/srv/data")


def test_profile_is_right() -> None:
    said = run(
        "apparmor_parser",
        "--skip-kernel-load",
        "--skip-cache",
        "--skip-read-cache",
        str(PACKAGING / "apparmor/usr.bin.farwatchd"),
    )
    assert "error" not in said.lower()


@pytest.mark.parametrize(
    ("kernel", "directory"),
    [
        ("6.12.117+deb13-amd64", "linux-6.12"),
        ("6.1.0-56-amd64", "linux-6.1"),
        ("6.11.4-1-amd64", None),
        ("7.3.4+deb13-amd64", None),
        ("16.1.0", None),
    ],
)
def test_dkms_builds_the_sources_for_the_kernel(kernel: str, directory: str | None) -> None:
    """Read dkms.conf as DKMS does, with the kernel's release in a variable."""
    script = (
        f"kernelver={kernel}; kernel_source_dir=/headers; dkms_tree=/dkms;"
        f" . {CHECKOUT}/patches/module/dkms.conf;"
        " [[ $kernelver =~ $BUILD_EXCLUSIVE_KERNEL ]] || exit 0;"
        ' echo "${BUILT_MODULE_LOCATION[0]}"; echo "${MAKE[0]}"'
    )
    said = run("bash", "-c", script).splitlines()
    if directory is None:
        assert said == []
        return
    location, command = said
    assert location == f"{directory}/"
    assert f" M=/dkms/farwatchfs/0.1.0/build/{directory} " in command


def test_debian_packages_are_built_without_a_warning(tmp_path: Path) -> None:
    """Build the packages of the checkout, unpack them, and try what is in them."""
    said = make("deb", f"DEB={tmp_path}")
    driver, package = sorted(tmp_path.glob("*.deb"))
    # Else lintian has said something.
    assert said == f"{driver}\n{package}\n"
    root = tmp_path / "driver"
    run("dpkg-deb", "--extract", str(driver), str(root))
    (sources,) = (root / "usr/src").iterdir()
    described = dict(
        re.findall(r'^(\w+(?:\[0\])?)="(.*)"$', (sources / "dkms.conf").read_text(), re.M)
    )
    assert sources.name == f"{described['PACKAGE_NAME']}-{described['PACKAGE_VERSION']}"
    directories = {path.name for path in sources.iterdir() if path.is_dir()}
    assert directories == {"linux-6.12", "linux-6.1"}
    for name in directories:
        makefile = (sources / name / "Makefile").read_text()
        assert f"obj-m := {described['BUILT_MODULE_NAME[0]']}.o" in makefile
    assert os.access(root / "usr/sbin/mount.virtiofs", os.X_OK)
    root = tmp_path / "root"
    run("dpkg-deb", "--extract", str(package), str(root))
    files = {f"/{path.relative_to(root)}" for path in root.rglob("*") if not path.is_dir()}
    modules = "/usr/lib/python3/dist-packages/"
    others = {name for name in files if not name.startswith((modules, "/usr/share/doc/"))}
    assert others == DEB_FILES
    run("dpkg-deb", "--control", str(package), str(tmp_path / "control"))
    scripts = [(tmp_path / "control" / name).read_text() for name in ("postinst", "prerm")]
    assert "--install /usr/bin/virtiofsd virtiofsd /usr/bin/farwatchd" in scripts[0]
    assert "--remove virtiofsd /usr/bin/farwatchd" in scripts[1]
    daemon = ["env", f"PYTHONPATH={root}{modules}", "/usr/bin/python3", f"{root}/usr/bin/farwatchd"]
    assert run(*daemon, "--version") == "farwatchd 0.1.0\n"
    described = json.loads((root / "usr/share/qemu/vhost-user/50-farwatchd.json").read_text())
    assert described["binary"] == "/usr/bin/farwatchd"
    for page in sorted((root / "usr/share/man/man1").iterdir()):
        command = page.name.partition(".")[0]
        shown = run("env", "MANWIDTH=80", "man", "--warnings", "-l", str(page))
        assert shown.casefold().startswith(command) and "warning" not in shown
        assert "UNSET" not in shown
    completion = root / "usr/share/bash-completion/completions/farwatchd"
    options = run("bash", "-c", f'. {completion}; echo "${{_shtab_farwatchd_option_strings[@]}}"')
    assert "--shared-dir" in options.split()
