"""What is decided, apart from how it is carried out: no clock, no I/O, no asyncio, no logging. Time is an argument."""
