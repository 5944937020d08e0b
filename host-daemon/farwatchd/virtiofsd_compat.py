# SPDX-License-Identifier: Apache-2.0
"""Accepts command lines made for virtiofsd.

These are the older form ``-o name[=value],...``, and options that have no meaning here.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Names of ``-o`` that stand for an option without a value; an empty string is the default here,
#: too.
_FLAGS = {
    "allow_direct_io": "--allow-direct-io",
    "no_allow_direct_io": "",
    "allow_root": "",
    "announce_submounts": "--announce-submounts",
    "no_announce_submounts": "--no-announce-submounts",
    "debug": "--log-level=debug",
    "flock": "--flock",
    "no_flock": "--no-flock",
    "killpriv_v2": "--killpriv-v2",
    "no_killpriv_v2": "--no-killpriv-v2",
    "posix_acl": "--posix-acl",
    "no_posix_acl": "--posix-acl=never",
    "posix_lock": "--posix-lock",
    "no_posix_lock": "--no-posix-lock",
    "readdirplus": "",
    "no_readdirplus": "--no-readdirplus",
    "security_label": "--security-label",
    "no_security_label": "--security-label=never",
    "writeback": "--writeback",
    "no_writeback": "",
    "xattr": "--xattr",
    "no_xattr": "",
}
#: Names of ``-o`` that stand for an option with a value.
_VALUES = {
    "cache": "--cache",
    "log_level": "--log-level",
    "modcaps": "--modcaps",
    "sandbox": "--sandbox",
    "source": "--shared-dir",
    "timeout": "--timeout",
    "xattrmap": "--xattrmap",
}
#: Values that were called otherwise.
_RENAMED = {("cache", "none"): "never", ("log_level", "err"): "error"}

#: virtiofsd's options that change nothing here: what their value is called, and why.
WITHOUT_EFFECT: dict[str, tuple[str | None, str]] = {
    "timeout": ("SECONDS", "--cache sets how long the guest may cache"),
}


def modern(arguments: Sequence[str]) -> list[str]:
    """Replace each ``-o`` by the options that it stands for.

    ``ValueError`` names what is not understood.
    """
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            text = next(rest, "")
        elif argument.startswith("-o") and not argument.startswith("--"):
            text = argument[2:].removeprefix("=")
        elif argument == "--socket" or argument.startswith("--socket="):
            result.append(argument.replace("--socket", "--socket-path", 1))
            continue
        else:
            result.append(argument)
            continue
        result += [option for item in text.split(",") for option in _translated(item)]
    return result


def _translated(item: str) -> list[str]:
    name, equals, value = item.partition("=")
    if equals and name in _VALUES:
        return [f"{_VALUES[name]}={_RENAMED.get((name, value), value)}"]
    if not equals and name in _FLAGS:
        return [_FLAGS[name]] if _FLAGS[name] else []
    raise ValueError(f"-o {item}: there is no such option")
