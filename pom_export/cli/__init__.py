"""The command line: one command a file, nothing but argument handling and printing."""
