"""What waits and decides: command handlers, process managers, the fleet index they place by, and the control plane that runs them."""
