"""What is learned, a room each."""
