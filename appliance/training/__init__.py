"""From pairs or documents to a version."""
