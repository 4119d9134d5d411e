"""Every figure in the documentation, each reproducible by one command."""
