"""What nodes say, turned into what aggregates record: one module per context, one function per verb."""
