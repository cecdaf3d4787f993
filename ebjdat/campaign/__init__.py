"""Many runs of the same stages over other parameters: seeds, readings, whole tables of a budget."""
