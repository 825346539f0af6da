# SPDX-License-Identifier: Apache-2.0
"""Assertions of the helper modules explain themselves."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("observe", "live")
