"""Registry: functions by name, as in Flash."""

import pytest

from flash_launch.errors import TaskError
from flash_launch.tasks.registry import Registry


def test_functions_are_registered_by_call_and_as_decorator() -> None:
    registry = Registry("backbones")

    @registry
    def plain() -> int:
        return 1

    @registry(name="named", kind="small")
    def other() -> int:
        return 2

    registry(lambda: 3, name="third")
    assert registry.available_keys() == ["named", "plain", "third"]
    assert [registry.get(name)() for name in registry.available_keys()] == [2, 1, 3]
    assert (len(registry), "plain" in registry, "other" in registry) == (3, True, False)
    assert registry.metadata("named") == {"kind": "small"}
    assert plain() == 1
    registry.remove("plain")
    assert "plain" not in registry


def test_faults() -> None:
    registry = Registry("backbones")
    registry(len, name="tiny_net")
    with pytest.raises(TaskError, match=r"backbones has no 'tiny_nat': it has tiny_net"):
        registry.get("tiny_nat")
    with pytest.raises(TaskError, match="has 'tiny_net' already: choose another name, or give override=True"):
        registry(abs, name="tiny_net")
    registry(abs, name="tiny_net", override=True)
    assert registry.get("tiny_net") is abs
    with pytest.raises(TaskError, match="cannot be registered in backbones: give a function"):
        registry(3, name="three")  # type: ignore[call-overload]
    with pytest.raises(TaskError, match="is a string, not 3"):
        registry(len, name=3)  # type: ignore[call-overload]
