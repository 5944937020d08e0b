# SPDX-License-Identifier: Apache-2.0
"""Live migration: the session goes on with another daemon, which the front-end passes the state to.

- ``options``: virtiofsd's options of it
- ``source``: makes the state of a stopped session
- ``path_search``: finds inodes that no path is known of, in the whole share
- ``destination``: makes the session of a state
- ``migrated_session``: both, as the transfer sees them
"""
