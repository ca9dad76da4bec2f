"""Views: what operators can ask of them. What they show is made in ``projections/``."""
