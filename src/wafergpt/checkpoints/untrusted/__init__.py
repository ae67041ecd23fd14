"""Reading files nobody vouches for: every length, name and number is checked before it is used."""
