"""Loaded by every Python that a command under test starts, its kernels and spawned workers among them."""

import tripwire

tripwire.arm()
