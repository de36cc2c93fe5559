// The slide with deep zoom, and one canvas over it on which the spots are drawn whenever the view changes.
"use strict";

stGchb.Slide = class {
  constructor(element, { slide, spots }) {
    this.element = element;
    this.um = slide.um_per_px;
    this.n = spots.n;
    this.x = stGchb.floatsOf(spots.x);
    this.y = stGchb.floatsOf(spots.y);
    this.trueRadius = this.radius = spots.diameter / 2;
    this.square = spots.square;
    this.outlier = spots.outlier ? stGchb.floatsOf(spots.outlier) : null;
    this.shown = new Uint8Array(this.n).fill(1);
    this.bins = null;
    this.order = null;
    this.table = null;
    this.opacity = 1;
    this.outline = true;
    this.selected = -1;
    this.hidden = false;
    this.size = slide;
    this.open(slide);
  }

  open(slide) {
    const image = {
      xmlns: "http://schemas.microsoft.com/deepzoom/2008",
      Url: "slide_files/",
      Format: "jpeg",
      Overlap: String(slide.overlap),
      TileSize: String(slide.tile),
      Size: { Width: String(slide.width), Height: String(slide.height) },
    };
    this.viewer = OpenSeadragon({
      element: this.element,
      tileSources: { Image: image },
      // WebGL may not take images of a page from the disk.
      drawer: "canvas",
      crossOriginPolicy: false,
      prefixUrl: "",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_RIGHT",
      navigatorSizeRatio: 0.16,
      navigatorAutoFade: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.25,
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.4,
    });
    this.canvas = document.createElement("canvas");
    this.canvas.className = "spots";
    this.canvas.setAttribute("aria-hidden", "true");
    this.viewer.canvas.append(this.canvas);
    this.viewer.canvas.setAttribute("role", "application");
    this.viewer.canvas.setAttribute("aria-label", "Slide. Arrows move it, plus and minus zoom, 0 shows all of it.");
    this.viewer.addHandler("open", () => this.showSpots(true));
    for (const event of ["open", "resize", "update-viewport"]) this.viewer.addHandler(event, () => this.drawSoon());
    this.viewer.addHandler("canvas-key", (event) => {
      // A slide that is turned or mirrored would no longer be the one in the report.
      if (/^[rf]$/i.test(event.originalEvent.key)) event.preventDefaultAction = true;
    });
    this.viewer.addHandler("canvas-click", (event) => {
      if (event.quick) this.onselect?.(this.spotAt(event.position.x, event.position.y));
    });
    this.element.addEventListener("pointermove", (event) => {
      const box = this.element.getBoundingClientRect();
      const place = { x: event.clientX - box.left, y: event.clientY - box.top };
      this.onpoint?.(event.buttons ? -1 : this.spotAt(place.x, place.y), place);
    });
    this.element.addEventListener("pointerleave", () => this.onpoint?.(-1));
  }

  // Zoom so that all spots are seen.
  showSpots(immediately) {
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < this.n; i++) {
      left = Math.min(left, this.x[i]);
      right = Math.max(right, this.x[i]);
      top = Math.min(top, this.y[i]);
      bottom = Math.max(bottom, this.y[i]);
    }
    // Room for what lies over the slide's rim, such as the legend.
    const margin = 2 * this.trueRadius + 0.06 * Math.max(right - left, bottom - top);
    let [width, height] = [right - left + 2 * margin, bottom - top + 2 * margin];
    // Beside the small map rather than under it, where that costs little.
    const screen = this.element.getBoundingClientRect();
    const map = this.viewer.navigator.element.offsetWidth + 28;
    const zoom = (room) => Math.min(room / width, screen.height / height);
    const beside = zoom(screen.width - map);
    if (beside > 0.9 * zoom(screen.width)) width += map / beside;
    this.viewer.viewport.fitBounds(
      this.item.imageToViewportRectangle(left - margin, top - margin, width, height), immediately,
    );
  }

  get item() {
    return this.viewer.world.getItemAt(0);
  }

  // Place of the slide's upper left corner in the viewer, and px of the screen for each px of the slide.
  get view() {
    const corner = this.item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const end = this.item.imageToViewerElementCoordinates(new OpenSeadragon.Point(this.size.width, 0));
    return { left: corner.x, top: corner.y, zoom: (end.x - corner.x) / this.size.width };
  }

  placeOf(spot) {
    const { left, top, zoom } = this.view;
    return { x: left + this.x[spot] * zoom, y: top + this.y[spot] * zoom };
  }

  spotAt(x, y) {
    if (!this.item || this.hidden) return -1;
    const { left, top, zoom } = this.view;
    // Spots that are a few px wide on the screen would be hard to hit.
    const reach = Math.max(this.radius, 4 / zoom);
    const [px, py] = [(x - left) / zoom, (y - top) / zoom];
    let [best, found] = [Infinity, -1];
    for (let i = 0; i < this.n; i++) {
      if (!this.shown[i]) continue;
      const [dx, dy] = [Math.abs(this.x[i] - px), Math.abs(this.y[i] - py)];
      const distance = this.square ? Math.max(dx, dy) : Math.hypot(dx, dy);
      if (distance <= reach && distance < best) [best, found] = [distance, i];
    }
    return found;
  }

  // Move the view to a spot, if it is not on the screen.
  reveal(spot) {
    const place = this.placeOf(spot);
    const { width, height } = this.element.getBoundingClientRect();
    if (place.x > 0 && place.x < width && place.y > 0 && place.y < height) return;
    this.viewer.viewport.panTo(this.item.imageToViewportCoordinates(this.x[spot], this.y[spot]));
  }

  // Color the spots by values; those without a value are not drawn.
  setValues(values, scale) {
    this.bins = new Int16Array(this.n).fill(-1);
    for (let i = 0; i < this.n; i++) {
      if (!Number.isFinite(values[i])) continue;
      const share = (values[i] - scale.low) / (scale.high - scale.low);
      this.bins[i] = Math.min(Math.max(Math.floor(share * 256), 0), 255);
    }
    // Spots of one color are filled at once, and high values lie on top.
    this.order = Array.from(this.bins.keys()).filter((i) => this.bins[i] >= 0);
    this.order.sort((a, b) => this.bins[a] - this.bins[b]);
    this.drawSoon();
  }

  drawSoon() {
    this.asked ??= requestAnimationFrame(() => {
      this.asked = null;
      this.draw();
    });
  }

  draw() {
    const { width, height } = this.element.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) [this.canvas.width, this.canvas.height] = [w, h];
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.item) return;
    const view = this.view;
    this.onview?.(view.zoom);
    if (this.hidden || !this.order) return;
    const radius = Math.max(this.radius * view.zoom, 0.5);
    const inView = (i) => {
      const [x, y] = [view.left + this.x[i] * view.zoom, view.top + this.y[i] * view.zoom];
      return x > -radius && x < width + radius && y > -radius && y < height + radius;
    };
    const drawn = this.order.filter((i) => this.shown[i] && inView(i));
    this.fill(context, view, radius, drawn);
    if (this.outline && this.outlier) this.ring(context, view, radius + 1, drawn.filter((i) => this.outlier[i]));
    if (this.selected >= 0) this.ring(context, view, Math.max(radius + 3, 6), [this.selected], 3);
  }

  fill(context, view, radius, spots) {
    context.globalAlpha = this.opacity;
    for (let start = 0; start < spots.length; ) {
      const bin = this.bins[spots[start]];
      const [r, g, b] = this.table.subarray(3 * bin, 3 * bin + 3);
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.beginPath();
      let i = start;
      for (; i < spots.length && this.bins[spots[i]] === bin; i++) this.outlineOf(context, view, radius, spots[i]);
      context.fill();
      start = i;
    }
    context.globalAlpha = 1;
  }

  // A dark line within a white one is seen on tissue and on any color.
  ring(context, view, radius, spots, width = 1.5) {
    if (!spots.length) return;
    context.beginPath();
    for (const i of spots) this.outlineOf(context, view, radius, i);
    context.strokeStyle = "#fff";
    context.lineWidth = width + (radius < 8 ? 1 : 2);
    context.stroke();
    context.strokeStyle = "#111";
    context.lineWidth = width;
    context.stroke();
  }

  outlineOf(context, view, radius, i) {
    const [x, y] = [view.left + this.x[i] * view.zoom, view.top + this.y[i] * view.zoom];
    if (this.square || radius < 1.5) {
      context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    } else {
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
  }
};
