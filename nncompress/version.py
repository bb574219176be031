"""The one place that says it; `pip` and every record of a run read it here."""

__version__ = "0.1.0"
