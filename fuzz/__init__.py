"""Search for input that breaks a rule: `make fuzz SECONDS=60`.

Hypothesis makes the input, and shrinks what fails. Each target says what must hold; what it has found
once is kept in `.hypothesis` and tried first the next time.
"""
