# SPDX-License-Identifier: Apache-2.0
"""watchdog_watch.py DIRECTORY: print what watchdog reports."""

import sys
import threading

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer


class Printer(FileSystemEventHandler):
    """Prints each event."""

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Print the event."""
        print(event.event_type, event.src_path, event.dest_path, flush=True)


observer = Observer()
observer.schedule(Printer(), sys.argv[1], recursive=True)
observer.start()
print("READY", flush=True)
threading.Event().wait()
