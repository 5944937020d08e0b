# SPDX-License-Identifier: Apache-2.0
"""Hand a session over from a running daemon to its successor (``farwatchd --replace``).

- ``channel``: messages with descriptors between the two
- ``predecessor``: the running daemon's side
- ``successor``: the new daemon's side
- ``parts``: gathers the state of the daemon's parts, and restores it
"""
