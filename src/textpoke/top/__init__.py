# SPDX-License-Identifier: Apache-2.0
"""The live screen: a model of rates and histories, what is shown of it, a source, a screen."""
