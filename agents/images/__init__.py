"""Images become ext4 files: the pipeline behind ``image-resolve``, ``artifact-build`` and ``sandbox-commit``."""

from agents.images.egress_ca import fingerprint
from agents.images.faults import ImageFault
from agents.images.options import Auth, BuildLimits, Trust
from agents.images.pack import Packed, pack
from agents.images.pipeline import Built, Resolved, build, resolve, sweep

__all__ = ["Auth", "BuildLimits", "Built", "ImageFault", "Packed", "Resolved", "Trust", "build", "fingerprint", "pack", "resolve", "sweep"]
