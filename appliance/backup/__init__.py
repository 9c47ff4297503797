"""Copies of a workspace, and the way back."""
