"""Commands that train: a model and its data come in, a trained model goes out."""
