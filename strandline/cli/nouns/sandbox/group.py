"""The typer application that the commands of ``strandline sandbox`` enter."""

import typer

app = typer.Typer(help="Isolated workloads: create, use, freeze, multiply, end.", no_args_is_help=True)
