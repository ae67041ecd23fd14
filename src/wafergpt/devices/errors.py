"""What can go wrong around a device: each case has its own name and one clear line."""

from __future__ import annotations

from wafergpt.errors import WaferGPTError


class DeviceError(WaferGPTError, RuntimeError):
    """A device was used out of order: started twice, stopped before it was started, two at a time."""


class UnmappedOperatorError(DeviceError, NotImplementedError):
    """`strict=True`, and the wafer has no program for an operator. It has not run."""


class DoesNotFitError(DeviceError):
    """`execution="resident"`, and the model does not fit in the wafer's SRAM."""
