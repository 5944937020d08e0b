# SPDX-License-Identifier: Apache-2.0
"""The oracle: the same script on the share and on a native file system, and the comparison."""
