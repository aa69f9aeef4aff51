"""What happens when something fails or many come at once: `make test-faults`.

Not part of `make test`: files here are named `faults_*.py`, which only that command collects.
"""
