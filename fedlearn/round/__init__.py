"""What holder and coordinator derive alike, and the two halves of a round."""
