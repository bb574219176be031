"""The same function in other axes of the residual stream, in which no channel stands out."""
