# SPDX-License-Identifier: Apache-2.0
"""The virtio-fs device: request queues, the notification queue, deferred replies."""
