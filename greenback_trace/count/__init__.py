"""What happened, exactly: sites, counts, totals, and a snapshot of these."""
