"""Answers and truth from files of many forms, and what they are scored to."""
