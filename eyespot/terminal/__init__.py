"""What the command line reads and shows: arguments, pages, the progress line. No torch in here."""
