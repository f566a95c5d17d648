"""Find the plan of few evaluations that suits a model best."""
