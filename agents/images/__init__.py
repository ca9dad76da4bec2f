"""Images become ext4 files: the pipeline behind ``image-resolve`` and ``artifact-build``."""

from agents.images.egress_ca import fingerprint
from agents.images.faults import ImageFault
from agents.images.options import Auth, BuildLimits, Trust
from agents.images.pipeline import Built, Resolved, build, resolve, sweep

__all__ = ["Auth", "BuildLimits", "Built", "ImageFault", "Resolved", "Trust", "build", "fingerprint", "resolve", "sweep"]
