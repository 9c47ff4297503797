"""Models that serve are loaded one at a time in a process; training, which has a process to itself, does not wait here.

While transformers builds a model it replaces functions of its classes for the whole process (`no_tie_weights`, initialisation on the
meta device). Two threads that load at once can leave them replaced: models then come without their output layer. And its classes are
imported when they are first named: while one thread does so, another one finds that there is no such class.
"""

from __future__ import annotations

import threading

# Of the process, as what it protects is; held only while transformers is imported from and a model is loaded.
ONE_AT_A_TIME = threading.RLock()
