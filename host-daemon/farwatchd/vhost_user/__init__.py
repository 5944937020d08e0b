# SPDX-License-Identifier: Apache-2.0
"""A vhost-user back-end (QEMU, docs/interop/vhost-user.rst); knows nothing of the device behind it.

- ``server``: listens, and serves one front-end at a time
- ``connection``: reads messages and their descriptors from one front-end, writes replies
- ``messages``: framing, without I/O
- ``backend``: what each message does to features, memory and rings
- ``vring``: one ring: its settings, its descriptors, running or not
- ``reserve``: descriptors that are kept free for messages and connections
"""
