"""For our tests and yours: `Embedder(provider=FakeProvider())` costs nothing and shows every mix-up."""

from vecmill.testing.fakes import FakeProvider, fake_vector

__all__ = ["FakeProvider", "fake_vector"]
