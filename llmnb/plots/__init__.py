"""Every figure of the series: one style, colours that the colour-blind can tell apart, alt text.

Figures are made without pyplot: nothing is shown twice, no global state is left behind.
"""

from llmnb.plots.canvas import COLOURS, Figure
from llmnb.plots.charts import bars, distributions, heatmap, intervals, lines, points
from llmnb.plots.pictures import Panel, coloured_text, maps, stacks, tokens
