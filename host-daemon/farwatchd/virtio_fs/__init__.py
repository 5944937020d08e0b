# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device behind the vhost-user back-end (Virtio 1.2, 5.11).

- ``device``: serves the queues: requests to the FUSE session, notifications to the driver
- ``deferred``: the chains of requests whose replies are sent later
- ``busy_poll``: decides when to poll a queue instead of sleeping until a kick
- ``headers``: FUSE headers that the device writes itself
- ``interfaces``: what the device expects of the FUSE session and of the source of notifications
"""
