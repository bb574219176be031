"""The same function in other axes of the residual stream: those in which no channel stands out, or its
principal ones."""
