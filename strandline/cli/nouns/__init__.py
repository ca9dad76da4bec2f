"""One module per noun, each with a typer application ``app``; ``strandline.cli.main`` loads the one that is asked for."""
