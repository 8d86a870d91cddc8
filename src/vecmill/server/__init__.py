"""Serve models over HTTP as OpenAI does; see `create_app` in `server.app` and `vecmill serve`."""
