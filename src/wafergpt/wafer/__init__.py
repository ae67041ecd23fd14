"""A WSE-2 in software: hardware figures, a cycle-level machine, its programs, closed-form costs."""
