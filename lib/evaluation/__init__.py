"""Evaluation items, checkers and judge, and the measures built on them."""
