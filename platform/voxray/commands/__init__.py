"""What the verbs do: one function per verb, which prints nothing itself and returns a report."""
