"""Random Python programs with random marks against eager: `make fuzz N=...`."""
