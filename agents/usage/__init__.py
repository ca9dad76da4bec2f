"""What sandboxes use of this node: sampled, kept over the agent's end, told to the bus and to Prometheus."""
