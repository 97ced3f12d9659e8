# SPDX-License-Identifier: MIT
"""Loads the app, configures it, registers the plugins, and checks that the node can start."""
