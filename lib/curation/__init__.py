"""Phase 0: from raw sources to one curated set."""
