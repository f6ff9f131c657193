"""The command line; holds no logic of its own."""
