"""The command line: one thin module per verb; heavy imports happen inside the command."""
