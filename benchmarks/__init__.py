"""The project's benchmarks: what `make bench` and `make gpu` time. Not part of the package."""
