"""The folder of the runtime, as its code objects name it."""

from __future__ import annotations

import os
import sys

#: All code of the runtime has a ``co_filename`` that begins with this. ``__file__`` will not do: a
#: module that is loaded without its source lies elsewhere than where it was compiled.
FOLDER = os.path.join(os.path.dirname(sys._getframe().f_code.co_filename), "")
