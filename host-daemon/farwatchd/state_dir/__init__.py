# SPDX-License-Identifier: Apache-2.0
"""Keeps a session's state in files, so that it outlives its process (``--state-dir``).

- ``directory``: the directory, its lock, its files
- ``journal_files``: the journal's bytes on disk
- ``in_flight``: which chains are in flight, and what is being changed, in shared memory
- ``journal_writer``: writes what each request has changed
- ``contents``: reads a journal
- ``saved_session``: puts these together
- ``recovery``: makes the session of what a journal has
- ``replay``: serves a request again that may have been done
"""
