"""The host underneath: system calls, processes, cgroups, children. Knows nothing of sandboxes, drivers or the bus."""
