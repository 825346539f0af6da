# SPDX-License-Identifier: Apache-2.0
"""Reports from captures: one module per output, each returns text and never prints."""
