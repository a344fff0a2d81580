"""Phase 1C: a pool of questions, what the model fails at, and targeted examples from a teacher."""
