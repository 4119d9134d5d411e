"""The step that calls the model, and the handler for anybody's RunInference."""
