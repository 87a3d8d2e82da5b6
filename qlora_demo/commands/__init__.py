"""The command line's commands, each beside its arguments, and what they share."""
