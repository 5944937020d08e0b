# SPDX-License-Identifier: Apache-2.0
"""The host and the guest use one directory as two processes of one system do.

Each script runs on the share and natively, and must give the same results and events, step by step.
They are the ways of editors, package managers, deployments, build tools and containers, and what
people report of shared directories.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.oracle.native_inotify import In
from farwatch_harness.oracle.two_sides import Script, compare_two_sides, guest, host, watch
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.shared_vm import SharedVm
from farwatch_harness.vm.testbed import Share, TestbedSpec

pytestmark = [pytest.mark.patch("others-only"), pytest.mark.daemon]

#: Options of the daemon for each guest.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "auto": ("--xattr", "--posix-acl"),
    "never": ("--xattr", "--posix-acl", "--cache=never", "--allow-mmap"),
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def shared_vms(
    request: pytest.FixtureRequest,
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, SharedVm]]:
    """Yield a guest for each configuration, in place of the one that all tests share."""
    name: str = request.param

    def make_spec(guest_name: str) -> TestbedSpec:
        spec = environment.testbed_spec(f"{guest_name}-{name}", tmp_path_factory.mktemp("share"))
        return dataclasses.replace(spec, daemon_options=CONFIGURATIONS[name])

    shared_vm = SharedVm(make_spec)
    yield {"others": shared_vm}
    shared_vm.close()


ATOMIC_SAVES: dict[str, Script] = {
    "rename over": [
        host("write('f', 'one')"),
        watch(".", "f"),
        guest("look('f')"),
        host("write('f.tmp', 'two, longer')"),
        host("mv('f.tmp', 'f')"),
        guest("look('f'), ls()"),
        watch("f"),
        host("append('f', 'three')"),
        guest("look('f')"),
        guest("write('g.tmp', 'of the guest'); mv('g.tmp', 'f')"),
        host("look('f'), ls()"),
        guest("look('f')"),
    ],
    "vim, with a backup": [
        host("write('f', 'one')"),
        watch(".", "f"),
        guest("look('f')"),
        host("mv('f', 'f~')"),
        host("write('f', 'two')"),
        guest("look('f'), look('f~')"),
        host("rm('f~')"),
        guest("look('f'), ls(), there('f~')"),
        guest("mv('f', 'f~'); write('f', 'three'); rm('f~')"),
        host("look('f'), ls()"),
    ],
    "vim, backup by copy": [
        host("write('f', 'one')"),
        watch(".", "f"),
        guest("read('f')"),
        host("write('4913', ''); rm('4913')", events=False),
        host("write('f~', read('f'))", events=False),
        host("write('f', 'two', O.O_TRUNC)", events=False),
        guest("look('f'), ls()"),
        host("rm('f~')"),
        guest("ls()"),
    ],
    "JetBrains": [
        host("write('f', 'one')"),
        watch(".", "f"),
        guest("look('f')"),
        host("write('f___jb_tmp___', 'two')"),
        host("mv('f', 'f___jb_old___')"),
        host("mv('f___jb_tmp___', 'f')"),
        guest("look('f')"),
        host("rm('f___jb_old___')"),
        guest("ls(), look('f')"),
    ],
    "emacs, link as lock and backup": [
        host("write('f', 'one')"),
        watch(".", "f"),
        host("symlink('user@machine.1:2', '.#f')"),
        guest("look('.#f'), ls()"),
        host("ln('f', 'f~')"),
        guest("look('f'), look('f~')"),
        host("write('#f#', 'two'); mv('#f#', 'f')", events=False),
        guest("look('f'), look('f~')"),
        host("rm('.#f')"),
        guest("there('.#f'), ls()"),
    ],
    "gedit: unnamed file that is linked": [
        host("mkdir('d'); write('d/f', 'one')"),
        watch("d"),
        guest("look('d/f')"),
        host(
            "fd = O.open(at('d'), O.O_TMPFILE | O.O_RDWR, 0o600); O.write(fd, b'two');"
            "O.link(f'/proc/self/fd/{fd}', at('d/new'), src_dir_fd=fd, follow_symlinks=True);"
            "O.close(fd)",
            events=False,
        ),
        guest("look('d/new'), ls('d')"),
        guest(
            "fd = O.open(at('d'), O.O_TMPFILE | O.O_RDWR, 0o600); O.write(fd, b'three');"
            "O.link(f'/proc/self/fd/{fd}', at('d/newer'), src_dir_fd=fd, follow_symlinks=True);"
            "O.close(fd)",
        ),
        host("look('d/newer'), ls('d')"),
        guest("look('d/newer')"),
    ],
    "exchange": [
        host("write('a', 'of a'); write('b', 'of b, longer'); mkdir('d'); mkdir('e')"),
        watch(".", "a", "b"),
        guest("look('a'), look('b')"),
        host("rename('a', 'b', 2)"),
        guest("look('a'), look('b')"),
        host("rename('d', 'a', 2)"),
        guest("look('d'), look('a'), ls()"),
        guest("rename('d', 'b', 2)"),
        host("look('d'), look('b')"),
        host("rename('b', 'd', 1)"),
        guest("errors(lambda: rename('b', 'd', 1)), tree()"),
    ],
    "truncated in place": [
        host("write('f', 'a longer content')"),
        watch(".", "f"),
        guest("fd = opened('f', O.O_RDWR); O.pread(fd, 99, 0)"),
        host("O.truncate(at('f'), 0)"),
        guest("O.fstat(fd).st_size, O.pread(fd, 99, 0)"),
        host("write('f', 'new', 0)"),
        guest("O.fstat(fd).st_size, O.pread(fd, 99, 0), O.lseek(fd, 0, 2)"),
        guest("O.ftruncate(fd, 1)"),
        host("look('f')"),
        host("O.truncate(at('f'), 5000)"),
        guest("O.fstat(fd).st_size, O.pread(fd, 9999, 0)"),
    ],
}

NAMES: dict[str, Script] = {
    "case only": [
        host("write('Readme', '1')"),
        watch(),
        guest("look('Readme'), ls(), there('README')"),
        host("mv('Readme', 'README')"),
        guest("ls(), there('Readme'), look('README')"),
        guest("mv('README', 'readme')"),
        host("ls()"),
        host("mv('readme', 'Readme')"),
        guest("ls(), there('README'), there('readme'), read('Readme')"),
        host("write('README', 'another')"),
        guest("ls(), read('README'), read('Readme')"),
    ],
    "odd names": [
        watch(),
        *(
            step
            for name in (
                "b'x' * 255",
                "'ü'.encode() * 127",
                r"b'\xff\xfe\xfd'",
                r"b'\xc3\x28'",
                r"b'new\nline\ttab'",
                r"b' leading and trailing '",
                "b'-rf'",
                "b'...'",
                r"b'back\\slash'",
                "b'CON:?*<>|'",
                r"b'\x01\x7f\x1b[31m'",
                "'é'.encode()",
                "'é'.encode()",
                "b'.git'",
                "b'#123'",
                "b'name (deleted)'",
            )
            for step in (
                host(f"n = {name}; write(n, 'host')"),
                guest(f"n = {name}; look(n), n in ls()"),
                guest("append(n, ' and guest')"),
                host("look(n)"),
                host("mv(n, b'other')"),
                guest("there(n), look('other')"),
                guest("mv(b'other', n)"),
                host("look(n), rm(n)"),
                guest("there(n), ls()"),
            )
        ),
        guest(
            "errors(lambda: write(b'y' * 256, ''), lambda: mkdir('z' * 256), lambda: ls('n' * 256))"
        ),
    ],
    "deep and long paths": [
        host("d = '/'.join(['directory-' + 'x' * 90] * 30)"),
        guest("d = '/'.join(['directory-' + 'x' * 90] * 30)"),
        host("O.makedirs(at(d)); write(d + '/f', '1')", events=False),
        guest("read(d + '/f'), look(d + '/f')"),
        guest("write(d + '/g', '2')"),
        host("read(d + '/g')"),
        guest("errors(lambda: there(d + '/' + d))"),
    ],
    "a file becomes a directory, a link, a file": [
        host("write('x', 'file')"),
        watch(),
        guest("look('x')"),
        host("rm('x'); mkdir('x'); write('x/in', 'it')", events=False),
        guest("look('x'), ls('x'), read('x/in')"),
        host("rm('x/in'); rmdir('x'); symlink('marks', 'x')", events=False),
        guest("look('x'), O.path.isdir(at('x'))"),
        host("rm('x'); O.mkfifo(at('x'))", events=False),
        guest("look('x')"),
        host("rm('x'); write('x', 'a file again')", events=False),
        guest("look('x')"),
        guest("rm('x'); mkdir('x')"),
        host("look('x')"),
    ],
    "there and back": [
        host("write('a', '1'); mkdir('d'); mkdir('sub')"),
        watch(".", "sub", "d"),
        guest("tree()"),
        host("mv('a', 'b')"),
        host("mv('b', 'a')"),
        host("mv('a', 'b')"),
        guest("tree()"),
        host("mv('d', 'sub/d')"),
        host("mv('sub/d', 'd')"),
        host("mv('d', 'sub/d')"),
        guest("tree()"),
        host("write('sub/d/new', '1')"),
        guest("tree()"),
        guest("mv('sub/d', 'd'); mv('d', 'sub/d'); mv('sub/d', 'd')"),
        host("tree(), write('d/newer', '')"),
        guest("ls('d')"),
    ],
    "tree removed and made again": [
        host("O.makedirs(at('d/e')); write('f', '1'); write('d/g', '1'); write('d/e/h', '1')"),
        watch(".", "d", "d/e", "f", "d/e/h"),
        guest("tree()"),
        host("rm('f')"),
        host("rm('d/e/h')"),
        host("rmdir('d/e')"),
        host("rm('d/g')"),
        host("rmdir('d')"),
        guest("tree()"),
        host("mkdir('d')"),
        watch("d"),
        host("mkdir('d/e')"),
        guest("write('d/e/new', '2')"),
        host("tree()"),
        guest("sh('rm -r d && ls')"),
        host("ls()"),
    ],
    "directories of thousands": [
        host("mkdir('d'); [write(f'd/{n}', '') for n in range(1500)]", events=False),
        guest("len(ls('d'))"),
        watch("d"),
        host("[rm(f'd/{n}') for n in range(0, 1500, 2)]", events=False),
        guest("len(ls('d')), there('d/0'), there('d/1')"),
        guest("[rm(f'd/{n}') for n in range(1, 1500, 2)]", events=False),
        host("ls('d')"),
        guest("rmdir('d')"),
        host("there('d')"),
    ],
    "listed while it changes": [
        host("mkdir('d'); [write(f'd/{n:04}', '') for n in range(600)]", events=False),
        watch("d"),
        guest(
            "it = O.scandir(at('d')); first = [next(it).name for _ in range(10)]; len(first)",
            events=False,
        ),
        host("[rm(f'd/{n:04}') for n in range(300, 600)]", events=False),
        guest(
            "rest = [e.name for e in it]; "
            "len(set(first) | set(rest)) >= 300, "
            "len(first) + len(rest) == len(set(first) | set(rest))",
            events=False,
        ),
        guest("len(ls('d'))"),
    ],
}

LINKS: dict[str, Script] = {
    "hard links": [
        host("write('f', 'one'); mkdir('d')"),
        watch(".", "d", "f"),
        guest("look('f')"),
        host("ln('f', 'd/g')"),
        guest("look('f'), look('d/g'), O.stat(at('f')).st_ino == O.stat(at('d/g')).st_ino"),
        host("append('d/g', ' two')"),
        guest("read('f')"),
        guest("append('f', ' three')"),
        host("read('d/g')"),
        host("rm('f')"),
        guest("there('f'), look('d/g')"),
        guest("ln('d/g', 'f')"),
        host("look('f')"),
        host("rm('d/g')"),
        guest("look('f')"),
        host("rm('f')"),
        guest("tree()"),
    ],
    "installed from a store": [
        host("mkdir('store'); mkdir('pkg'); write('store/f', 'x'); ln('store/f', 'pkg/f')"),
        watch("pkg"),
        guest("look('pkg/f')"),
        host("rm('pkg/f')"),
        host("ln('store/f', 'pkg/f')"),
        guest("look('pkg/f')"),
        host("ln('store/f', 'pkg/tmp'); mv('pkg/tmp', 'pkg/f')", events=False),
        guest("ls('pkg'), look('pkg/f')"),
        guest("rm('pkg/f'); ln('store/f', 'pkg/f')"),
        host("ls('pkg'), look('pkg/f')"),
    ],
    "symlink that is swapped": [
        host(
            "mkdir('r1'); mkdir('r2'); write('r1/v', '1'); write('r2/v', '2'); "
            "symlink('r1', 'current')"
        ),
        watch(".", "r1", "r2"),
        guest("look('current'), read('current/v')"),
        host("symlink('r2', 'tmp')"),
        host("mv('tmp', 'current')"),
        guest("look('current'), read('current/v'), ls('current')"),
        host("write('current/w', '3')"),
        guest("ls('current'), ls('r1')"),
        guest("symlink('r1', 'tmp'); mv('tmp', 'current')"),
        host("look('current'), read('current/v')"),
        host("rm('current'); symlink('nowhere', 'current')", events=False),
        guest("look('current'), errors(lambda: read('current'), lambda: ls('current'))"),
        guest("write('current', 'through a link')", events=False),
        host("read('nowhere')"),
        host("rm('current'); symlink('current', 'current')", events=False),
        guest("errors(lambda: read('current')), look('current')"),
    ],
    "a link itself is watched": [
        host("mkdir('r1'); mkdir('r2'); symlink('r1', 'current')"),
        watch("current", mask=int(In.ALL | In.DONT_FOLLOW)),
        host("symlink('r2', 'tmp'); mv('tmp', 'current')"),
        watch("current"),
        host("write('r2/f', '')"),
        host("write('r1/f', '')"),
    ],
    "Kubernetes' ..data": [
        host(
            "mkdir('..1'); write('..1/key', 'one'); symlink('..1', '..data'); "
            "symlink('..data/key', 'key')"
        ),
        watch(),
        guest("read('key'), tree()"),
        host("mkdir('..2'); write('..2/key', 'two, longer')"),
        host("symlink('..2', '..data_tmp'); mv('..data_tmp', '..data')", events=False),
        guest("read('key'), O.stat(at('key')).st_size"),
        host("rm('..1/key'); rmdir('..1')", events=False),
        guest("read('key'), tree()"),
    ],
    "one directory by two paths": [
        host("mkdir('real'); symlink('real', 'link')"),
        watch("link", "real", "link/", "real/../real"),
        host("write('real/f', '1')"),
        host("write('link/g', '2')"),
        guest("ls('link'), ls('real'), write('link/h', '')"),
    ],
}

MADE_AGAIN: dict[str, Script] = {
    name: [
        host(f"write('f', 'old'); mkdir('d'); write('d/x', 'old'); symlink('f', 'l'); {prepare}"),
        guest("look('f'), ls('d'), look('l'), tree()", events=False),
        *([watch(".", "d")] if watched else []),
        host(gone, events=False),
        guest(f"error(lambda: ({again}))", events=False),
        host("tree()", events=False),
    ]
    for watched in (False, True)
    for name, prepare, gone, again in (
        (f"{what}{', watched' if watched else ''}", *rest)
        for what, *rest in (
            ("write", "", "rm('f')", "write('f', 'new')"),
            ("append", "", "rm('f')", "append('f', 'new')"),
            ("exclusive", "", "rm('f')", "write('f', 'new', O.O_CREAT | O.O_EXCL)"),
            (
                "rewrite after replacement",
                "",
                "rm('f'); write('f', 'by the host')",
                "write('f', 'new')",
            ),
            (
                "append after replacement",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "append('f', 'new')",
            ),
            ("read after replacement", "", "write('g', 'host'); mv('g', 'f')", "read('f')"),
            ("directory", "", "rm('d/x'); rmdir('d')", "mkdir('d'), write('d/y', 'new')"),
            (
                "in a directory that is new",
                "",
                "rm('d/x'); rmdir('d'); mkdir('d')",
                "write('d/y', 'new')",
            ),
            ("in a directory that moved", "", "mv('d', 'e'); mkdir('d')", "write('d/y', 'new')"),
            ("in a directory that was deleted", "", "rm('d/x'); rmdir('d')", "write('d/y', 'new')"),
            ("link", "", "rm('l')", "symlink('other', 'l')"),
            ("hard link on it", "", "rm('f')", "ln('d/x', 'f')"),
            ("rename on it", "", "rm('f')", "mv('d/x', 'f')"),
            ("rename on what was replaced", "", "rm('f'); mkdir('f')", "mv('d/x', 'f')"),
            ("rename of it", "", "rm('f')", "mv('f', 'g')"),
            ("rename of what was replaced", "", "write('g', 'host'); mv('g', 'f')", "mv('f', 'h')"),
            ("unlink", "", "rm('f')", "rm('f')"),
            ("unlink of what became a directory", "", "rm('f'); mkdir('f')", "rm('f')"),
            ("rmdir", "", "rm('d/x'); rmdir('d')", "rmdir('d')"),
            (
                "rmdir of what became a file",
                "",
                "rm('d/x'); rmdir('d'); write('d', '')",
                "rmdir('d')",
            ),
            ("rmdir of what is empty now", "", "rm('d/x')", "rmdir('d')"),
            ("rmdir of what is full now", "mkdir('e')", "write('e/new', '')", "rmdir('e')"),
            ("chmod", "", "rm('f')", "O.chmod(at('f'), 0o600)"),
            (
                "chmod of what was replaced",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "O.chmod(at('f'), 0o600)",
            ),
            (
                "chown of what was replaced",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "O.chown(at('f'), 3, 4)",
            ),
            (
                "utimes of what was replaced",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "O.utime(at('f'), (1, 2))",
            ),
            ("truncate", "", "rm('f')", "O.truncate(at('f'), 1)"),
            (
                "truncate of what was replaced",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "O.truncate(at('f'), 1)",
            ),
            (
                "xattr of what was replaced",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "O.setxattr(at('f'), 'user.x', b'1')",
            ),
            ("xattr", "", "rm('f')", "O.setxattr(at('f'), 'user.x', b'1')"),
            ("getxattr", "", "rm('f')", "O.getxattr(at('f'), 'user.x')"),
            ("hard link of it", "", "rm('f')", "ln('f', 'g')"),
            (
                "hard link of what was replaced",
                "",
                "write('g', 'host'); mv('g', 'f')",
                "ln('f', 'h')",
            ),
            ("mknod", "", "rm('f')", "O.mknod(at('f'), 0o10644)"),
            ("chdir", "", "rm('d/x'); rmdir('d')", "sh('cd d 2>/dev/null && pwd')"),
            ("list", "", "rm('d/x'); rmdir('d')", "ls('d')"),
            (
                "list of what was replaced",
                "",
                "mv('d', 'e'); mkdir('d'); write('d/z', '')",
                "ls('d')",
            ),
            (
                "execute what was replaced",
                "",
                "write('g', '#!/bin/sh\\necho run', mode=0o755); mv('g', 'f')",
                "sh('./f')",
            ),
            (
                "readlink of what was replaced",
                "",
                "symlink('d', 'm'); mv('m', 'l')",
                "O.readlink(at('l'))",
            ),
            (
                "unnamed file in it",
                "",
                "mv('d', 'e'); mkdir('d')",
                "O.close(O.open(at('d'), O.O_TMPFILE | O.O_RDWR))",
            ),
            ("directory, by the host again", "", "rm('d/x'); rmdir('d'); mkdir('d')", "mkdir('d')"),
            (
                "through a link that was replaced",
                "",
                "symlink('d/x', 'm'); mv('m', 'l')",
                "write('l', 'new')",
            ),
        )
    )
}

OPEN_FILES: dict[str, Script] = {
    "unlinked by the guest": [
        watch(),
        guest(
            "fd = opened('f', O.O_RDWR | O.O_CREAT); rm('f'); O.write(fd, b'hello'); "
            "O.ftruncate(fd, 4); O.fchmod(fd, 0o600); O.fsync(fd)",
            events=False,
        ),
        guest(
            "s = O.fstat(fd); O.pread(fd, 9, 0), s.st_size, s.st_nlink, oct(s.st_mode)",
            events=False,
        ),
        guest(
            "O.setxattr(fd, 'user.x', b'1'), O.getxattr(fd, 'user.x'), O.utime(fd, (1, 2)), "
            "O.fchown(fd, 3, 4)",
            events=False,
        ),
        guest(
            "O.posix_fallocate(fd, 0, 9000), O.fstat(fd).st_size, O.lseek(fd, 0, 2)", events=False
        ),
        guest("O.open(f'/proc/self/fd/{fd}', O.O_RDONLY) > 0", events=False),
    ],
    "unlinked by the host": [
        host("write('f', 'one')"),
        watch(),
        guest("fd = opened('f', O.O_RDWR); m = mmap.mmap(fd, 3); m[:3]", events=False),
        host("rm('f')"),
        guest(
            "O.write(fd, b'hello'); O.ftruncate(fd, 4); O.fchmod(fd, 0o600); O.fsync(fd)",
            events=False,
        ),
        guest(
            "s = O.fstat(fd); O.pread(fd, 9, 0), m[:3], s.st_size, s.st_nlink, oct(s.st_mode)",
            events=False,
        ),
        guest(
            "O.setxattr(fd, 'user.x', b'1'), O.getxattr(fd, 'user.x'), O.utime(fd, (1, 2)), "
            "O.fchown(fd, 3, 4)",
            events=False,
        ),
        guest("there('f'), write('f', 'new'), O.pread(fd, 9, 0)", events=False),
        host("look('f')"),
    ],
    "replaced by the host": [
        host("write('f', 'one')"),
        watch(),
        guest("fd = opened('f', O.O_RDWR)", events=False),
        host("write('g', 'two'); mv('g', 'f')", events=False),
        guest(
            "O.pread(fd, 9, 0), read('f'), O.fstat(fd).st_nlink, O.stat(at('f')).st_nlink",
            events=False,
        ),
        guest("O.pwrite(fd, b'old', 0), O.fsync(fd)", events=False),
        host("read('f')", events=False),
    ],
    "renamed by the host": [
        host("write('f', 'one'); mkdir('d')"),
        watch(".", "d"),
        guest("fd = opened('f', O.O_RDWR)", events=False),
        host("mv('f', 'd/g')"),
        guest(
            "O.pwrite(fd, b'two', 0); O.fsync(fd); "
            "O.readlink(f'/proc/self/fd/{fd}').endswith('/d/g')",
            events=False,
        ),
        host("read('d/g')", events=False),
    ],
    "both append": [
        host("write('f', '12345')"),
        watch(".", "f"),
        guest(
            "r = opened('f'); a = opened('f', O.O_WRONLY | O.O_APPEND); O.pread(r, 99, 0)",
            events=False,
        ),
        host("append('f', '67890')"),
        guest("O.lseek(r, 0, 2), O.pread(r, 99, 0)", events=False),
        guest("O.write(a, b'G')"),
        host("read('f')", events=False),
        host("append('f', 'H')"),
        guest("O.write(a, b'g'), O.pread(r, 99, 0), O.fstat(r).st_size", events=False),
        host("write('f', 'ab')", events=False),
        guest(
            "O.fstat(r).st_size, O.pread(r, 99, 0), O.write(a, b'g'), O.pread(r, 99, 0)",
            events=False,
        ),
        host("read('f')", events=False),
    ],
    "mapped by an appending descriptor": [
        guest(
            "f = open(at('f'), 'a+b'); f.write(b'x' * 1024); f.flush(); "
            "m = mmap.mmap(f.fileno(), 1024); m[0:3] = b'new'; m.flush(); m.close(); "
            "O.fsync(f.fileno()); f.close(); O.sync()",
            events=False,
        ),
        host("O.stat(at('f')).st_size, read('f')[:3]", events=False),
        guest("O.stat(at('f')).st_size", events=False),
        guest(
            "fd = opened('f', O.O_RDWR | O.O_APPEND); m = mmap.mmap(fd, 1024); "
            "m[5:8] = b'abc'; O.write(fd, b'tail'); m.flush(); O.fsync(fd)",
            events=False,
        ),
        host("O.stat(at('f')).st_size, read('f')[:10], read('f')[-6:]", events=False),
    ],
    "mapped by both": [
        host("write('f', 'a' * 8192)"),
        watch("f"),
        guest(
            "fd = opened('f', O.O_RDWR); m = mmap.mmap(fd, 8192); m[:2] + m[4096:4098]",
            events=False,
        ),
        host("fd = opened('f', O.O_RDWR); O.pwrite(fd, b'BB', 4096)", events=False),
        guest("m[:2] + m[4096:4098], O.pread(fd, 2, 4096)", events=False),
        guest("m[0:2] = b'CC'; m.flush(); O.fsync(fd)", events=False),
        host("O.pread(fd, 2, 0), O.pread(fd, 2, 4096)", events=False),
        guest(
            "p = mmap.mmap(fd, 8192, mmap.MAP_PRIVATE); p[0:1] = b'z'; p[:2], m[:2]", events=False
        ),
        host("O.pread(fd, 2, 0)", events=False),
        guest("m.close(); p.close()", events=False),
    ],
    "sparse": [
        guest(
            "fd = opened('f', O.O_RDWR | O.O_CREAT); O.ftruncate(fd, 1 << 20); "
            "O.pwrite(fd, b'x' * 4096, 512 << 10); O.fsync(fd)",
            events=False,
        ),
        host(
            "fd = opened('f', O.O_RDWR); "
            "O.lseek(fd, 0, O.SEEK_DATA), O.lseek(fd, 512 << 10, O.SEEK_HOLE), "
            "O.fstat(fd).st_blocks",
            events=False,
        ),
        guest(
            "O.lseek(fd, 0, O.SEEK_DATA), O.lseek(fd, 512 << 10, O.SEEK_HOLE), O.lseek(fd, "
            "0, O.SEEK_HOLE), O.fstat(fd).st_blocks",
            events=False,
        ),
        guest(
            "errors(lambda: O.lseek(fd, (512 << 10) + 4096, O.SEEK_DATA), "
            "lambda: O.lseek(fd, 1 << 21, O.SEEK_HOLE))",
            events=False,
        ),
        guest(
            "libc.fallocate(fd, 3, ctypes.c_long(512 << 10), ctypes.c_long(4096)), "
            "O.fstat(fd).st_blocks, O.pread(fd, 4, 512 << 10)",
            events=False,
        ),
        host("O.fstat(fd).st_blocks, O.pread(fd, 4, 512 << 10)", events=False),
        guest(
            "libc.fallocate(fd, 1, ctypes.c_long(1 << 20), ctypes.c_long(65536)), "
            "O.fstat(fd).st_size, O.fstat(fd).st_blocks",
            events=False,
        ),
        guest(
            "sh('cp --sparse=always f g; cmp f g; "
            "dd if=f of=h bs=64k conv=sparse 2>/dev/null; cmp f h')",
            events=False,
        ),
    ],
    "copied": [
        host("write('f', bytes(range(256)) * 1000)", events=False),
        watch(".", "f"),
        guest(
            "a = opened('f'); b = opened('g', O.O_RDWR | O.O_CREAT); "
            "O.copy_file_range(a, b, 100000, 0, 0), O.fstat(b).st_size",
            events=False,
        ),
        host("read('g') == read('f')[:100000]", events=False),
        guest(
            "O.sendfile(b, a, 100000, 1000), O.pread(b, 300, 100000) == O.pread(a, 300, 100000)",
            events=False,
        ),
        guest(
            "sh('cp f h && cmp f h && cp -a f i && cmp f i; cat f > j; cmp f j; "
            "cp --reflink=auto f k; cmp f k')",
            events=False,
        ),
        host("sh('cmp f h; cmp f i; cmp f j; cmp f k')", events=False),
        guest(
            "errors(lambda: O.copy_file_range(a, a, 10, 0, 5), lambda: O.copy_file_range(a, "
            "b, 10, 1 << 30))",
            events=False,
        ),
    ],
    "direct": [
        host("write('f', 'x' * 8192)", events=False),
        watch("f"),
        guest(
            "buffer = mmap.mmap(-1, 4096); fd = opened('f', O.O_RDWR | O.O_DIRECT); "
            "O.preadv(fd, [buffer], 0), bytes(buffer[:2])",
            events=False,
        ),
        host("write('f', 'y' * 8192, 0)", events=False),
        guest("O.preadv(fd, [buffer], 4096), bytes(buffer[:2])", events=False),
        guest("buffer[:4] = b'next'; O.pwritev(fd, [buffer], 0)", events=False),
        host("read('f')[:6]", events=False),
        guest("read('f')[:6]", events=False),
    ],
    "opened by descriptor and path": [
        host("write('f', 'one'); mkdir('d')"),
        guest(
            "fd = opened('f', O.O_PATH); d = opened('d', O.O_PATH | O.O_DIRECTORY); "
            "O.fstat(fd).st_size, errors(lambda: O.read(fd, 1)), O.readlink(b'', "
            "dir_fd=fd) if 0 else 0",
            events=False,
        ),
        guest(
            "r = O.open(f'/proc/self/fd/{fd}', O.O_RDWR); O.write(r, b'two'), O.close(r)",
            events=False,
        ),
        guest("O.close(O.open('new', O.O_CREAT | O.O_WRONLY, dir_fd=d)), ls('d')", events=False),
        host("read('f'), ls('d'), mv('d', 'e')", events=False),
        guest("O.close(O.open('newer', O.O_CREAT | O.O_WRONLY, dir_fd=d))", events=False),
        host("ls('e')", events=False),
    ],
    "locks of the guest": [
        host("write('f', '')"),
        guest(
            "a = opened('f', O.O_RDWR); b = opened('f', O.O_RDWR); "
            "fcntl.flock(a, fcntl.LOCK_EX); "
            "errors(lambda: fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB))",
            events=False,
        ),
        guest(
            "fcntl.flock(a, fcntl.LOCK_UN); "
            "errors(lambda: fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB))",
            events=False,
        ),
        guest(
            'fcntl.lockf(a, fcntl.LOCK_EX, 10); as_user(\'fd = O.open(at("f"), O.O_RDWR); '
            "errors(lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10), "
            "lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10))', 0, 0)",
            events=False,
        ),
        guest(
            "sh('flock -n f -c true; echo $?; exec 9>lockfile; flock 9; echo locked')", events=False
        ),
        guest(
            "fcntl.fcntl(a, fcntl.F_GETLEASE), errors(lambda: fcntl.fcntl(a, fcntl.F_SETSIG, 0))",
            events=False,
        ),
    ],
}

META: dict[str, Script] = {
    "attributes of the host's": [
        host("write('f', 'one'); mkdir('d')"),
        watch(".", "f", "d"),
        guest("look('f'), look('d')"),
        *(
            step
            for change in (
                "O.chmod(at('f'), 0o600)",
                "O.chmod(at('f'), 0o4755)",
                "O.chown(at('f'), 1000, 1001)",
                "O.chown(at('f'), 0, 0)",
                "O.utime(at('f'), ns=(123456789123456789, 987654321987654321))",
                "O.utime(at('f'), (-100000, -2000000000))",
                "O.utime(at('f'), (5000000000, 5000000000))",
                "O.setxattr(at('f'), 'user.a', b'1')",
                "O.setxattr(at('f'), 'user.a', b'22')",
                "O.removexattr(at('f'), 'user.a')",
                "O.chmod(at('d'), 0o1777)",
                "O.chmod(at('d'), 0o2755)",
            )
            for step in (
                host(change),
                guest(
                    "s = O.stat(at('f')); look('f'), look('d'), "
                    "0 if 1.7e9 < s.st_mtime < 1.9e9 else s.st_mtime_ns,"
                    "O.listxattr(at('f')), O.listxattr(at('d'))",
                ),
            )
        ),
    ],
    "attributes of the guest's": [
        guest("write('f', 'one'); mkdir('d')"),
        watch(".", "f", "d"),
        *(
            step
            for change in (
                "O.chmod(at('f'), 0o600)",
                "O.chmod(at('f'), 0o6755)",
                "O.chown(at('f'), 1000, 1001)",
                "O.utime(at('f'), ns=(123456789123456789, 987654321987654321))",
                "O.utime(at('f'), (-100000, -2000000000))",
                "O.utime(at('f'), (5000000000, 5000000000))",
                "O.setxattr(at('f'), 'user.a', b'1')",
                "errors(lambda: O.setxattr(at('f'), 'user.a', b'2', O.XATTR_CREATE), "
                "lambda: O.setxattr(at('f'), 'user.b', b'2', O.XATTR_REPLACE))",
                "O.removexattr(at('f'), 'user.a')",
                "O.setxattr(at('f'), 'user.' + 'n' * 250, bytes(1000))",
                "errors(lambda: O.setxattr(at('f'), 'user.' + 'n' * 251, b''), "
                "lambda: O.getxattr(at('f'), 'user.none'))",
            )
            for step in (
                guest(change),
                host(
                    "s = O.stat(at('f')); look('f'), look('d'), "
                    "0 if 1.7e9 < s.st_mtime < 1.9e9 else s.st_mtime_ns,"
                    "O.listxattr(at('f')), O.listxattr(at('d'))",
                    events=False,
                ),
            )
        ),
    ],
    "a directory's times": [
        host("mkdir('d'); O.utime(at('d'), (1, 2))"),
        watch("d"),
        guest("O.stat(at('d')).st_mtime"),
        host("write('d/new', '')"),
        guest("O.stat(at('d')).st_mtime > 1e9"),
        host("O.utime(at('d'), (1, 2))"),
        guest("O.stat(at('d')).st_mtime"),
        host("mv('d/new', 'd/newer')"),
        guest("O.stat(at('d')).st_mtime > 1e9"),
        host("O.utime(at('d'), (1, 2))"),
        guest("write('d/guest', '')"),
        host("O.stat(at('d')).st_mtime > 1e9", events=False),
        guest("O.stat(at('d')).st_mtime > 1e9"),
        host("O.utime(at('d'), (1, 2))"),
        guest("ls('d'), read('d/newer'), O.stat(at('d')).st_mtime"),
        host("O.stat(at('d')).st_mtime", events=False),
    ],
    "users and rights": [
        host(
            "O.chmod(base, 0o755); mkdir('mine', 0o700); write('mine/f', 'secret'); "
            "mkdir('theirs'); O.chown(at('theirs'), 1000, 1000); "
            "write('f', 'x', mode=0o600); write('g', 'x', mode=0o640); "
            "O.chown(at('g'), 0, 2000)",
            events=False,
        ),
        guest(
            'as_user(\'errors(lambda: read("f"), lambda: read("mine/f"), lambda: ls("mine"), '
            'lambda: write("new", ""), lambda: read("g"))\')'
        ),
        guest(
            'as_user(\'errors(lambda: read("g"), lambda: append("g", ""))\', 1000, 1000, [2000])'
        ),
        guest(
            'as_user(\'O.umask(0o027); write("theirs/f", "x", mode=0o666); '
            'mkdir("theirs/d", 0o777); symlink("f", "theirs/l"); '
            'O.mkfifo(at("theirs/p"), 0o666)\')'
        ),
        host("[look('theirs/' + n) for n in ('f', 'd', 'l', 'p')]"),
        guest(
            'as_user(\'errors(lambda: O.chmod(at("f"), 0o666), '
            'lambda: O.chown(at("theirs/f"), 0, 0), lambda: rm("f"), '
            'lambda: rm("theirs/p"))\')'
        ),
        host("O.chmod(at('f'), 0o644)"),
        guest("as_user('errors(lambda: read(\"f\"))')", events=False),
        host(
            "O.chmod(at('theirs'), 0o3777); O.chown(at('theirs'), 0, 2000); "
            "write('theirs/root', '')",
            events=False,
        ),
        guest(
            'as_user(\'errors(lambda: rm("theirs/root"), lambda: mv("theirs/root", '
            '"theirs/r"), lambda: rm("theirs/l"))\')',
            events=False,
        ),
        guest('as_user(\'write("theirs/inherits", ""); mkdir("theirs/sub")\')'),
        host("look('theirs/inherits'), look('theirs/sub')"),
        guest(
            "as_user('errors(lambda: O.mknod(at(\"theirs/dev\"), 0o20666, O.makedev(1, 3)))')",
            events=False,
        ),
    ],
    "ACLs": [
        host("mkdir('d'); write('f', 'x', mode=0o600)", events=False),
        watch("d", "f"),
        guest("look('f')"),
        host(
            "sh('setfacl -m u:1000:r f && setfacl -d -m u:1000:rwx,g:2000:rx d')[0]", events=False
        ),
        guest(
            "sh('getfacl -cn f d'), as_user('errors(lambda: read(\"f\"))'), look('f')", events=False
        ),
        guest(
            "O.umask(0o077); write('d/new', 'x', mode=0o666); mkdir('d/sub'); "
            "O.umask(0o022); sh('getfacl -cn d/new d/sub')",
            events=False,
        ),
        host("sh('getfacl -cn d/new d/sub')", events=False),
        guest("sh('setfacl -m u:1001:rw f && setfacl -x u:1000 f; getfacl -cn f')", events=False),
        host("sh('getfacl -cn f')", events=False),
        guest(
            'as_user(\'errors(lambda: read("f"))\'), as_user(\'errors(lambda: append("f", '
            '"y"))\', 1001)',
            events=False,
        ),
        guest("O.chmod(at('f'), 0o640); sh('getfacl -cn f')", events=False),
        guest("sh('setfacl -b f; setfacl -k d; getfacl -cn f d')", events=False),
        host("sh('getfacl -cn f d')", events=False),
    ],
    "the file system": [
        guest(
            "s = O.statvfs(base); s.f_namemax, s.f_bsize > 0, s.f_blocks > s.f_bavail > 0, "
            "s.f_files >= s.f_ffree",
            events=False,
        ),
        guest("O.pathconf(base, 'PC_NAME_MAX'), O.pathconf(base, 'PC_PATH_MAX')", events=False),
        guest(
            "sh('df . >/dev/null && stat -f . > /dev/null; sync -f .; sync .; echo $?')",
            events=False,
        ),
    ],
}

SPECIAL: dict[str, Script] = {
    "sockets and fifos": [
        watch(),
        host("O.mkfifo(at('p'))"),
        guest("look('p')"),
        host(
            "s = socket.socket(socket.AF_UNIX); O.chdir(base); s.bind('s'); O.chdir('/'); "
            "s.listen()"
        ),
        guest("oct(O.lstat(at('s')).st_mode & 0o170000)"),
        guest(
            "O.chdir(base); g = socket.socket(socket.AF_UNIX); g.bind('g'); g.listen(); "
            "c = socket.socket(socket.AF_UNIX); c.connect('g'); O.chdir('/'); "
            "c.sendall(b'hello'); g.accept()[0].recv(9)"
        ),
        guest("sh('mkfifo gp; (echo hello > gp &) ; timeout 5 cat gp')"),
        host("sh('ls -l g gp | cut -c1')"),
        guest("sh('rm g gp p s')[0]"),
        host("ls()"),
    ],
    "devices": [
        guest("O.mknod(at('null'), 0o20666, O.makedev(1, 3)); O.chmod(at('null'), 0o666)"),
        host("s = O.lstat(at('null')); oct(s.st_mode), O.major(s.st_rdev), O.minor(s.st_rdev)"),
        guest("write('null', 'x'), read('null')"),
        guest("rm('null')"),
    ],
    "bind mounts": [
        host("O.makedirs(at('dir/sub')); write('dir/sub/f', 'one'); write('conf', 'one')"),
        guest(
            "sh('mkdir -p /run/two/$$; "
            "mount --bind dir/sub marks/../dir/sub && umount dir/sub')[0]",
            events=False,
        ),
        watch("dir/sub", "conf"),
        guest(
            "mount_point = '/tmp/two-sides-bind'; "
            "subprocess.run(['sh', '-c', f'mkdir -p {mount_point}; touch {mount_point}.f; "
            "mount --bind {base}/dir/sub {mount_point}; "
            "mount --bind {base}/conf {mount_point}.f']).returncode",
            events=False,
        ),
        host("append('conf', ' two')"),
        guest("open(mount_point + '.f').read()"),
        host("append('dir/sub/f', ' two')"),
        guest("open(mount_point + '/f').read()"),
        guest("open(mount_point + '/g', 'w').write('of the guest')"),
        host("read('dir/sub/g')"),
        guest(
            "subprocess.run(['umount', mount_point, mount_point + '.f']).returncode, "
            "os.rmdir(mount_point), os.unlink(mount_point + '.f')",
            events=False,
        ),
        host("write('dir/sub/h', '')"),
        guest("ls('dir/sub')"),
    ],
}

INOTIFY: dict[str, Script] = {
    "flags of a watch": [
        host("mkdir('d'); write('f', ''); symlink('d', 'l')"),
        watch("d", mask=int(In.CREATE)),
        watch("d", mask=int(In.DELETE | In.MASK_ADD)),
        watch("d", mask=int(In.CREATE | In.MASK_CREATE)),
        watch("f", mask=int(In.ALL | In.ONLYDIR)),
        watch("l", mask=int(In.ALL | In.DONT_FOLLOW | In.ONLYDIR)),
        watch("none", "f/none", "d/none"),
        host("write('d/x', '')"),
        host("rm('d/x')"),
        watch("d", mask=int(In.MODIFY)),
        host("write('d/y', '1')"),
        host("append('d/y', '1')"),
        watch("f", mask=int(In.MODIFY | In.ONESHOT)),
        host("append('f', '1')"),
        host("append('f', '1')"),
        watch("f", mask=int(In.CLOSE_WRITE)),
        host("append('f', '1')"),
        guest("append('f', '2')"),
    ],
    "a watch of a file by its names": [
        host("write('f', ''); ln('f', 'g')"),
        watch("f", "g"),
        host("append('f', '1')"),
        host("append('g', '1')"),
        host("rm('f')"),
        host("append('g', '1')"),
        host("mv('g', 'h')"),
        guest("append('h', '2')"),
    ],
    "what the guest does itself": [
        watch(),
        guest("write('f', '1')"),
        guest("append('f', '2')"),
        guest("read('f')"),
        guest("O.chmod(at('f'), 0o600)"),
        guest("mkdir('d')"),
        watch("d"),
        guest("mv('f', 'd/f')"),
        guest("ln('d/f', 'g')"),
        guest("rm('d/f')"),
        guest("O.truncate(at('g'), 1)"),
        guest("symlink('g', 'l')"),
        guest("rm('l')"),
        guest("rmdir('d')"),
        guest("rm('g')"),
    ],
    "new trees, as a recursive watcher sees them": [
        watch(),
        host("O.makedirs(at('t/a/b'))"),
        watch("t"),
        guest("ls('t')"),
        watch("t/a"),
        host("write('t/a/f', '1')"),
        guest("tree('t')"),
        watch("t/a/b"),
        host("[write(f't/a/b/{n}', '') for n in range(20)]", events=False),
        guest("len(ls('t/a/b'))"),
        host("mv('t', 'u')"),
        host("write('u/a/b/late', '')"),
        guest("'late'.encode() in ls('u/a/b')"),
    ],
    "moved out and in": [
        host("mkdir('d'); write('d/f', '1'); write('f', '1')"),
        watch(".", "f"),
        guest("tree()"),
        host("O.rename(at('f'), outside('f'))"),
        guest("there('f'), ls()"),
        host("O.rename(outside('f'), at('f'))", events=False),
        guest("look('f'), ls()"),
        host("O.rename(at('d'), outside('d'))", events=False),
        guest("there('d'), there('d/f')"),
        host("O.rename(outside('d'), at('d'))", events=False),
        guest("tree()"),
    ],
}

TOOLS: dict[str, Script] = {
    "git": [
        host(
            "sh('git init -q . && git config user.email a@b && git config user.name n && "
            "for i in 1 2 3 4 5; do echo $i > f$i; "
            "done && mkdir d && echo x > d/x && printf marks > .gitignore && git add -A && "
            "git commit -qm one && git checkout -qb other && echo changed > f1 && "
            "git rm -qr d && git commit -qam two')[0]",
            events=False,
        ),
        watch(),
        guest(
            "sh('git status --porcelain; git log --oneline | wc -l')",
            events=False,
        ),
        host("sh('git checkout -q -')", events=False),
        guest("sh('git status --porcelain'), tree('d'), read('f1')", events=False),
        guest("sh('git checkout -q other; git status --porcelain')", events=False),
        host("sh('git status --porcelain'), there('d'), read('f1')", events=False),
        guest(
            "sh('echo more > g && git add g && git commit -qm three && git gc -q && "
            "git fsck 2>&1')",
            events=False,
        ),
        host(
            "sh('git fsck 2>&1; git status --porcelain; git log --oneline | wc -l')", events=False
        ),
    ],
    "tar, rsync, cp, find": [
        host(
            "O.makedirs(at('src/a/b')); "
            "[write(f'src/a/b/{n}', str(n) * n, mode=0o444) for n in range(40)]; "
            "symlink('a', 'src/l'); ln('src/a/b/1', 'src/hard')",
            events=False,
        ),
        watch("src"),
        guest(
            "sh('tar cf t.tar src && mkdir x && tar xpf t.tar -C x 2>/dev/null && "
            "diff -r src x/src && cp -a src y && diff -r src y; find src | wc -l')",
            events=False,
        ),
        host(
            "sh('diff -r src x/src; diff -r src y; find x/src -links 2 -type f | wc -l; "
            "rm -r x; find . -path ./marks -prune -o -print | wc -l')",
            events=False,
        ),
        guest(
            "sh('find y src | wc -l; ls x 2>/dev/null; du -s --apparent-size src/a/b/9 | cut -f1')",
            events=False,
        ),
        host("sh('cp -a y z && rm -r y')", events=False),
        guest("sh('diff -r src z; ls')", events=False),
    ],
    "SQLite": [
        guest(
            "import sqlite3; c = sqlite3.connect(at('db').decode(), "
            "check_same_thread=False); c.execute('create table t (x)'); "
            "c.executemany('insert into t values (?)', [(n,) for n in range(500)]); "
            "c.commit(); c.close()",
            events=False,
        ),
        host(
            "import sqlite3; c = sqlite3.connect(at('db').decode(), "
            "check_same_thread=False); c.execute('select count(*), sum(x) from t').fetchone()",
            events=False,
        ),
        watch(".", "db"),
        guest(
            "c = sqlite3.connect(at('db').decode(), check_same_thread=False); "
            "c.execute('select count(*) from t').fetchone()",
            events=False,
        ),
        host("c.execute('insert into t values (7)'); c.commit(); c.close()", events=False),
        guest(
            "c.execute('select count(*) from t').fetchone(), "
            "c.execute('pragma integrity_check').fetchone(), c.close()",
            events=False,
        ),
        guest(
            "c = sqlite3.connect(at('wal').decode()); "
            "c.execute('pragma journal_mode=wal').fetchone(), "
            "c.execute('create table t (x)') and 1, c.commit(), c.close()",
            events=False,
        ),
    ],
    "logs that are rotated": [
        host("write('log', '0\\n')"),
        watch(".", "log"),
        guest("fd = opened('log'); O.read(fd, 99)", events=False),
        host("append('log', '1\\n')"),
        guest("O.read(fd, 99)", events=False),
        host("mv('log', 'log.1')"),
        host("write('log', '2\\n')"),
        guest("O.read(fd, 99), read('log'), ls()", events=False),
        host("append('log.1', 'late\\n')"),
        guest("O.read(fd, 99)", events=False),
        host("write('log', '')", events=False),
        guest("read('log'), O.stat(at('log')).st_size", events=False),
        host("append('log', '3\\n')", events=False),
        guest("read('log')", events=False),
        host("write('b', '5\\n'); ln('b', 'now'); mv('now', 'log')", events=False),
        host("append('b', '6\\n')", events=False),
        guest("read('log'), look('b')", events=False),
    ],
}

GROUPS = {
    "saved": ATOMIC_SAVES,
    "names": NAMES,
    "links": LINKS,
    "made again": MADE_AGAIN,
    "open files": OPEN_FILES,
    "attributes": META,
    "special": SPECIAL,
    "inotify": INOTIFY,
    "tools": TOOLS,
}
SCRIPTS = {
    f"{group}, {name}": script
    for group, scripts in GROUPS.items()
    for name, script in scripts.items()
}


#: For a second an unwatched name leads to what it led to before: docs/modes.md.
BY_CACHED_NAME = {
    f"made again, {what}"
    for what in ("in a directory that moved", "chdir", "list", "list of what was replaced")
}
#: Without cached names an open file's own does not follow a rename: docs/modes.md.
BY_KEPT_NAME = {"open files, renamed by the host"}


def check(guest: Guest, share: Share, reference: Path, name: str) -> None:
    found = compare_two_sides(guest, share, reference, SCRIPTS[name])
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name", [name for name in SCRIPTS if name not in BY_CACHED_NAME | BY_KEPT_NAME]
)
def test_share_is_used_as_a_local_directory_is(
    guest: Guest, share: Share, tmp_path: Path, name: str
) -> None:
    check(guest, share, tmp_path, name)


@pytest.mark.parametrize("shared_vms", ["auto"], indirect=True)
@pytest.mark.parametrize("name", sorted(BY_KEPT_NAME))
def test_share_with_cached_names_is_used_as_a_local_directory_is(
    guest: Guest, share: Share, tmp_path: Path, name: str
) -> None:
    check(guest, share, tmp_path, name)


@pytest.mark.parametrize("shared_vms", ["never"], indirect=True)
@pytest.mark.parametrize("name", sorted(BY_CACHED_NAME))
def test_share_without_cached_names_is_used_as_a_local_directory_is(
    guest: Guest, share: Share, tmp_path: Path, name: str
) -> None:
    check(guest, share, tmp_path, name)
