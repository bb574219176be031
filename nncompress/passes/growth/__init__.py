"""Parts of `grow` that measure."""
