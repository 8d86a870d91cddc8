"""The embedding mill for Python."""
