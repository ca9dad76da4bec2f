"""Disks on this node: files with a file system of their own, or plain directories; mounted for one sandbox at a time."""
