"""The page of a validation, and its areas for QuPath."""

from __future__ import annotations

from importlib import resources
from string import Template

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kin_cli import __version__
from kin_cli.geometry import Box, Doubles, Pixels
from kin_cli.report.page import cards, comparison, jpeg_address, table, text
from kin_cli.slide.geojson import encoded, feature, rectangle
from kin_cli.slide.view import SlideView, open_view
from kin_cli.validation.abstention import points
from kin_cli.validation.areas import Areas
from kin_cli.validation.run import Validation
from kin_cli.validation.scores import BETTER, REAL, Score, verdict
from kin_cli.validation.stains import otsu

_MAP_UM = 128
_PLOT_PX, _MARGIN_PX = 420, 46
_MOST_DOTS = 6000
# pale to dark: nothing, and as dense as the densest areas of the real slide
_STOPS = np.array([[255, 250, 235], [250, 190, 90], [190, 40, 60], [60, 0, 60]], np.float64)
_AGREES = {(True, True): (60, 160, 80), (True, False): (220, 60, 50), (False, True): (60, 110, 220)}
_CURVES = {"translation": (110, 50, 190), "recoloured": (240, 140, 30)}
_NAMES = {
    (True, True): "both",
    (True, False): "translation only",
    (False, True): "real only",
    (False, False): "neither",
}


def page(found: Validation) -> str:
    """Make the HTML document: pair, figures, maps and scatter plots."""
    template = resources.files("kin_cli.report").joinpath("template.html").read_text(encoding="utf-8")
    style = template[template.index("<style>") : template.index("</style>") + len("</style>")]
    script = template[template.index("<script>") : template.index("</script>") + len("</script>")]
    real, translated = found.settings.real.path.name, found.settings.translated.path.name
    return Template(_BODY).substitute(
        version=text(__version__),
        title=text(f"{translated} – kin validate"),
        heading=text(translated),
        subtitle=f"against <code>{text(real)}</code> by kin {text(__version__)}",
        style=style,
        script=script,
        warnings="".join(f"<li>{text(note)}</li>" for note in (*found.notes, "for research only, not for diagnosis")),
        summary=cards(_summary(found)),
        verdict=text(verdict(found.scores).capitalize()),
        pair=comparison(found.pictures["real"], found.pictures["translation"], name="Registered pair", marks="")
        .replace("Registered pair: source", "Registered pair: real")
        .replace('name left">source', 'name left">real'),
        maps=_maps(found),
        scatter=_scatter(found),
        roc=_roc(found),
        figures="".join(_figures(found, um) for um in found.areas),
        abstention=_abstention(found),
        method=_method(found),
    )


def _summary(found: Validation) -> list[tuple[str, str]]:
    chosen = {score.name: score for score in found.scores if score.um == _MAP_UM}
    error = found.registration.error
    rows = [("registration error", "unknown" if error is None else f"{error['median']:.0f} µm (median)")]
    for name, label in (
        ("dice", "Dice"),
        ("pearson", "Pearson"),
        ("auc", "ROC area"),
        ("density_ratio", "density ratio"),
    ):
        rows.append((f"{label}, {_MAP_UM} µm", _with_interval(chosen[name])))
    return rows


def _with_interval(score: Score) -> str:
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{score.value:.2f}"
    return f"{score.value:.2f} ({score.interval[0]:.2f} to {score.interval[1]:.2f})"


def _figures(found: Validation, um: int) -> str:
    chosen = [score for score in found.scores if score.um == um]
    finer = chosen[0].finer
    head = ["figure", "value", "95 % interval", "chance", "recoloured", "best"]
    rows = []
    for score in chosen:
        interval = "–" if score.interval is None else f"{score.interval[0]:.3f} – {score.interval[1]:.3f}"
        values = (_number(score.value), interval, _number(score.chance), _number(score.recoloured))
        rows.append((score.name.replace("_", " "), *values, BETTER[score.name]))
    note = "; finer than the registration's own error, so that these mean little" if finer else ""
    style = ' style="opacity:.45"' if finer else ""
    opened = " open" if um == _MAP_UM else ""
    return (
        f"<details{opened}><summary>Areas of {um} µm ({chosen[0].areas:,}){note}</summary>"
        f"<div{style}>{table(head, rows, numbers=1)}</div></details>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _maps(found: Validation) -> str:
    areas = found.areas[_MAP_UM]
    if not len(areas.pixels):
        return "<p>No area of this size is half tissue.</p>"
    top = float(np.percentile(areas.density(REAL), 99)) or 1.0
    threshold = otsu(areas.density(REAL).astype(np.float32))
    one, other = areas.density(0) > threshold, areas.density(REAL) > threshold
    masks = [_AGREES.get((bool(a), bool(b)), (225, 225, 225)) for a, b in zip(one, other, strict=True)]
    shown = [
        ("density, real", _map(areas, _ramp(areas.density(REAL) / top))),
        ("density, translation", _map(areas, _ramp(areas.density(0) / top))),
        ("positive areas", _map(areas, np.array(masks, np.float64))),
    ]
    legend = "green: both; red: translation only; blue: real only; grey: neither"
    figures = "".join(
        f'<figure><img class="map" alt="{text(name)}" src="{jpeg_address(picture)}"><figcaption>{text(name)}'
        f"{' (' + legend + ')' if name == 'positive areas' else ''}</figcaption></figure>"
        for name, picture in shown
    )
    return f'<div class="columns">{figures}</div>'


def _ramp(values: Doubles) -> Doubles:
    places = values.clip(0, 1) * (len(_STOPS) - 1)
    return np.stack([np.interp(places, range(len(_STOPS)), channel) for channel in _STOPS.T], axis=-1)


def _map(areas: Areas, colours: Doubles) -> Pixels:
    """Areas in their colours (n, 3), white elsewhere."""
    cells = areas.cells
    cells = cells - cells.min(axis=0)
    shape = cells.max(axis=0) + 1
    picture = np.full((*shape, 3), 255, np.uint8)
    picture[tuple(cells.T)] = np.rint(colours).astype(np.uint8)
    zoom = max(1, 800 // int(max(shape)))
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _scatter(found: Validation) -> str:
    plots = []
    for um, areas in found.areas.items():
        if len(areas.pixels) < 3:
            continue
        alt = f"Scatter plot of densities in areas of {um} µm"
        address = jpeg_address(_plot(areas))
        caption = f"areas of {um} µm: density of the stain, real (across) and translation (up)"
        plots.append(
            f'<figure><img class="map" alt="{alt}" src="{address}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div class="columns">{"".join(plots)}</div>'


def _plot(areas: Areas) -> Pixels:
    ours, theirs = areas.density(0), areas.density(REAL)
    top = float(max(np.percentile(ours, 99.5), np.percentile(theirs, 99.5), 1e-3))
    picture, draw = _axes(top, "real", "translation")
    chosen = np.arange(len(ours))
    if len(chosen) > _MOST_DOTS:
        chosen = np.random.default_rng(0).choice(len(chosen), _MOST_DOTS, replace=False)
    for across, up in _places(theirs[chosen] / top, ours[chosen] / top):
        draw.ellipse((across - 1.5, up - 1.5, across + 1.5, up + 1.5), fill=(110, 50, 190))
    return np.asarray(picture)


def _axes(top: float, across: str, up: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A square plot from 0 to ``top`` on both axes, with its diagonal."""
    side = _PLOT_PX + 2 * _MARGIN_PX
    picture = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    low, high = _MARGIN_PX, _MARGIN_PX + _PLOT_PX
    draw.rectangle((low, low, high, high), outline=(120, 120, 120))
    draw.line((low, high, high, low), fill=(180, 180, 180))
    for part in (0.0, 0.5, 1.0):
        label = f"{part * top:.2f}"
        draw.text((low + part * _PLOT_PX, high + 6), label, fill="black", anchor="ma", font=font)
        draw.text((low - 6, high - part * _PLOT_PX), label, fill="black", anchor="rm", font=font)
    draw.text(((low + high) / 2, high + 24), across, fill="black", anchor="ma", font=font)
    draw.text((4, low - 22), up, fill="black", font=font)
    return picture, draw


def _places(across: Doubles, up: Doubles) -> list[tuple[float, float]]:
    """Where fractions (n,) of both axes are in a plot."""
    x, y = _MARGIN_PX + across.clip(0, 1) * _PLOT_PX, _MARGIN_PX + _PLOT_PX - up.clip(0, 1) * _PLOT_PX
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _roc(found: Validation) -> str:
    plots = []
    for um in found.areas:
        curves = [curve for curve in found.roc if curve.um == um]
        if not curves:
            continue
        picture, draw = _axes(1.0, "false positive rate", "true positive rate")
        for curve in reversed(curves):
            draw.line(_places(curve.false_positive, curve.true_positive), fill=_CURVES[curve.slide], width=2)
        alt = f"ROC curve of areas of {um} µm"
        caption = f"areas of {um} µm: violet the translation{', orange the source recoloured' if curves[1:] else ''}"
        plots.append(
            f'<figure><img class="map" alt="{alt}" src="{jpeg_address(np.asarray(picture))}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="columns">{"".join(plots)}</div>' if plots else "<p>No areas of both kinds.</p>"


def _abstention(found: Validation) -> str:
    """Accuracy of what the trust map believes; nothing without a map."""
    curve = found.abstention
    if curve is None:
        return ""
    head = ["flagged", "accuracy of what is kept", "by chance", "95 % of chance"]
    chosen = [
        (f"{100 * at:.0f} %", f"{kept:.3f}", f"{curve.chance:.3f}", f"{low:.3f} – {high:.3f}")
        for at, kept, low, high in points(curve)
    ]
    return (
        '<h2 id="trust">If the least believable is left out</h2>'
        "<p>The trust map beside the translation orders the areas of 128 µm; an area is right if translation and real"
        f" slide agree whether it is positive. Mean gain {curve.gain:+.3f}; chance does as well in"
        f" {100 * curve.p_value:.0f} % of draws.</p>{table(head, chosen, numbers=1)}"
    )


def _method(found: Validation) -> str:
    stains = found.stains
    vector, counter = (" ".join(f"{value:.3f}" for value in values) for values in (stains.stain, stains.counterstain))
    return (
        f"<p>Optical densities of R, G, B: {text(stains.name)} {vector}, counterstain {counter}. A pixel is stained"
        f" above {found.rules.stained:.3f} (Otsu's threshold in the real tissue); an area is positive if its mean"
        " density exceeds the threshold that parts the real areas in two. Nuclei: peaks of both densities above"
        f" {found.rules.nucleus:.3f}, at least 4 µm apart; positive if the stain there exceeds"
        f" {found.rules.stained:.3f}, moderate from twice, strong from three times that. Intervals: bootstrap over"
        " squares of 256 µm. Chance: areas shuffled. Recoloured: the source with mean and spread of the real slide's"
        " L*a*b* colours.</p>"
    )


def areas_as_geojson(found: Validation, view: SlideView) -> bytes:
    """Areas of 128 µm as QuPath reads them, on the translation, of which ``view`` is any view; with measurements."""
    areas, side = found.areas[_MAP_UM], _MAP_UM / found.registration.source.mpp
    whole, features = open_view(view.slide), []
    ours, theirs = areas.density(0), areas.density(REAL)
    threshold = otsu(theirs.astype(np.float32))
    for (row, col), one, other in zip(areas.cells.tolist(), ours.tolist(), theirs.tolist(), strict=True):
        x, y = round(col * side), round(row * side)
        box = Box(x, y, round((col + 1) * side) - x, round((row + 1) * side) - y)
        key = (one > threshold, other > threshold)
        measured = {"density translation": one, "density real": other}
        colour = _AGREES.get(key, (200, 200, 200))
        features.append(feature(rectangle(whole, box), _NAMES[key], colour, measurements=measured))
    return encoded(features)


_BODY = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="kin $version">
<title>$title</title>
<link rel="icon" href="data:,">
$style
</head>
<body>
<header>
<h1>$heading</h1>
<p class="soft">$subtitle</p>
</header>
<main>
<ul class="warnings" aria-label="Notes">$warnings</ul>
$summary
<p>$verdict.</p>
<h2 id="pair">Real and translation</h2>
<p class="soft hint">Drag the line, or focus the picture with Tab and use the arrow keys.</p>
<figure>$pair</figure>
<h2 id="figures">Figures</h2>
$figures
<h2 id="maps">Maps, areas of 128 µm</h2>
$maps
<h2 id="scatter">Densities</h2>
$scatter
<h2 id="roc">ROC: does the density order the areas, positive or not?</h2>
$roc
$abstention
<h2 id="method">Method</h2>
$method
</main>
$script
</body>
</html>
"""
