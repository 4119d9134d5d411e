"""The flags: one module per group holds the flags and what they are parsed into."""
