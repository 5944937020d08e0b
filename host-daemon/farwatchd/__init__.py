# SPDX-License-Identifier: Apache-2.0
"""farwatchd: a virtio-fs daemon that tells its guest about changes on the host."""
