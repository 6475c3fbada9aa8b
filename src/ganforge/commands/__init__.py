"""What each entry point does."""
