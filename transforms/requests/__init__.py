"""From records to batches of model requests: templates, rendering, order, batching."""
