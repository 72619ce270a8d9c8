// Panes: OpenSeadragon viewers that share one frame, the level 0 of the first slide, and may be locked to each other.
"use strict";
window.KinPanes = (() => {
  const OSD = window.OpenSeadragon;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const COARSER_BELOW = 0.51;  // screen pixels per pixel of a level; at exactly a half the next level's own pixels are shown
  const SMOOTH_UP_TO = 2;  // device pixels per stored pixel; beyond that stored pixels are shown as squares

  // The levels of a slide are those of its file, not halves of each other, so the geometry is told here.
  function tileSource(layer, address) {
    const [width, height] = layer.size, { levels, tiles } = layer;
    const source = new OSD.TileSource({
      width, height, tileSize: tiles.at(-1)[0], minLevel: 0, maxLevel: levels.length - 1, getTileUrl: address,
      tileOverlap: 1,  // there is none, but without it each tile would be drawn one pixel larger
    });
    source.getTileWidth = level => tiles[level][0];
    source.getTileHeight = level => tiles[level][1];
    source.getLevelScale = level => levels[level][0] / width;
    source.getNumTiles = level => new OSD.Point(...[0, 1].map(axis => Math.ceil(levels[level][axis] / tiles[level][axis])));
    source.getTileAtPoint = (level, point) => {
      const [w, h] = levels[level], count = source.getNumTiles(level);
      const place = (value, tile, most) => Math.max(0, Math.min(most - 1, Math.floor(value / tile)));
      return new OSD.Point(
        place(point.x * w, tiles[level][0], count.x), place(point.y * width / height * h, tiles[level][1], count.y));
    };
    // Tiles at the right and lower edge may be as large as the others: what is drawn of them ends at the slide's edge.
    source.getTileBounds = (level, col, row, isSource) => {
      const [w, h] = levels[level], [across, down] = tiles[level];
      const x = col * across, y = row * down;
      const right = Math.min(w, x + across), bottom = Math.min(h, y + down);
      return isSource
        ? new OSD.Rect(0, 0, right - x, bottom - y)
        : new OSD.Rect(x / w, y / h * height / width, (right - x) / w, (bottom - y) / h * height / width);
    };
    return source;
  }

  // Draw a tile from whole pixels of the screen to whole pixels, so that no line shows between it and the next one.
  function snap({ tile, context }) {
    const ratio = OSD.pixelDensityRatio, to = value => Math.round(value + 1e-4);  // both sides of a border round alike
    const fit = (start, size) => {
      const first = to(start), scale = (to(start + size) - first) / size;
      return [scale, first - start * scale];
    };
    const [across, left] = fit(tile.position.x * ratio, tile.size.x * ratio);
    const [down, top] = fit(tile.position.y * ratio, tile.size.y * ratio);
    context.transform(across, 0, 0, down, left, top);
  }

  // One viewer. `frame` is the width of the shared frame in its pixels; places are in those pixels.
  class Pane {
    constructor(parent, frame, more = {}) {
      this.frame = frame;
      this.element = parent.appendChild(document.createElement("div"));
      this.element.className = "pane";
      const deep = this.element.appendChild(document.createElement("div"));
      deep.className = "deep";
      this.marks = this.element.appendChild(document.createElement("canvas"));
      this.marks.className = "marks";
      this.viewer = new OSD({
        element: deep, drawer: "canvas", showNavigationControl: false, keyboardNavEnabled: false,
        animationTime: still ? 0 : 0.35, springStiffness: 9, blendTime: 0, alwaysBlend: false, immediateRender: false,
        smoothTileEdgesMinZoom: Infinity, minPixelRatio: COARSER_BELOW, minZoomImageRatio: 0.4, maxZoomPixelRatio: 24, visibilityRatio: 0.15, constrainDuringPan: true,
        zoomPerClick: 1, zoomPerScroll: 1.25, timeout: 120000, tileRetryMax: 2, tileRetryDelay: 500,
        maxImageCacheCount: 600, imageLoaderLimit: 8, preserveViewport: true, ...more,
        gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true, flickEnabled: false },
        gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true, pinchRotate: false },
      });
      this.viewer.addHandler("tile-drawing", snap);
      this.viewer.addHandler("viewport-change", () => this.#sharpen());
      this.viewer.addHandler("open", () => this.#sharpen());
    }

    // Add a slide on top of the others; resolves to its tiled image.
    add(layer, address, options = {}) {
      const [x, y, width] = layer.place;
      return new Promise((resolve, reject) => this.viewer.addTiledImage({
        tileSource: tileSource(layer, address), x: x / this.frame, y: y / this.frame, width: width / this.frame,
        success: event => resolve(event.item), error: reject, ...options,
      }));
    }

    // Centre in pixels of the frame, and CSS pixels per pixel of the frame.
    get view() {
      const centre = this.viewer.viewport.getCenter(true), zoom = this.viewer.viewport.getZoom(true);
      return { x: centre.x * this.frame, y: centre.y * this.frame, z: zoom * this.element.clientWidth / this.frame };
    }
    get target() {
      const centre = this.viewer.viewport.getCenter(false), zoom = this.viewer.viewport.getZoom(false);
      return { x: centre.x * this.frame, y: centre.y * this.frame, z: zoom * this.element.clientWidth / this.frame };
    }
    show({ x, y, z }, at_once = true) {
      this.viewer.viewport.zoomTo(z * this.frame / this.element.clientWidth, null, at_once);
      this.viewer.viewport.panTo(new OSD.Point(x / this.frame, y / this.frame), at_once);
    }
    zoomBy(factor) {
      this.viewer.viewport.zoomBy(factor);
      this.viewer.viewport.applyConstraints();
    }
    panBy(dx, dy) {  // CSS pixels
      this.viewer.viewport.panBy(this.viewer.viewport.deltaPointsFromPixels(new OSD.Point(dx, dy)));
      this.viewer.viewport.applyConstraints();
    }
    // From pixels of the frame to CSS pixels of the pane.
    place(x, y) {
      const { x: cx, y: cy, z } = this.view;
      return [(x - cx) * z + this.element.clientWidth / 2, (y - cy) * z + this.element.clientHeight / 2];
    }
    destroy() {
      this.viewer.imageLoader.clear();
      this.viewer.destroy();
      this.element.remove();
    }

    #sharpen() {
      const item = this.viewer.world.getItemAt(0);
      if (!item) return;
      const zoom = item.viewportToImageZoom(this.viewer.viewport.getZoom(true)) * devicePixelRatio;
      this.viewer.drawer.setImageSmoothingEnabled(zoom < SMOOTH_UP_TO);
    }
  }

  // Lock panes: whichever the reader touched last leads, the others follow in the same frame.
  function lock(panes) {
    let leader = panes[0];
    for (const pane of panes) {
      for (const event of ["pointerdown", "wheel", "touchstart", "pointerenter"])
        pane.element.addEventListener(event, () => { leader = pane; }, { capture: true, passive: true });
      pane.viewer.addHandler("viewport-change", () => {
        if (pane !== leader) return;
        for (const other of panes) if (other !== pane) other.show(pane.view);
      });
    }
    return { get leader() { return leader; }, lead(pane) { leader = pane; } };
  }

  // A scale bar of a round length; `mpp` is µm per pixel of the frame.
  function ruler(pane, mpp) {
    if (!mpp) return;
    const box = pane.element.appendChild(document.createElement("div"));
    box.className = "ruler";
    const label = box.appendChild(document.createElement("span"));
    const bar = box.appendChild(document.createElement("i"));
    const draw = () => {
      const perPixel = mpp / pane.view.z, most = perPixel * Math.min(160, pane.element.clientWidth / 3);
      const power = 10 ** Math.floor(Math.log10(most));
      const length = [5, 2, 1].map(step => step * power).find(step => step <= most);
      label.textContent = length >= 1000 ? `${length / 1000} mm` : length >= 1 ? `${length} µm` : `${+(length * 1000).toPrecision(1)} nm`;
      bar.style.width = `${length / perPixel}px`;
    };
    for (const event of ["viewport-change", "open", "resize", "update-viewport"]) pane.viewer.addHandler(event, draw);
    pane.viewer.world.addHandler("add-item", () => requestAnimationFrame(draw));
  }

  return { Pane, lock, ruler };
})();
