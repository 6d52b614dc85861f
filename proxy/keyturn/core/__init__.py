"""Decisions, apart from how they are carried out: no clock, no I/O, no asyncio, no logging. Time is an argument."""
