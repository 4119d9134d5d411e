"""The application: command line, options, configuration, wiring."""

VERSION = "0.1.0"
