"""Results to what people read: tables for the terminal, pages and Markdown of what runs left behind."""
