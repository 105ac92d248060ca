import sys

from score_sde.cli import main

sys.exit(main())
