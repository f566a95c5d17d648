"""What is measured, restored: samples of p(x | y) for a model and a measurement `y = A(x) + noise`."""
