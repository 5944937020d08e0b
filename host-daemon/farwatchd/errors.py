# SPDX-License-Identifier: Apache-2.0
"""The error that ends the command."""


class UserError(Exception):
    """The daemon cannot serve as it was asked to. The text is one line: what is wrong and what to
    do."""
