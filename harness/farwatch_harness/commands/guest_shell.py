# SPDX-License-Identifier: Apache-2.0
"""`make boot`: a shell in a guest that has mounted the share."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from farwatch_harness.util import paths
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import socket_folder, vng_command, vng_program
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.testbed import (
    MOUNT_POINT,
    TAG,
    bind_module,
    daemon_argv,
    file_system_of,
    vm_spec,
)
from farwatch_harness.vm.virtiofs_daemon import Daemon

SHELL = f"""#!/bin/sh
mkdir -p {MOUNT_POINT}
{{prepare}}
mount -t {{file_system}} {TAG} {MOUNT_POINT} || echo "the share could not be mounted"
cd {MOUNT_POINT} || cd /
cat <<'END'

{{welcome}}
END
exec bash -i
"""


def welcome(share: Path) -> str:
    """Return the text that the user sees before the first prompt."""
    return (
        f"This is the guest. The share is here: {MOUNT_POINT}\n"
        f"On the host it is: {share}\n"
        "Try here:        inotifywait -m -r .\n"
        f"and on the host: touch {shlex.quote(str(share))}/something\n"
        "End with exit or Ctrl-D."
    )


def shell(environment: Environment) -> int:
    """Boot the guest with a shell on this terminal; return the shell's exit status."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise HarnessError("make boot gives a shell in the guest: run it on a terminal")
    sockets = socket_folder()
    with tempfile.TemporaryDirectory(prefix="farwatch-share-") as name:
        share = Path(name)
        spec = environment.testbed_spec("boot", share)
        daemon = Daemon.start(daemon_argv(spec, sockets / "fs"), paths.LOGS / "boot-daemon.log")
        try:
            script = sockets / "shell"
            module = environment.module
            script.write_text(
                SHELL.format(
                    welcome=welcome(share),
                    prepare=f"({bind_module(module)})" if module else "",
                    file_system=file_system_of(module),
                )
            )
            script.chmod(0o755)
            program = vng_program()
            command = [*vng_command(vm_spec(spec, sockets), program, None), f"--shell={script}"]
            path = f"{program.parent}:{os.environ.get('PATH', os.defpath)}"
            return subprocess.run(
                command, cwd="/", env={**os.environ, "PATH": path}, check=False
            ).returncode
        finally:
            daemon.stop()
            shutil.rmtree(sockets, ignore_errors=True)
