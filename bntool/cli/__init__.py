"""One file a command: parse, call the verb, render. The only place that imports typer or rich."""
