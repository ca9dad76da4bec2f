"""The only code that speaks NATS: connection, streams, event store, subscriptions, commands, queries, lanes, timers, leases, objects."""
