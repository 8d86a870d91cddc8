"""What every other part stands on: errors, records, arithmetic, durable files, settings."""
