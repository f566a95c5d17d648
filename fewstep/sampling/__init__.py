"""Solvers, each written as its paper writes it and traced to a Plan."""
