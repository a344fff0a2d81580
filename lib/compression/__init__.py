"""Phase 2: smaller models, measured in bytes on disk and in what they still answer."""
