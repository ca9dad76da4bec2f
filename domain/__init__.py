"""Facts and rules. No I/O, no clock, no NATS: time and ids come in with the command."""
