"""What commands leave behind, as one record: what a report says, whatever its format."""
