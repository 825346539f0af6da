# SPDX-License-Identifier: Apache-2.0
"""The version, kept equal to meson.build by a test."""

__version__ = "0.1.0"
