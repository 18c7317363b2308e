"""Exact counts: sites, sync chains, totals, and snapshots of them."""
