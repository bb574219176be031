"""One file per kind of data source that `--data` takes."""
