"""Results to what people read: tables for the terminal."""
