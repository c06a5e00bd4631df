"""Which texts of a figure hide each other."""

from itertools import combinations

from matplotlib.text import Text


def overlapping(figure) -> list[tuple[str, ...]]:
    """Pairs of texts that overlap by more than a pixel, and single texts that leave the figure."""
    figure.draw_without_rendering()
    beyond = set()  # labels of ticks outside the axes exist, but are not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    beyond |= {tick.label1, tick.label2}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts if t not in beyond]
    pairs = combinations([(text, box.padded(-1)) for text, box in boxes], 2)
    whole = figure.bbox
    outside = [(text,) for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > whole.x1 + 1]
    return [(a, b) for (a, first), (b, second) in pairs if first.overlaps(second)] + outside
