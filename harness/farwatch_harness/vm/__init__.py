# SPDX-License-Identifier: Apache-2.0
"""The virtual machine: QEMU, boot, console, guest client, daemon."""
