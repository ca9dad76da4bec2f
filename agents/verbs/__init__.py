"""What a node does for each verb of ``domain.nodes.orders``: one function per verb, one module per group."""
