# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernel: which of the packages that apt knows is taken."""

from collections.abc import Mapping

import pytest
from farwatch_harness.kernel import distribution
from farwatch_harness.util import apt, subprocesses
from farwatch_harness.util.errors import HarnessError

PACKAGES = {
    "linux-headers-6.12.95+deb12-amd64": "6.12.95-1",
    "linux-headers-6.12.117+deb12-amd64": "6.12.117-1",
    "linux-headers-6.12.117+deb12-cloud-amd64": "6.12.117-1",
    "linux-headers-6.12.118+deb12-rt-amd64": "6.12.118-1",
    "linux-headers-6.12.117+deb12-common": "6.12.117-1",
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the packages that apt knows; a test may remove some."""
    packages = dict(PACKAGES)

    def run(argv: list[str], env: Mapping[str, str] | None = None) -> str:
        assert argv[:2] == ["apt-cache", "pkgnames"]
        return "".join(f"{name}\n" for name in packages if name.startswith(argv[2]))

    monkeypatch.setattr(subprocesses, "run", run)
    monkeypatch.setattr(
        apt,
        "candidate_version",
        lambda name, _: packages.get(name.replace("-image-", "-headers-")),
    )
    return packages


@pytest.mark.packages
def test_the_newest_kernel_of_the_line_is_taken(known: dict[str, str]) -> None:
    # dpkg compares versions: 95 is older than 117.
    found = distribution.package_of("6.12")
    assert found == ("6.12.117-1", "6.12.117+deb12-amd64")


def test_an_unknown_line_is_one_line_for_the_user(known: dict[str, str]) -> None:
    known.clear()
    with pytest.raises(HarnessError, match=r"apt knows no kernel 6\.12") as caught:
        distribution.package_of("6.12")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("release", "tools"),
    [
        ("6.12.117+deb12-amd64", "linux-kbuild-6.12.117+deb12"),
        # Debian 12's own kernel shares the build tools of the line.
        ("6.1.0-56-amd64", "linux-kbuild-6.1"),
    ],
)
def test_headers_come_with_what_they_depend_on(
    monkeypatch: pytest.MonkeyPatch, release: str, tools: str
) -> None:
    common = f"linux-headers-{release.removesuffix('-amd64')}-common"

    def run(argv: list[str], env: Mapping[str, str] | None = None) -> str:
        assert argv == ["apt-cache", "show", f"linux-headers-{release}=1-1"]
        return (
            f"Package: linux-headers-{release}\n"
            f"Depends: {common} (= 1-1), {tools} (>= 1-1), linux-compiler-gcc-12-x86\n"
            "Section: kernel\n"
        )

    monkeypatch.setattr(subprocesses, "run", run)
    assert distribution.parts_of_headers(release, "1-1") == [common, tools]
