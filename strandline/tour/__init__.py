"""``strandline demo``: the main job from end to end, each step saying what it does and which subject it used."""
