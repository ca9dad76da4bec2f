"""JetStream as a persistence module of the ``eventsourcing`` library: ``PERSISTENCE_MODULE=bus.recorder``.

For applications, projections and scripts that are written with the library itself. The control plane does not use it: the library is
synchronous, and a request path must not block (reference/jetstream-eventstore.md §2.4).

Environment: ``NATS_URL`` (``tls://…`` for TLS), ``NATS_CREDS`` (a file, optional), ``NATS_CA`` (a file with the certificates to believe the
server by, optional), ``NATS_STREAM`` (the stream's name; by default the application's), ``NATS_REPLICAS`` (1 or 3). A stream that exists
with fewer replicas gets more; one with other settings that cannot be changed is refused with ``OperationalError``.
"""

from bus.recorder.factory import JetStreamFactory

__all__ = ["JetStreamFactory"]
