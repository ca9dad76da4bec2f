"""``python -m strandline.cli``."""

from strandline.cli.main import main

main()
