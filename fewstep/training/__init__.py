"""Training: recipes, the loop, the moving average and checkpoints that resume bit for bit."""
