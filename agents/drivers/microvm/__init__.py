"""QEMU microVMs, the parts of the ``vm`` driver (``agents.drivers.vm``): command line, monitor, guest channel, memories."""
