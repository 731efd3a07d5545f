"""`make fuzz N=3000 SEED=0`; one seed again: `python -m tests.fuzz 1 1234`.

`make fuzz-exports` judges the same networks as torch.export programs and ONNX models; `--exports` in front.
"""

import sys

from tests.fuzz.campaign import main

if __name__ == "__main__":
    sys.exit(main())
