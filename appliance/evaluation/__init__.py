"""Runs of every arm over a question set, through the code that serves."""
