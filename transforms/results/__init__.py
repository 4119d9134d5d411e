"""From answers to rows: columns, validation, prices."""
