"""Tables in and out: sources, readers, frames, writers, vector sets."""
