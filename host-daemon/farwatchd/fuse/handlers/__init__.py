# SPDX-License-Identifier: Apache-2.0
"""Request handlers: decode one request, call the file system, encode the reply."""
