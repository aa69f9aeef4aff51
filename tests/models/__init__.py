"""The sweep over real architectures: `make test-models`."""
