"""Facts about a model, measured or computed; nothing here changes it."""
