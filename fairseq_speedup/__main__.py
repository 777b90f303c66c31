"""``python -m fairseq_speedup COMMAND``"""

import sys

from fairseq_speedup.commands import main

if __name__ == "__main__":
    sys.exit(main())
