# SPDX-License-Identifier: Apache-2.0
"""The vhost-user back end: messages, the state they lead to, and the virtio-fs device that serves
the rings.

- ``server``: listens, one front end at a time
- ``connection``: bytes and descriptors of one front end become messages, replies go back
- ``messages``: framing, without I/O
- ``backend``: what each message does to features, memory and rings
- ``regions``: the guest's memory, mapped
- ``vring``: one ring: its settings, its descriptors, running or not
- ``device``: what happens on the rings: requests to the file system, notifications from it
"""
