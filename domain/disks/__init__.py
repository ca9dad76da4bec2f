"""Disks: what outlives the sandboxes that it is mounted in, and who may write to it."""
