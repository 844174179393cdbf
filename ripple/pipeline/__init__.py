"""RIPPLe in Rubin's own engine: `LensSearchTask` for `pipetask` and `bps`.

Needs `pip install 'ripple-lsst[pipeline,learn]'`; nothing else in RIPPLe imports this package.
"""

from ripple.pipeline.lens_search import LensSearchConfig as LensSearchConfig
from ripple.pipeline.lens_search import LensSearchConnections as LensSearchConnections
from ripple.pipeline.lens_search import LensSearchTask as LensSearchTask
