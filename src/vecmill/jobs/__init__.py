"""Durable runs: plan, windows, publish, receipt, verify."""
