"""The step that calls the model, and a `ModelHandler` for Beam's RunInference."""
