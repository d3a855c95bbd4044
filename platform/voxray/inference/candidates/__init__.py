"""Candidates: what a network said before its answer was merged, kept, found again and merged anew."""
