# SPDX-License-Identifier: Apache-2.0
"""What a file system has to do: cases whose outcomes are compared between file systems. Standard
library only."""
