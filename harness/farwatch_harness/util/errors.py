# SPDX-License-Identifier: Apache-2.0
"""The harness's own errors: each carries the one line that its user gets to see."""


class HarnessError(Exception):
    """Something the user can do something about; the message is one line that says what is wrong
    and what to do."""


class GuestLostError(HarnessError):
    """The guest crashed, hung or went away; the message ends with where its console log is."""
