"""How the command line becomes a config."""
