"""The command line: noun, verb, machine output for everything, documented exit codes (reference/user-experience.md §3.1)."""
