"""Sandboxes: one run of an isolated workload, and the saga that brings it up or leaves nothing behind."""
