"""The parts of scripts/bench: what is measured, how it is built and run, and how results are compared and shown."""
