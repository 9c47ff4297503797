"""What people judge: blind tasks of experts, and the review queue."""
