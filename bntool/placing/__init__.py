"""Where norms can go in a model, with what state, and the proof that nothing moved."""
