"""Devices that any PyTorch code runs under: today the WSE-2, modelled."""
