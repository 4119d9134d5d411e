"""The flags: one module per group has the flags and the types they are parsed into."""
