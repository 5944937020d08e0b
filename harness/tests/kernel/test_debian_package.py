# SPDX-License-Identifier: Apache-2.0
"""Packages of a kernel, with a made-up source, and without a compiler and Debian's archive."""

import lzma
from pathlib import Path

import pytest
from farwatch_harness.kernel import debian_package, source_tree, versions
from farwatch_harness.kernel.source_tree import KernelSource
from farwatch_harness.util import apt, paths, subprocesses
from farwatch_harness.util.errors import HarnessError

OPTIONS = {"CONFIG_OURS": "y"}
HEAD = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 9\n"
#: As the kernel's: the configuration is completed, and the packages are made beside the tree.
MAKEFILE = (
    HEAD
    + "olddefconfig:\n\techo CONFIG_DEFAULT=y >> .config\n"
    + "bindeb-pkg:\n\techo '  CC      init/main.o'\n"
    + "\tfor name in image-6.12.9-farwatch headers-6.12.9-farwatch libc-dev; do"
    + " cp .config ../linux-$${name}_$(KDEB_PKGVERSION)_amd64.deb; done\n"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a source whose Makefile stands for the kernel's; return its directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "LOGS", tmp_path / "logs")
    tree = tmp_path / "cache" / "farwatch" / "sources" / "linux"
    tree.mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    found = KernelSource("linux", tree, in_cache=True)
    monkeypatch.setattr(source_tree, "find_source", lambda: found)
    monkeypatch.setattr(apt, "install", lambda _packages, _log: None)
    monkeypatch.setattr(debian_package, "OPTIONS", OPTIONS)
    monkeypatch.setattr(debian_package, "cloud_configuration", lambda _version: b"CONFIG_CLOUD=m\n")
    return tree


def test_image_and_headers_are_kept_and_other_packages_are_not(source: Path) -> None:
    packages = debian_package.build_packages([])
    version = f"6.12.9-{debian_package.project_version()}"
    assert packages.image.name == f"linux-image-6.12.9-farwatch_{version}_amd64.deb"
    assert packages.headers.name == f"linux-headers-6.12.9-farwatch_{version}_amd64.deb"
    assert len(list(packages.image.parent.iterdir())) == 2


def test_configuration_is_debians_with_our_options(source: Path) -> None:
    image = debian_package.build_packages([]).image
    assert image.read_text() == "CONFIG_CLOUD=m\nCONFIG_OURS=y\nCONFIG_DEFAULT=y\n"


def test_packages_are_built_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = debian_package.build_packages([])
    monkeypatch.setattr(subprocesses, "lines_of", pytest.fail)
    assert debian_package.build_packages([]) == first


def test_another_configuration_of_debian_is_another_kernel(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = debian_package.build_packages([])
    monkeypatch.setattr(debian_package, "cloud_configuration", lambda _version: b"CONFIG_CLOUD=y\n")
    second = debian_package.build_packages([])
    assert second.image.read_text().startswith("CONFIG_CLOUD=y")
    assert first.image.exists()


def test_option_that_the_kernel_refuses_is_named(source: Path) -> None:
    (source / "Makefile").write_text(HEAD + "olddefconfig:\n\techo > .config\n")
    with pytest.raises(HarnessError, match="CONFIG_OURS"):
        debian_package.build_packages([])


def test_failed_build_has_compiler_errors_and_caches_nothing(source: Path, tmp_path: Path) -> None:
    failing = "bindeb-pkg:\n\t@echo 'a.c:1: error: no'; exit 1\n"
    (source / "Makefile").write_text(HEAD + "olddefconfig:\n" + failing)
    with pytest.raises(HarnessError, match=r"(?s)kernel-deb\.log.*a\.c:1: error: no"):
        debian_package.build_packages([])
    assert list((tmp_path / "cache" / "farwatch" / "kernel-packages").iterdir()) == []


def test_missing_package_is_an_error(source: Path) -> None:
    only_image = "bindeb-pkg:\n\ttouch ../linux-image-6.12.9_1_amd64.deb\n"
    (source / "Makefile").write_text(HEAD + "olddefconfig:\n" + only_image)
    with pytest.raises(HarnessError, match=r"but: linux-image-6\.12\.9_1_amd64\.deb"):
        debian_package.build_packages([])


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand for Debian's archive, which has linux-config-6.12; return the packages fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetched: list[str] = []

    def unpack(packages: list[str], target: Path, *_others: object) -> None:
        fetched.extend(packages)
        folder = target / "usr" / "src" / "linux-config-6.12"
        folder.mkdir(parents=True)
        for flavour in ("amd64", "cloud-amd64"):
            text = f"CONFIG_OF={flavour}\n".encode()
            (folder / f"config.amd64_none_{flavour}.xz").write_bytes(lzma.compress(text))

    def candidate(package: str, _environment: object) -> str | None:
        return "6.12.9-1" if package == "linux-config-6.12" else None

    monkeypatch.setattr(apt, "unpack", unpack)
    monkeypatch.setattr(apt, "candidate_version", candidate)
    return fetched


def test_configuration_is_that_of_the_cloud_kernel(archive: list[str]) -> None:
    version = versions.named("6.12")
    for _time in range(2):
        assert debian_package.cloud_configuration(version) == b"CONFIG_OF=cloud-amd64\n"
    assert archive == ["linux-config-6.12=6.12.9-1"]


def test_version_without_a_cloud_configuration_is_an_error(archive: list[str]) -> None:
    with pytest.raises(HarnessError, match=r"apt knows no linux-config-6\.1,"):
        debian_package.cloud_configuration(versions.named("6.1"))
