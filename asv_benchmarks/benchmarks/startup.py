"""What a user waits for: the import, and the first call with and without compiled kernels."""

import os
import subprocess
import sys

CALLS = {
    "batch_norm_train": """
        import numpy as np
        import nbbn.functional as F
        F.batch_norm_train(np.ones((128, 256), np.float32))
    """,
    "training step": """
        import numpy as np
        import nbbn
        model = nbbn.mlp((784, 256, 128, 10), rng=0)
        optimizer = nbbn.optim.Adam(model.parameters())
        step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
        step(np.ones((128, 784), np.float32), np.zeros(128, np.int64))
    """,
}

EMPTY_CACHE = """
    import os, tempfile
    folder = tempfile.TemporaryDirectory()
    os.environ["NBBN_CACHE_DIR"] = folder.name
"""


class ImportBenchmark:
    """A new process each: the difference of the two is what nbbn adds to NumPy."""

    def timeraw_import_numpy(self):
        return "import numpy"

    def timeraw_import_nbbn_and_numpy(self):
        return "import numpy, nbbn"


class FirstCallBenchmark:
    """From the start of the imports to the first result."""

    params = (list(CALLS),)
    param_names = ("call",)
    number = 1
    repeat = 3
    timeout = 600

    def setup(self, call):
        lines = CALLS[call].splitlines()
        code = "\n".join(line.strip() for line in lines)
        subprocess.run([sys.executable, "-c", code], env=os.environ, check=True)

    def timeraw_cold(self, call):
        return CALLS[call], EMPTY_CACHE

    def timeraw_warm(self, call):
        return CALLS[call]
