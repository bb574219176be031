"""What a written file computes and where its layers run, asked of its runtime."""
