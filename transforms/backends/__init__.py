"""Model servers the pipeline can ask: `base` is the contract, every other module one backend."""
