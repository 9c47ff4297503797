"""The routers of a workspace: trained, gated, explained, watched."""
