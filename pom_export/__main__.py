"""`python -m pom_export` is `pom-export`."""

from pom_export.cli.main import main

main()
