"""For our tests and yours: fake providers, a provider simulator over real HTTP, and virtual time.

`Embedder(provider=FakeProvider())` costs nothing and shows every mix-up; `Simulator` is a server that speaks
as OpenAI, Azure OpenAI and GitHub Models do. The names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vecmill.testing.clock import VirtualLoop, run_virtual
    from vecmill.testing.fakes import FakeProvider, fake_vector
    from vecmill.testing.scenarios import Latency, Model, Scenario
    from vecmill.testing.simulator import Logged, Simulator, simulator_thread
    from vecmill.testing.simulator_batches import BatchFault, BatchRules
    from vecmill.testing.simulator_faults import Fault

__all__ = [
    "BatchFault",
    "BatchRules",
    "FakeProvider",
    "Fault",
    "Latency",
    "Logged",
    "Model",
    "Scenario",
    "Simulator",
    "VirtualLoop",
    "fake_vector",
    "run_virtual",
    "simulator_thread",
]

_HOMES = {
    "BatchFault": "simulator_batches",
    "BatchRules": "simulator_batches",
    "FakeProvider": "fakes",
    "Fault": "simulator_faults",
    "Latency": "scenarios",
    "Logged": "simulator",
    "Model": "scenarios",
    "Scenario": "scenarios",
    "Simulator": "simulator",
    "VirtualLoop": "clock",
    "fake_vector": "fakes",
    "run_virtual": "clock",
    "simulator_thread": "simulator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vecmill.testing' has no attribute {name!r}")
    import importlib  # late: this is what makes the names lazy

    value = getattr(importlib.import_module(f"vecmill.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
