"""The knowledge base: into it, out of it, and what a deletion reaches."""
