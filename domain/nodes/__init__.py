"""Nodes: the machines that run sandboxes, and what they are told and what they answer."""
