# SPDX-License-Identifier: Apache-2.0
"""The harness's errors: the message of each is the line that the user sees."""


class HarnessError(Exception):
    """An error that the user can correct: one line says what is wrong and what to do."""


class GuestLostError(HarnessError):
    """The guest crashed, hung or disconnected; the message ends with the path of its console."""
