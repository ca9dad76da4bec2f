"""Templates: what sandboxes start from, how they are made, where they are ready, and whether they still fit."""
