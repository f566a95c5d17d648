"""Serving: one model, many requests: an engine that shares network calls, its HTTP interface and its page."""
