// Linked 3D views of one point cloud (WebGL 2, no library): drag turns, shift-drag moves, wheel or pinch zooms.
"use strict";
(() => {
  const POINTS = `#version 300 es
    layout(location = 0) in vec3 place; layout(location = 1) in vec3 tint;
    uniform mat4 camera; uniform vec3 low, span; uniform float size, cut;
    out vec3 shade;
    void main() {
      vec3 world = low + place * span;
      shade = tint;
      gl_Position = world.z > cut ? vec4(2.0, 2.0, 2.0, 1.0) : camera * vec4(world, 1.0);
      gl_PointSize = clamp(size / gl_Position.w, 1.0, 64.0);
    }`;
  const DOT = `#version 300 es
    precision mediump float;
    in vec3 shade; out vec4 color;
    void main() {
      if (length(gl_PointCoord - 0.5) > 0.5) discard;
      color = vec4(shade, 1.0);
    }`;
  const SCREEN = `#version 300 es
    out vec2 at;
    void main() {
      at = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
      gl_Position = vec4(at * 2.0 - 1.0, 0.0, 1.0);
    }`;
  // Eye-dome lighting: a pixel is darker where its neighbours are nearer to the eye.
  const SHADE = `#version 300 es
    precision highp float;
    uniform sampler2D picture, depths; uniform vec2 pixel, range; uniform vec3 paper;
    in vec2 at; out vec4 color;
    float far(vec2 p) {
      float z = texture(depths, p).r;
      return z >= 1.0 ? 1e6 : range.x * range.y / (range.y - z * (range.y - range.x));
    }
    void main() {
      float here = far(at), sum = 0.0;
      if (here > 1e5) { color = vec4(paper, 1.0); return; }
      for (int k = 0; k < 8; k++) {
        float turn = float(k) * 0.7853982;
        sum += max(0.0, log2(here) - log2(min(far(at + vec2(cos(turn), sin(turn)) * pixel), here)));
      }
      color = vec4(texture(picture, at).rgb * exp(-4.0 * min(sum, 0.4)), 1.0);
    }`;
  const FIELD = 40 * Math.PI / 180;
  const GREY = [188, 192, 196];

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const sub = (a, b) => a.map((v, i) => v - b[i]);
  const dot = (a, b) => a.reduce((s, v, i) => s + v * b[i], 0);
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

  function program(gl, vertex, fragment) {
    const linked = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(linked, shader);
    }
    gl.linkProgram(linked);
    return new Proxy(linked, {get: (_, name) => name === "use" ? () => gl.useProgram(linked)
                                                               : gl.getUniformLocation(linked, name)});
  }

  function layerColors(layer, data, only) {
    if (layer.color) return layer.color;
    const {count, palette} = data, out = new Uint8Array(3 * count), marks = data.marks;
    for (let i = 0; i < count; i++) {
      const label = layer.label[i], truth = layer.truth ? layer.truth[i] : label;
      let tint = label === 255 ? marks.none : palette[label % palette.length];
      if (layer.truth) tint = truth === 255 ? marks.none : label === truth ? marks.right : marks.wrong;
      if (only !== null && label !== only && truth !== only) tint = GREY;
      out.set(tint, 3 * i);
    }
    return out;
  }

  function camera(view, aspect) {
    const [yaw, tilt] = [view.yaw, view.tilt], near = view.distance * 0.02, far = view.distance + view.reach * 2;
    const back = [Math.cos(tilt) * Math.cos(yaw), Math.cos(tilt) * Math.sin(yaw), Math.sin(tilt)];
    const right = [-Math.sin(yaw), Math.cos(yaw), 0], up = cross(back, right);
    const eye = view.target.map((v, i) => v + view.distance * back[i]);
    const f = 1 / Math.tan(FIELD / 2), a = (far + near) / (near - far), b = 2 * far * near / (near - far);
    const rows = [[...right, -dot(right, eye)], [...up, -dot(up, eye)], [...back, -dot(back, eye)]];
    const m = [rows[0].map((v) => v * f / aspect), rows[1].map((v) => v * f),
               rows[2].map((v, i) => v * a + (i === 3 ? b : 0)), rows[2].map((v) => -v)];
    return {matrix: Float32Array.from([0, 1, 2, 3].flatMap((c) => m.map((row) => row[c]))), near, far, right, up};
  }

  function start(root) {
    const data = JSON.parse(root.querySelector(".scene-data").textContent);
    const stage = root.querySelector(".scene-stage"), canvas = stage.querySelector("canvas");
    const gl = canvas.getContext("webgl2", {antialias: false, alpha: false});
    if (!gl) { stage.textContent = "This browser does not offer WebGL 2, which the 3D view needs."; return; }
    data.count = bytes(data.layers[0].color || data.layers[0].label).length / (data.layers[0].color ? 3 : 1);
    for (const layer of data.layers)
      for (const key of ["color", "label", "truth"]) if (layer[key]) layer[key] = bytes(layer[key]);

    if (stage.clientWidth < 520) {  // a phone: one view at a time, so that the page can still be scrolled beside it
      const kept = data.layers.findLast((layer) => layer.shown && !layer.truth);
      for (const layer of data.layers) layer.shown = layer === kept;
    }

    const points = program(gl, POINTS, DOT), shading = program(gl, SCREEN, SHADE);
    const places = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, places);
    gl.bufferData(gl.ARRAY_BUFFER, bytes(data.place), gl.STATIC_DRAW);
    let only = null;
    const paint = () => {
      for (const layer of data.layers) {
        layer.buffer = layer.buffer || gl.createBuffer();
        gl.bindBuffer(gl.ARRAY_BUFFER, layer.buffer);
        gl.bufferData(gl.ARRAY_BUFFER, layerColors(layer, data, only), gl.STATIC_DRAW);
      }
    };
    paint();
    const target = gl.createFramebuffer(), picture = gl.createTexture(), depths = gl.createTexture();
    let held = "";
    const resize = (width, height) => {
      if (held === `${width} ${height}`) return;
      held = `${width} ${height}`;
      gl.bindFramebuffer(gl.FRAMEBUFFER, target);
      for (const [texture, inside, form, type, slot] of [
        [picture, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, gl.COLOR_ATTACHMENT0],
        [depths, gl.DEPTH_COMPONENT24, gl.DEPTH_COMPONENT, gl.UNSIGNED_INT, gl.DEPTH_ATTACHMENT]]) {
        gl.bindTexture(gl.TEXTURE_2D, texture);
        gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, form, type, null);
        for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
        for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
        gl.framebufferTexture2D(gl.FRAMEBUFFER, slot, gl.TEXTURE_2D, texture, 0);
      }
    };

    const reach = Math.hypot(...data.span) / 2;
    const tall = data.span[2] > 0.8 * Math.max(data.span[0], data.span[1]);  // an object rather than a place
    const home = () => ({yaw: -1.05, tilt: tall ? 0.4 : 0.75,
                         distance: reach / Math.sin(FIELD / 2) * (tall ? 1.05 : 0.82), reach,
                         target: data.low.map((v, i) => v + data.span[i] * (i < 2 || tall ? 0.5 : 0.35))});
    let view = home(), waiting = false;
    const sliders = Object.fromEntries([...root.querySelectorAll("input[type=range]")].map((s) => [s.name, s]));

    function draw() {
      waiting = false;
      const shown = data.layers.filter((layer) => layer.shown), ratio = Math.min(devicePixelRatio || 1, 2);
      const wide = stage.clientWidth, n = shown.length;
      const columns = Math.max(1, n <= 3 && wide >= 330 * n ? n : wide >= 520 ? Math.min(n, 2) : 1);
      const lines = Math.max(1, Math.ceil(n / columns)), across = wide / columns;
      const tall = Math.round(Math.min(across * 0.75, Math.max(260, innerHeight * 0.8 / lines)));
      canvas.style.height = `${tall * lines}px`;
      const [w, h] = [Math.round(across * ratio), Math.round(tall * ratio)];
      if (canvas.width !== w * columns || canvas.height !== h * lines) {
        canvas.width = w * columns;
        canvas.height = h * lines;
      }
      resize(w, h);
      const look = camera(view, w / h);
      const paper = getComputedStyle(stage).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255);
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(...paper, 1);
      gl.clear(gl.COLOR_BUFFER_BIT);
      shown.forEach((layer, index) => {
        gl.bindFramebuffer(gl.FRAMEBUFFER, target);
        gl.viewport(0, 0, w, h);
        gl.enable(gl.DEPTH_TEST);
        gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
        points.use();
        gl.uniformMatrix4fv(points.camera, false, look.matrix);
        gl.uniform3fv(points.low, data.low);
        gl.uniform3fv(points.span, data.span);
        gl.uniform1f(points.size, data.spacing * sliders.size.value * h / 2 / Math.tan(FIELD / 2));
        gl.uniform1f(points.cut, data.low[2] + data.span[2] * sliders.cut.value);
        gl.bindBuffer(gl.ARRAY_BUFFER, places);
        gl.enableVertexAttribArray(0);
        gl.vertexAttribPointer(0, 3, gl.UNSIGNED_SHORT, true, 0, 0);
        gl.bindBuffer(gl.ARRAY_BUFFER, layer.buffer);
        gl.enableVertexAttribArray(1);
        gl.vertexAttribPointer(1, 3, gl.UNSIGNED_BYTE, true, 0, 0);
        gl.drawArrays(gl.POINTS, 0, data.count);

        gl.bindFramebuffer(gl.FRAMEBUFFER, null);
        gl.viewport((index % columns) * w, (lines - 1 - Math.floor(index / columns)) * h, w, h);
        gl.disable(gl.DEPTH_TEST);
        gl.disableVertexAttribArray(0);
        gl.disableVertexAttribArray(1);
        shading.use();
        gl.activeTexture(gl.TEXTURE0);
        gl.bindTexture(gl.TEXTURE_2D, picture);
        gl.activeTexture(gl.TEXTURE1);
        gl.bindTexture(gl.TEXTURE_2D, depths);
        gl.uniform1i(shading.picture, 0);
        gl.uniform1i(shading.depths, 1);
        gl.uniform2f(shading.pixel, 1.5 * ratio / w, 1.5 * ratio / h);
        gl.uniform2f(shading.range, look.near, look.far);
        gl.uniform3fv(shading.paper, paper);
        gl.drawArrays(gl.TRIANGLES, 0, 3);
        gl.activeTexture(gl.TEXTURE0);
      });
      stage.querySelectorAll("span").forEach((label) => label.remove());
      shown.forEach((layer, index) => {
        const label = document.createElement("span");
        label.textContent = layer.name;
        label.style.left = `${(index % columns) * across + 10}px`;
        label.style.top = `${Math.floor(index / columns) * tall + 8}px`;
        stage.append(label);
      });
    }
    const refresh = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };

    const bar = root.querySelector(".scene-layers");
    for (const layer of data.layers) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = layer.name;
      button.ariaPressed = String(layer.shown);
      button.onclick = () => {
        if (layer.shown && data.layers.filter((other) => other.shown).length === 1) return;
        layer.shown = !layer.shown;
        button.ariaPressed = String(layer.shown);
        refresh();
      };
      bar.append(button);
    }
    root.querySelectorAll(".scene-legend button").forEach((button) => {
      button.onclick = () => {
        const label = Number(button.dataset.label);
        only = only === label ? null : label;
        root.querySelectorAll(".scene-legend button").forEach((other) => {
          other.ariaPressed = String(only === Number(other.dataset.label));
        });
        paint();
        refresh();
      };
    });
    Object.values(sliders).forEach((slider) => { slider.oninput = refresh; });
    root.querySelector(".scene-home").onclick = () => { view = home(); refresh(); };

    const move = (dx, dy) => {  // pixels
      const look = camera(view, 1), step = view.distance / canvas.clientHeight;
      view.target = view.target.map((v, i) => v + step * (dy * look.up[i] - dx * look.right[i]));
    };
    const turn = (dx, dy) => {
      view.yaw -= dx * 0.008;
      view.tilt = Math.max(-1.55, Math.min(1.55, view.tilt + dy * 0.008));
    };
    const zoom = (factor) => { view.distance = Math.max(reach * 0.05, Math.min(reach * 12, view.distance * factor)); };
    const fingers = new Map();
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus();
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY], [dx, dy] = sub(now, before);
      if (fingers.size === 2) {
        const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
        zoom(Math.hypot(...sub(before, other)) / Math.max(1, Math.hypot(...sub(now, other))));
        move(dx / 2, dy / 2);
      } else if (event.shiftKey || event.buttons > 1) move(dx, dy);
      else turn(dx, dy);
      fingers.set(event.pointerId, now);
      refresh();
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;  // a page scrolled past must not be caught
      event.preventDefault();
      zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.002));
      refresh();
    }, {passive: false});
    canvas.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: [-12, 0], ArrowRight: [12, 0], ArrowUp: [0, -12], ArrowDown: [0, 12]}[event.key];
      if (step) turn(...step);
      else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 0.9 : 1.1);
      else return;
      event.preventDefault();
      refresh();
    });
    new ResizeObserver(refresh).observe(stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
    draw();
  }

  // A page of many scenes must not hold more WebGL contexts than browsers allow: all but the first few start when they
  // come into sight. (The first do at once: programs that only take a picture of the page never scroll.)
  const AT_ONCE = 4;
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      watch.unobserve(entry.target);
      start(entry.target);
    }
  }, {rootMargin: "200px"});
  document.querySelectorAll(".scene").forEach((root, i) => i < AT_ONCE ? start(root) : watch.observe(root));
})();
