"""Adapter versions: the registry, what they must pass to go live, their trial, and what of them has gone stale."""
