"""Model servers the pipeline can call: `base` is the contract, every other module a backend."""
