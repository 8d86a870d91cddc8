"""For our tests and yours: a provider that costs nothing and shows every mix-up.

    from vecmill.testing import FakeProvider

    embedder = vecmill.Embedder(provider=FakeProvider(dimensions=16))
"""

from vecmill.testing.fakes import FakeProvider, fake_vector

__all__ = ["FakeProvider", "fake_vector"]
