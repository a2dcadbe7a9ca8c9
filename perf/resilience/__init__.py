"""What a served cascade does while something beside it changes, slows down or breaks."""
