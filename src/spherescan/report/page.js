"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const THEMES = {
    light: { ink: "#1b1f24", line: "#d0d7de", paper: "#ffffff" },
    dark: { ink: "#e6edf3", line: "#3d444d", paper: "#0d1117" },
  };
  const HOME = { x: 0.95, y: 0.95, z: 0.55 };

  // Traces that say so take the colour of the text; everything else is legible on both papers.
  function themed(figure, theme) {
    const data = figure.data.map((trace) => {
      if (!trace.meta || !trace.meta.ink) return trace;
      const copy = { ...trace, textfont: { ...trace.textfont, color: theme.ink } };
      if (trace.line) copy.line = { ...trace.line, color: theme.ink };
      if (trace.marker) copy.marker = { ...trace.marker, color: theme.ink };
      return copy;
    });
    const layout = {
      ...figure.layout,
      font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13, color: theme.ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: theme.paper, bordercolor: theme.line, font: { color: theme.ink } },
    };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) {
        layout[name] = { gridcolor: theme.line, zerolinecolor: theme.line, linecolor: theme.line, ...layout[name] };
      }
    }
    return { data, layout };
  }

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }

  // Without WebGL a space is seen from above: its first two axes.
  function flattened(figure) {
    const data = figure.data.filter((trace) => trace.mode !== "lines").map((trace) => {
      const { z, hovertemplate, ...rest } = trace;
      return { ...rest, type: "scatter" };
    });
    const { scene, ...layout } = figure.layout;
    return { data, layout: { ...layout, xaxis: { title: { text: "first component" } }, yaxis: { title: { text: "second component" }, scaleanchor: "x" } } };
  }

  function place(figure) {
    return figure.turns && !hasWebGL() ? { ...flattened(figure), turns: false } : figure;
  }

  async function still(key, figure) {
    const { data, layout } = themed(figure, THEMES.light);
    const plot = document.getElementById(key + "-plot");
    if (figure.turns && plot.layout && plot.layout.scene) {
      layout.scene = { ...layout.scene, camera: plot.layout.scene.camera };
    }
    const image = document.getElementById(key + "-still");
    const format = figure.turns ? "png" : "svg";
    image.src = await Plotly.toImage({ data, layout }, { format, width: 760, height: figure.turns ? 560 : 400, scale: figure.turns ? 2 : 1 });
  }

  function turn(plot, sideways, upwards, closer) {
    const eye = plot.layout.scene.camera && plot.layout.scene.camera.eye ? plot.layout.scene.camera.eye : HOME;
    const distance = Math.hypot(eye.x, eye.y, eye.z) * closer;
    const around = Math.atan2(eye.y, eye.x) + sideways;
    const limit = Math.PI / 2 - 0.01;
    const height = Math.max(-limit, Math.min(limit, Math.asin(eye.z / Math.hypot(eye.x, eye.y, eye.z)) + upwards));
    return Plotly.relayout(plot, {
      "scene.camera.eye": {
        x: distance * Math.cos(height) * Math.cos(around),
        y: distance * Math.cos(height) * Math.sin(around),
        z: distance * Math.sin(height),
      },
      "scene.camera.up": { x: 0, y: 0, z: 1 },
    });
  }

  const KEYS = {
    ArrowLeft: [-0.15, 0, 1], ArrowRight: [0.15, 0, 1], ArrowUp: [0, 0.15, 1], ArrowDown: [0, -0.15, 1],
    "+": [0, 0, 1 / 1.1], "=": [0, 0, 1 / 1.1], "-": [0, 0, 1.1],
  };

  function listen(plot) {
    plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Home") {
        Plotly.relayout(plot, { "scene.camera.eye": HOME, "scene.camera.up": { x: 0, y: 0, z: 1 } });
      } else if (KEYS[event.key]) {
        turn(plot, ...KEYS[event.key]);
      } else {
        return;
      }
      event.preventDefault();
    });
  }

  function draw() {
    const theme = dark.matches ? THEMES.dark : THEMES.light;
    const config = { responsive: true, displayModeBar: false, scrollZoom: false };
    return Promise.all(Object.entries(placed).map(([key, figure]) => {
      const plot = document.getElementById(key + "-plot");
      const { data, layout } = themed(figure, theme);
      if (plot.layout && plot.layout.scene && figure.turns) {
        layout.scene = { ...layout.scene, camera: plot.layout.scene.camera };
      }
      return Plotly.react(plot, data, layout, config);
    }));
  }

  const placed = Object.fromEntries(Object.entries(figures).map(([key, figure]) => [key, place(figure)]));

  async function begin() {
    await draw();
    for (const [key, figure] of Object.entries(placed)) {
      const plot = document.getElementById(key + "-plot");
      if (figure.turns) {
        listen(plot);
        // What is printed is as it was turned, half a second after the last turn.
        let waiting = 0;
        plot.on("plotly_relayout", () => {
          clearTimeout(waiting);
          waiting = setTimeout(() => still(key, figure), 500);
        });
      }
      await still(key, figure);
    }
    document.documentElement.dataset.drawn = "yes";
  }

  dark.addEventListener("change", draw);
  // Paper shows every table.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) {
      details.dataset.was = details.open ? "open" : "";
      details.open = true;
    }
  });
  window.addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = details.dataset.was === "open";
  });
  begin();
})();
