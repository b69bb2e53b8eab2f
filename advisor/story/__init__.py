"""The steps of an answer: what is asked and given, what is worth pricing and trying, and that it runs."""
