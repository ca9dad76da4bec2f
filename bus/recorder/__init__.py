"""JetStream as a persistence module of the ``eventsourcing`` library: ``PERSISTENCE_MODULE=bus.recorder``.

For applications, projections and scripts that are written with the library itself. The control plane does not use it: the library is
synchronous, and a request path must not block (reference/jetstream-eventstore.md §2.4).

Environment: ``NATS_URL``, ``NATS_CREDS`` (a file, optional), ``NATS_STREAM`` (a prefix, optional), ``NATS_REPLICAS`` (1 or 3).
"""

from bus.recorder.factory import JetStreamFactory

__all__ = ["JetStreamFactory"]
