"""Which Hartbeat this is."""

VERSION = "0.1.0"
