"""Denoisers: a network with its process, and closed forms that are exact."""
