"""Who may do what to a running appliance, and the record of it."""
