"""Hosted models: providers asked over HTTP."""
