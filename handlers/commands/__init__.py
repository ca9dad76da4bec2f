"""One module per noun: what each command does. A handler parses nothing and decides nothing; it names the aggregate and its method."""
