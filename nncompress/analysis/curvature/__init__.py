"""How much the outputs or the loss mind an error: gradients, Gauss-Newton, Fisher."""
