"""Other people's names and numbers, thinly: for those who come from there and want the same results."""
