"""What touches a host: the node's lane, journal, drivers, images, storage and network."""
