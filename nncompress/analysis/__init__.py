"""Facts about a model, measured or computed; but for removal and repair, nothing here changes it."""
