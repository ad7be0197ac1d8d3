"""Run `pom-export` as `python -m pom_export`."""

from pom_export.cli.main import main

main()
