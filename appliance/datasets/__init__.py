"""Registered data sets: their checks, and pairs drafted from documents and feedback."""
