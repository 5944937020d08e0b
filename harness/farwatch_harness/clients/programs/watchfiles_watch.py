# SPDX-License-Identifier: Apache-2.0
"""watchfiles_watch.py DIRECTORY: print what watchfiles reports (the notify crate of Rust)."""

import sys

from watchfiles import watch

# Yields an empty set after each timeout: then it watches.
ready = False
for changes in watch(sys.argv[1], rust_timeout=500, yield_on_timeout=True, debounce=200):
    if not ready:
        print("READY", flush=True)
        ready = True
    for change, path in sorted(changes):
        print(change.name, path, flush=True)
