"""The command line: one file per command, with only argument handling and printing."""
