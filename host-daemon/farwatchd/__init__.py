# SPDX-License-Identifier: Apache-2.0
"""farwatchd: a virtio-fs daemon that reports changes on the host to its guest."""
