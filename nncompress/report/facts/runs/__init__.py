"""What each kind of run says, a file per command."""
