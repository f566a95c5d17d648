"""Distillation: students of few evaluations, held to their teacher's exact flow."""
