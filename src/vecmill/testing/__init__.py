"""For our tests and yours: a provider that costs nothing and shows every mix-up."""
