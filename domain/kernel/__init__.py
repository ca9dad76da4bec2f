"""What every aggregate shares: ids, refusals, events, lifecycle tables, commands and the registry of wire names."""
